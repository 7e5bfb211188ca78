"""A storage backend for SGLang's HiCache: what its pool in the host's memory holds goes on to the cluster, and what any engine has put
there comes back into the pool. What it decides is decided by the package's native half.

SGLang calls it from threads of its own, which may wait; each call keeps to its limit, and none raises. For the versions of SGLang in
`kvhive.sglang.versions`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import sglang
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransferResult,
)
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.observability.metrics_collector import StorageMetrics

from kvhive import Client
from kvhive._native import EnginePages, engine_fingerprint, engine_stops
from kvhive.errors import MisuseError
from kvhive.sglang.pools import Pool, memory_of
from kvhive.sglang.settings import SGLANGS, Settings
from kvhive.sglang.versions import refusal

__all__ = ["KvHiveStorage"]

# Below SGLang's own, so that its configuration shows it.
logger = logging.getLogger("sglang.srt.mem_cache.kvhive")

_T = TypeVar("_T")
KV = str(PoolName.KV)
# Bytes that are copied at a time, where pages are not read and written in place.
COPIED_BYTES = 64 << 20
# Messages that are logged, once each.
MOST_SAID = 64


class Shelved(NamedTuple):
    """A pool, and where its pages go: a shelf for each size of piece."""

    pool: Pool
    shelves: list[int]


class Unshared(Exception):
    """Why the pages of a pool are not shared."""


def spared(otherwise: Callable[..., _T]) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Has the engine go on with a miss where this fails; `otherwise` makes it of what was asked."""

    def spare(call: Callable[..., _T]) -> Callable[..., _T]:
        @functools.wraps(call)
        def guarded(self: KvHiveStorage, asked: Any, *given: Any, **named: Any) -> _T:
            try:
                answer = call(self, asked, *given, **named)
            except Exception as error:
                self._say(f"{call.__name__} failed: {type(error).__name__}: {error}", error)
                answer = otherwise(asked)
            for trouble in self._pages.troubles():
                self._say(trouble)
            return answer

        return guarded

    return spare


