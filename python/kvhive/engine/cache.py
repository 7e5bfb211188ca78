"""A cache of tensors by key: any tensor, any key, in the memory of a kvhive node."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kvhive import Layout, MisuseError, Namespace, Prefix, WrongTypeError
from kvhive.access import StrPath

from .backing import Backing, memory_used, ranker
from .behind import Behind
from .config import CacheStrategy, KVCacheConfig, checked
from .counts import Counts, share
from .values import Value, codec_of, decoded, encoded, given, taken

if TYPE_CHECKING or find_spec("torch") is None:

    class _Module:
        """What a cache is where there is no torch: a plain object."""

else:
    from torch.nn import Module as _Module

#: Bytes of one piece of a value.
_PIECE_BYTES = 16 << 10
#: Bytes of values that may wait to be stored.
_PENDING_BYTES = 256 << 20
#: A value begins with the bytes of its head.
_FRONT_BYTES = 4
_MODEL = "kvhive-tensors-1"


class BaseKVCache(_Module):
    """Tensors by key: numpy's, torch's, or anything that numpy makes an array of.

    A key is text, bytes, a whole number, an array, or a sequence of those. Of two values under one key the later one is found, by
    the cache that stored it and by whoever takes up what that persisted. What comes back has the kind, type and shape of what
    was stored; its numbers are the same too, unless ``use_quantization`` lets them be rounded. A ``torch.nn.Module`` where torch is
    installed, so that a model may hold it.

    >>> import numpy
    >>> with BaseKVCache(KVCacheConfig(max_memory_mb=64)) as cache:
    ...     cache.store("layer 0", numpy.arange(6, dtype=numpy.float16).reshape(2, 3))
    ...     found = cache.retrieve("layer 0").tolist()
    ...     missing = cache.retrieve("layer 1")
    >>> found, missing
    ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], None)
    """

    def __init__(self, config: KVCacheConfig | None = None) -> None:
        super().__init__()
        self.config = checked(config)
        # A strategy that shrinks cold pieces needs somewhere smaller to put them.
        shrinks = self.config.strategy in (CacheStrategy.COMPRESSED, CacheStrategy.QUANTIZED)
        frames = {_PIECE_BYTES // 2: 1, _PIECE_BYTES: 1} if shrinks else {_PIECE_BYTES: 1}
        self._backing = Backing(self.config, frames, folder="kvhive-tensors")
        self._layout = Layout.opaque(_PIECE_BYTES, 1)
        self._versions = _Versions(self._backing.recall())
        self._behind: Behind[Value] | None = Behind(_PENDING_BYTES) if self.config.non_blocking else None
        self._counts = Counts("stores", "hits", "misses", "raw_bytes", "stored_bytes")

    def store(self, key: object, value: Any) -> None:
        """Stores a tensor.

        With ``non_blocking`` this returns at once; :meth:`retrieve` finds it from then on, :meth:`flush` waits until the node has it.

        :raises kvhive.WrongTypeError: when the key is none of the kinds above, or the value holds no numbers.
        """
        name, value = _name(key), taken(value)
        self._counts.add(stores=1)
        if self._behind is None:
            self._put(name, value)
            return
        # The caller may change its own as soon as this returns.
        own = value.copy()
        self._behind.add({name: own}, own.array.nbytes, lambda: self._put(name, own))

    def retrieve(self, key: object) -> Any:
        """Returns the tensor stored under a key; None when there is none, or it had to leave.

        :raises kvhive.WrongTypeError: when the key is none of the kinds above.
        """
        name = _name(key)
        waiting = self._behind.find([name]).get(name) if self._behind is not None else None
        found = waiting.copy() if waiting is not None else self._get(name)
        self._counts.add(hits=int(found is not None), misses=int(found is None))
        return None if found is None else given(found, pinned=self.config.pin_memory)

    def flush(self) -> None:
        """Waits until everything stored so far is in the node.

        :raises kvhive.KvHiveError: when a store could not be made since the last flush.
        """
        if self._behind is not None:
            self._behind.wait()

    def clear(self, *, whole_cluster: bool = False) -> None:
        """Forgets everything.

        :param whole_cluster: in a cluster the tenant is not this cache's alone: says that nobody is to find its blocks any more.
        :raises kvhive.MisuseError: in a cluster, where that is not said.
        """
        self._backing.check_alone("this would forget what is stored", whole_cluster)
        self.flush()
        with self._backing.lock:
            self._backing.clear(whole_cluster=whole_cluster)
            self._versions.reset({})

    def persist(self, path: StrPath | None = None) -> bool:
        """Writes everything into a folder, as usual the configuration's; raises IOError when that cannot be done."""
        # Nodes that were added may take long to leave: values are found meanwhile.
        self._backing.gather()
        self.flush()
        with self._backing.lock:
            return self._backing.persist(path, self._versions.dump())

    def load(self, path: StrPath | None = None) -> bool:
        """Takes in what was persisted, in place of what is here. Where that fails the cache stays as it was, or goes on empty, and what is
        damaged is left out: as ``load`` of :class:`UltraAdaptiveKVCacheEngine` has it.

        :raises FileNotFoundError: when nothing was persisted there.
        :raises IOError: when it cannot be read.
        """
        self.flush()
        with self._backing.lock:
            self._versions.reset(self._backing.load(path))
        return True

    def get_stats(self) -> dict[str, Any]:
        """Returns what the cache has done and holds.

        ``stores``, ``hits``, ``misses`` and ``hit_rate`` of its own calls; ``memory_usage`` and ``memory_capacity`` in bytes;
        ``compression_ratio``, stored bytes for each raw one; ``evictions`` of pieces, by reason; ``strategy``; ``pinned_bytes``;
        and all figures of the node, ``node``.
        """
        stats, counts = self._backing.stats(), self._counts.read()
        return {
            "stores": counts["stores"],
            "hits": counts["hits"],
            "misses": counts["misses"],
            "hit_rate": share(counts["hits"], counts["hits"] + counts["misses"]),
            "memory_usage": memory_used(stats),
            "memory_capacity": stats["device"]["capacity_bytes"] + stats["host"]["capacity_bytes"],
            "compression_ratio": share(counts["stored_bytes"], counts["raw_bytes"]) if counts["raw_bytes"] else 1.0,
            "evictions": stats["evictions"],
            "strategy": self._backing.strategy,
            "pinned_bytes": stats["pinned_bytes"],
            "node": stats,
        }

    def close(self) -> None:
        """Stores what waits, persists where that is wanted, and gives the memory back."""
        try:
            if self._behind is not None:
                self._behind.close()
        finally:
            self._backing.close(self._versions.dump())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _names(self, name: bytes, version: int, pieces: int) -> Prefix:
        namespace: Namespace = self._backing.namespace(_MODEL, self._layout)
        seed = name + version.to_bytes(8, "little")
        hashes = [hashlib.sha256(seed + at.to_bytes(4, "little")).digest() for at in range(pieces)]
        return namespace.keys_of_hashes(hashes)

    def _put(self, name: bytes, value: Value) -> None:
        codec = codec_of(value, self.config)
        body = encoded(value, codec)
        digest = hashlib.sha256(body).hexdigest()
        head = json.dumps([value.library, value.dtype, value.array.shape, codec, len(body), digest]).encode()
        content = len(head).to_bytes(_FRONT_BYTES, "little") + head + body
        pieces = np.zeros((math.ceil(len(content) / _PIECE_BYTES), _PIECE_BYTES), np.uint8)
        pieces.reshape(-1)[: len(content)] = np.frombuffer(content, np.uint8)
        with self._backing.lock:
            version = self._versions.next(name)
            # A piece that is there already stays, whatever it holds: then this is a later version than the one that it is of.
            while True:
                report = self._backing.client.store_from(self._names(name, version, len(pieces)), pieces)
                if report.sent + len(report.failed) >= len(pieces):
                    break
                version += 1
            self._versions.set(name, version)
        self._counts.add(raw_bytes=value.array.nbytes, stored_bytes=len(body))

    def _get(self, name: bytes) -> Value | None:
        with self._backing.lock:
            version = self._versions.of(name)
            first = self._pieces(name, version, 0, 1)
            if first is None:
                return None
            after = _FRONT_BYTES + int.from_bytes(first[:_FRONT_BYTES].tobytes(), "little")
            library, dtype, shape, codec, body_bytes, digest = json.loads(first[_FRONT_BYTES:after].tobytes())
            end = after + body_bytes
            rest = self._pieces(name, version, 1, math.ceil(end / _PIECE_BYTES))
        if rest is None:
            return None
        body = np.concatenate([first, rest])[after:end]
        # Pieces of two values under one name, of two processes, make none.
        if hashlib.sha256(body.tobytes()).hexdigest() != digest:
            return None
        return decoded(library, dtype, tuple(shape), codec, body)

    def _pieces(self, name: bytes, version: int, start: int, end: int) -> NDArray[np.uint8] | None:
        """Returns the bytes of some pieces; None when one is not there."""
        room = np.empty((end - start) * _PIECE_BYTES, np.uint8)
        if start == end:
            return room
        names, client = self._names(name, version, end), self._backing.client
        # A match is what strategies see as a use; it holds what it found until that is fetched.
        if client.match(names).covered < end:
            return None
        report = client.fetch_into(names, room, start)
        return room if report.delivered == end - start else None


class AdaptiveKVCache(BaseKVCache):
    """A cache that learns which values come back, and says what it decides by."""

    def __init__(self, config: KVCacheConfig | None = None) -> None:
        config = config or KVCacheConfig()
        if config.strategy is not CacheStrategy.ADAPTIVE:
            raise MisuseError(f"cache_strategy is {config.cache_strategy!r}: of these, 'adaptive' is what adapts")
        super().__init__(config)

    def adjust_strategy(self) -> list[dict[str, Any]]:
        """Has it choose now among its ways to rank, by what its shadow caches would have hit.

        Returns how each part of the cache does: under ``choice`` the way that is ``in_charge``, the ``estimates`` of all, the
        ``evidence`` that they rest on and the ``reason``. Where there is too little evidence it keeps its way.
        """
        self.flush()
        return self._backing.adjust_strategy()

    def get_current_strategy(self) -> str:
        """Returns what ranks now: ``adaptive`` where it goes by what it has learnt, else the simple strategy that it leaves it to."""
        return ranker(self._backing.stats())


class _Versions:
    """How often a key's value was replaced, of those whose was: what is found is the last one."""

    def __init__(self, known: dict[str, int]) -> None:
        self._lock = threading.Lock()
        self._replaced: dict[bytes, int] = {}
        self.reset(known)

    def reset(self, known: dict[str, int]) -> None:
        """Knows what was dumped, and nothing else."""
        with self._lock:
            self._replaced = {bytes.fromhex(name): version for name, version in known.items()}

    def dump(self) -> dict[str, int]:
        """Returns what must be known to find the latest values."""
        with self._lock:
            return {name.hex(): version for name, version in self._replaced.items()}

    def of(self, name: bytes) -> int:
        """Returns the version that is found."""
        with self._lock:
            return self._replaced.get(name, 0)

    def next(self, name: bytes) -> int:
        """Returns the first version that a value stored now may have."""
        with self._lock:
            return self._replaced.get(name, -1) + 1

    def set(self, name: bytes, version: int) -> None:
        """Has a version be found."""
        with self._lock:
            if version:
                self._replaced[name] = version


def _name(key: object) -> bytes:
    """Names a key by its content: keys of one name are one key."""
    return hashlib.sha256(b"kvhive-key-1\0" + _spelled(key)).digest()


def _spelled(key: object) -> bytes:
    """Spells a key so that no two are spelled alike."""
    if isinstance(key, str):
        return _tagged(b"s", key.encode())
    if isinstance(key, (bytes, bytearray, memoryview)):
        return _tagged(b"b", bytes(key))
    if isinstance(key, (int, np.integer)):
        return _tagged(b"i", str(int(key)).encode())
    if isinstance(key, Sequence):
        return _tagged(b"t", b"".join(map(_spelled, key)))
    try:
        array = taken(key)
    except TypeError:
        what = type(key).__name__
        raise WrongTypeError(f"a key is text, bytes, a whole number, an array or a sequence of those, not {what}") from None
    return _tagged(b"a", f"{array.dtype}{array.array.shape}".encode()) + _tagged(b"v", array.array.tobytes())


def _tagged(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(8, "little") + content