class KvHiveStorage(HiCacheStorage):  # type: ignore[misc]
    """Named by `{"backend_name": "kvhive", "module_path": "kvhive.sglang", "class_name": "KvHiveStorage", "interface_v1": 1, …}`."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        if refused := refusal(sglang.__version__):
            raise MisuseError(refused)
        self._config = storage_config
        extra = storage_config.extra_config or {}
        self._settings = Settings.of(extra, others=SGLANGS)
        # As SGLang reads it.
        self._is_v1 = bool(extra.get("interface_v1", 0))
        self._said: set[str] = set()
        self._metrics = StorageMetrics()
        self._pools: dict[str, Shelved] = {}
        self._is_logical = False
        self._pages = EnginePages(**self._settings.cluster)
        if not self._is_v1:
            logger.warning("kvhive: pages are copied once more each way; SGLang spares it with \"interface_v1\": 1")

    # What SGLang has

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._is_logical = getattr(mem_pool_host, "kv_buffer", None) is None
        if not self._is_logical:
            self._register(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) not in self._pools and getattr(host_pool, "kv_buffer", self) is not None:
            self._register(str(host_pool_name), host_pool)

    def _register(self, name: str, host_pool: Any) -> None:
        try:
            # Pools beside the first are always asked for by their indices.
            pool = Pool(host_pool, is_direct=name != KV or self._is_v1)
            facts = {**self._facts(name, host_pool), **pool.facts()}
        except Exception as error:
            self._say(f"nothing of the pool {name} is shared: {error}", error)
            return
        model = engine_fingerprint("sglang", [(fact, str(value)) for fact, value in facts.items()])
        sizes = {size: self._pages.open(model, size) for size in dict.fromkeys(pool.pieces)}
        self._pools[name] = Shelved(pool, [sizes[size] for size in pool.pieces])
        how = "in place" if pool.is_direct else "copied"
        logger.info("kvhive: pages of %s are %s, %s bytes, %s", name, model, "+".join(map(str, pool.pieces)), how)

    def _facts(self, name: str, host_pool: Any) -> dict[str, Any]:
        config = self._config
        # Of a model whose ranks all have the same, one rank writes for all of them.
        is_same = config.is_mla_model and name != PoolName.MAMBA and not isinstance(host_pool, MHATokenToKVPoolHost)
        return {
            "version": sglang.__version__,
            "weights": self._settings.weights or config.model_name,
            "pool": name,
            "tensor parallel": "same" if is_same else (config.tp_rank, config.tp_size),
            "pipeline parallel": (config.pp_rank, config.pp_size),
            "context parallel": (config.attn_cp_rank, config.attn_cp_size, config.dcp_rank, config.dcp_size),
            "heads split": (config.should_split_heads, config.tp_lcm_size),
            **served(),
        }

    # What it asks

    @spared(lambda keys: 0)
    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        return self._run(keys, self._until(self._settings.wait_ms))

    @spared(lambda keys: PoolTransferResult.empty())
    def batch_exists_v2(self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None) -> Any:
        until = self._until(self._settings.wait_ms)
        transfers = list(pool_transfers or [])
        # Of an anchor that holds nothing itself, the other pools say it all.
        pages = len(keys) if self._is_logical and transfers else self._run(keys, until)
        needs = [needed(transfer) for transfer in transfers]
        # Nobody is asked for what is beyond a gap.
        there = [self._which(str(transfer.name), keys[:pages], until) for transfer in transfers]
        stops, reaches = engine_stops(pages, list(zip(needs, there, strict=True)))
        hits = {PoolName.KV: pages} if pages else {}
        hits |= {transfer.name: reach for transfer, reach in zip(transfers, reaches, strict=True) if reach}
        return PoolTransferResult(stops[-1] if stops else 0, hits, stops)

    @spared(lambda keys: [False] * len(keys))
    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        return self._measured(self._get, KV, keys, host_indices, self._until(self._settings.fetch_ms))

    @spared(lambda keys: [False] * len(keys))
    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        return self._measured(self._set, KV, keys, host_indices, self._until(self._settings.store_ms))

    @spared(lambda transfers: missed(transfers))
    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        return self._each(self._get, transfers, self._until(self._settings.fetch_ms))

    @spared(lambda transfers: missed(transfers))
    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        return self._each(self._set, transfers, self._until(self._settings.store_ms))

    # Without `interface_v1`: whole pages in tensors of SGLang's

    @spared(lambda key: False)
    def exists(self, key: str) -> bool:
        return self._run([key], self._until(self._settings.wait_ms)) == 1

    @spared(lambda key: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self._tensors([key], [target_location])[0]

    @spared(lambda keys: [None] * len(keys))
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        return self._tensors(keys, target_locations)

    @spared(lambda key: False)
    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return all(self._store_tensors([key], [value]))

    @spared(lambda keys: False)
    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        return all(self._store_tensors(keys, values))

    # What it asks besides

    def clear(self) -> None:
        """Ends the tenant's era: nobody serves its older pages any more, whichever engine stored them. Raises where that is not so."""
        told = self._settings
        limit = told.store_ms / 1000
        with Client(told.coordinators, told.token, tls=told.tls, connect_timeout=limit, request_timeout=limit) as client:
            client.clear(told.tenant)

    def get_stats(self) -> StorageMetrics | None:
        if not self._config.enable_storage_metrics:
            return None
        metrics, self._metrics = self._metrics, StorageMetrics()
        return metrics

    def close(self) -> None:
        """Ends it: nothing uses SGLang's memory any more afterwards."""
        self._pages.close()
        logger.info("kvhive: %s", dict(self._pages.figures()))
        self._pools.clear()
        self.mem_pool_host = None
        self.registered_pools: dict[Any, Any] = {}

    def _run(self, keys: list[str], until: float) -> int:
        """Returns how many pages from the first on are there without a gap."""
        return leading(self._which(KV, keys, until, run=True))

    def _which(self, name: str, keys: list[str], until: float, run: bool = False) -> list[bool]:
        shelved = self._shelved(name)
        there = [True] * len(keys)
        for shelf, pieces in by_shelf(shelved):
            left = until - time.monotonic()
            if not keys or left <= 0:
                return [False] * len(keys)
            found = self._pages.which(shelf, names(keys, pieces, shelved.pool.is_direct), left, run)
            for at in range(len(keys)):
                there[at] = there[at] and all(found[at * len(pieces) : (at + 1) * len(pieces)])
        return there

    def _get(self, name: str, keys: list[str], indices: torch.Tensor, until: float) -> list[bool]:
        shelved = self._shelved(name)
        if not shelved.pool.fits(keys, indices):
            raise ValueError(f"indices of {len(keys)} pages of {name} do not fit them")
        if shelved.pool.is_direct:
            return self._in_place(self._pages.fetch, shelved, keys, indices, until)
        done: list[bool] = []
        pool, places = shelved.pool, list(shelved.pool.pages(indices))
        each = max(1, COPIED_BYTES // pool.pieces[0])
        for at in range(0, len(keys), each):
            part = keys[at : at + each]
            if (left := until - time.monotonic()) <= 0:
                break
            memory = torch.empty((len(part), pool.pieces[0]), dtype=torch.uint8)
            came = self._pages.fetch(shelved.shelves[0], names(part, [0], False), memory, left)
            for page, place, is_there in zip(memory, places[at : at + each], came, strict=True):
                if is_there:
                    pool.put(place, page)
            done += came
            if not all(came):
                break
        return done + [False] * (len(keys) - len(done))

    def _set(self, name: str, keys: list[str], indices: torch.Tensor, until: float) -> list[bool]:
        shelved = self._shelved(name)
        if not shelved.pool.fits(keys, indices):
            raise ValueError(f"indices of {len(keys)} pages of {name} do not fit them")
        if shelved.pool.is_direct:
            return self._in_place(self._pages.store, shelved, keys, indices, until)
        done: list[bool] = []
        places = list(shelved.pool.pages(indices))
        each = max(1, COPIED_BYTES // shelved.pool.pieces[0])
        for at in range(0, len(keys), each):
            if (left := until - time.monotonic()) <= 0:
                break
            pages = [shelved.pool.copied(place) for place in places[at : at + each]]
            done += self._pages.store(shelved.shelves[0], names(keys[at : at + each], [0], False), pages, left)
        return done + [False] * (len(keys) - len(done))

    def _in_place(
        self, transfer: Callable[..., list[bool]], shelved: Shelved, keys: list[str], indices: torch.Tensor, until: float
    ) -> list[bool]:
        done = [True] * len(keys)
        rows = shelved.pool.rows(indices)
        for shelf, pieces in by_shelf(shelved):
            left = until - time.monotonic()
            if left <= 0:
                return [False] * len(keys)
            memory = [page[piece] for page in rows for piece in pieces]
            moved = transfer(shelf, names(keys, pieces, True), memory, left)
            for at in range(len(keys)):
                done[at] = done[at] and all(moved[at * len(pieces) : (at + 1) * len(pieces)])
        return done

    def _tensors(self, keys: list[str], targets: Any) -> list[torch.Tensor | None]:
        if not all(target.is_contiguous() for target in targets):
            raise ValueError("a page is to be fetched into memory with gaps")
        memory = [memory_of(target) for target in targets]
        came = self._pages.fetch(self._whole(), names(keys, [0], False), memory, self._settings.fetch_ms / 1000)
        return [target if is_there else None for target, is_there in zip(targets, came, strict=True)]

    def _store_tensors(self, keys: list[str], values: Any) -> list[bool]:
        memory = [memory_of(value) for value in values]
        return self._pages.store(self._whole(), names(keys, [0], False), memory, self._settings.store_ms / 1000)

    def _whole(self) -> int:
        shelved = self._shelved(KV)
        if shelved.pool.is_direct:
            raise Unshared("with interface_v1, pages are known by their indices")
        return shelved.shelves[0]

    def _shelved(self, name: str) -> Shelved:
        if name not in self._pools:
            raise Unshared(f"the pool {name} is not shared")
        return self._pools[name]

    def _each(self, move: Callable[..., list[bool]], transfers: Sequence[Any], until: float) -> dict[Any, list[bool]]:
        done = missed(transfers)
        for one in transfers:
            try:
                done[one.name] = self._measured(move, str(one.name), one.keys or [], one.host_indices, until)
            except Exception as error:
                # What was done for other pools counts all the same.
                self._say(f"pages of {one.name} are missed: {error}", error)
        return done

    def _measured(
        self, move: Callable[..., list[bool]], name: str, keys: list[str], indices: Any, until: float
    ) -> list[bool]:
        begun = time.monotonic()
        done = move(name, keys, indices, until)
        if self._config.enable_storage_metrics and (pages := done.count(True)):
            took = max(time.monotonic() - begun, 1e-6)
            rate = pages * sum(self._shelved(name).pool.pieces) / (1 << 30) / took
            is_read = move == self._get
            (self._metrics.prefetch_pgs if is_read else self._metrics.backup_pgs).append(pages)
            (self._metrics.prefetch_bandwidth if is_read else self._metrics.backup_bandwidth).append(rate)
        return done

    @staticmethod
    def _until(limit_ms: int) -> float:
        return time.monotonic() + limit_ms / 1000

    def _say(self, what: str, error: Exception | None = None) -> None:
        if what not in self._said and len(self._said) < MOST_SAID:
            self._said.add(what)
            logger.warning("kvhive: %s", what, exc_info=error)


def names(keys: list[str], pieces: Sequence[int], is_direct: bool) -> list[bytes]:
    """Names pages by SGLang's hashes, piece by piece where they are in pieces."""
    if not is_direct:
        return [key.encode() for key in keys]
    return [b"%s/%d" % (key.encode(), piece) for key in keys for piece in pieces]


def by_shelf(shelved: Shelved) -> list[tuple[int, list[int]]]:
    """Returns each shelf, and which pieces of a page are on it."""
    pieces: dict[int, list[int]] = {}
    for piece, shelf in enumerate(shelved.shelves):
        pieces.setdefault(shelf, []).append(piece)
    return list(pieces.items())


def leading(there: list[bool]) -> int:
    return there.index(False) if False in there else len(there)


def needed(transfer: Any) -> int | None:
    """Returns how many pages before a stop a pool needs; None for all."""
    if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
        return None
    if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
        return max(1, len(transfer.keys or [1]))
    raise Unshared(f"the pool {transfer.name} is asked for by {transfer.hit_policy}")


def missed(transfers: Sequence[Any]) -> dict[Any, list[bool]]:
    return {transfer.name: [False] * len(transfer.keys or []) for transfer in transfers}


def served() -> dict[str, Any]:
    """Says what an engine was told that changes what it computes; nothing outside of one."""
    from sglang.srt.runtime_context import get_server_args

    try:
        told = get_server_args()
    except ValueError:
        return {}
    asked = ("revision", "dtype", "quantization", "kv_cache_dtype", "json_model_override_args")
    return {**{name: getattr(told, name) for name in asked}, "drawn": told.load_format == "dummy"}
