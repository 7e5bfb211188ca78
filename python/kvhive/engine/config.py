"""What an engine's cache is like: :class:`KVCacheConfig` and the names that it takes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import numpy as np

from kvhive import MisuseError, WrongTypeError, addresses
from kvhive.access import Tls
from kvhive.client import Codec

_DTYPES = ("float16", "bfloat16", "float32")
_BACKENDS = ("nccl", "nccl-unencrypted", "tcp")
_BITS = (4, 8, 16)


class CacheStrategy(str, Enum):
    """What decides which block leaves a full cache (docs/strategies.md)."""

    LRU = "lru"
    LFU = "lfu"
    ADAPTIVE = "adaptive"
    PAGED = "paged"
    COMPRESSED = "compressed"
    QUANTIZED = "quantized"


class CacheMode(str, Enum):
    """A preset of the node's knobs for one kind of work (docs/operate.md)."""

    TRAINING = "training"
    INFERENCE = "inference"
    BULK = "bulk"
    STREAMING = "streaming"
    INTERACTIVE = "interactive"


@dataclass
class KVCacheConfig:
    """Shape, size and manners of an engine's cache.

    Every value is checked when the object is made, and again by :meth:`validate` before an engine takes it.

    >>> KVCacheConfig(max_tokens=2048, block_size=64).block_bytes
    524288
    >>> KVCacheConfig(block_size=0)
    Traceback (most recent call last):
    kvhive.errors.MisuseError: block_size is 0: a whole number from 1 to 65536 is allowed
    """

    #: KV heads of one layer.
    num_heads: int = 8
    #: Elements of one head.
    head_dim: int = 64
    #: Tokens of one request at most, prompt and answer together.
    max_tokens: int = 4096
    #: Tokens of one block: what is stored, found and evicted at a time.
    block_size: int = 128
    #: Which block leaves a full cache.
    cache_strategy: CacheStrategy | str = CacheStrategy.ADAPTIVE
    #: What kind of work the node's knobs are set for.
    cache_mode: CacheMode | str = CacheMode.INFERENCE
    #: Whether blocks are stored compressed. Alone it never changes a bit of them.
    use_compression: bool = True
    #: Stored bytes for each raw one that compression aims at. Below what lossless compression reaches it takes fewer bits an
    #: element too, but only with ``use_quantization``, and never fewer than ``quantization_bits``. 1 and more stores raw.
    compression_ratio: float = 0.3
    #: Whether stored elements may be rounded.
    use_quantization: bool = False
    #: Bits of a stored element, where it may be rounded: 4, 8, or 16 for none less.
    quantization_bits: int = 8
    #: Memory for blocks, in MiB. None takes what ``max_tokens`` tokens need four times, at least 64.
    max_memory_mb: int | None = None
    #: Whether memory is freed before it is full.
    enable_gc: bool = True
    #: The share of memory above which it is freed.
    gc_threshold: float = 0.8
    #: Whether tensors that come back lie in pinned memory, as copies to a GPU want it. Without CUDA there is nothing to pin for.
    pin_memory: bool = True
    #: Whether a store returns before its blocks are stored.
    non_blocking: bool = True
    #: Elements of keys and values: float16, bfloat16 or float32, by name, or as numpy's or torch's own.
    dtype: Any = "float16"
    #: Whether blocks outlive the process.
    enable_persistence: bool = False
    #: The folder that they outlive it in. Without one, a folder of this name in the working directory.
    persistence_path: str | os.PathLike[str] | None = None
    #: Whether blocks that are likely next are brought up from slower memory.
    enable_prefetch: bool = True
    #: How many of them at a time.
    prefetch_size: int = 4
    #: Whether each request's stages are timed.
    enable_profiling: bool = False
    #: Whether the cache is a running cluster's instead of this process's own.
    enable_distributed: bool = False
    #: How blocks go to other nodes of the cluster: "nccl" from GPU to GPU where both ends can and the cluster does not speak TLS, which NCCL
    #: does not; "nccl-unencrypted" also where it does; and else, or with "tcp" always, through the host's memory.
    distributed_backend: str = "nccl"
    #: Whether requests name a tenant, each with keys of its own.
    multi_tenant: bool = False
    #: Whether tenants cannot use each other's blocks. Else those of one engine share theirs.
    tenant_isolation: bool = True
    #: Layers of the model.
    num_layers: int = 4
    #: The cluster's coordinators, ``host:port`` each, separated by commas: needed by ``enable_distributed``.
    cluster_address: str | None = None
    #: The cluster's admin API, ``host:port``: needed to scale it and to balance it.
    admin_address: str | None = None
    #: The file with the token that the cluster asks for.
    token_file: str | os.PathLike[str] | None = None
    #: Its certificate, where the cluster speaks TLS.
    tls: Tls | None = None

    #: Where this process serves the cluster's others: an address of this host and a port. None is this host alone, which does only
    #: where the coordinators are on it too.
    listen_address: str | None = None
    #: How others reach it, where that is another ``host:port``.
    advertise_address: str | None = None
    #: The GPU whose memory blocks lie in, as CUDA numbers them in this process. None is the host's.
    gpu: int | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every value, and turns names into what they name.

        :raises kvhive.MisuseError: naming the field, its value and what is allowed.
        """
        for name, most in (
            ("num_heads", 4096),
            ("head_dim", 4096),
            ("max_tokens", 1 << 22),
            ("block_size", 65536),
            ("num_layers", 4096),
            ("prefetch_size", 4096),
        ):
            self._check_whole(name, 1, most)
        if self.max_memory_mb is not None:
            self._check_whole("max_memory_mb", 1, 1 << 24)
        if self.gpu is not None:
            self._check_whole("gpu", 0, 1023)
        self._check_number("compression_ratio", 0.001, 1.0)
        self._check_number("gc_threshold", 0.001, 1.0)
        for field in fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                self._refuse(field.name, "True or False is allowed")
        self.cache_strategy = self._named("cache_strategy", CacheStrategy)
        self.cache_mode = self._named("cache_mode", CacheMode)
        self.dtype = self._check_dtype()
        self._check_one_of("quantization_bits", _BITS)
        self._check_one_of("distributed_backend", _BACKENDS)
        for name in ("persistence_path", "token_file"):
            if not isinstance(getattr(self, name), (str, os.PathLike, type(None))):
                self._refuse(name, "a path or None is allowed")
        if not isinstance(self.tls, (Tls, type(None))):
            self._refuse("tls", "a kvhive.Tls or None is allowed")
        for name in ("cluster_address", "admin_address", "listen_address", "advertise_address"):
            if not isinstance(getattr(self, name), (str, type(None))):
                self._refuse(name, "host:port or None is allowed")
        if self.enable_distributed and not self.cluster_address:
            self._refuse("cluster_address", "enable_distributed needs the coordinators' host:port, separated by commas")
        if self.enable_distributed and self.token_file is None:
            self._refuse("token_file", "enable_distributed needs the file with the cluster's token")
        self._check_addresses()
        if self.block_size > self.max_tokens:
            self._refuse("block_size", f"at most max_tokens, which is {self.max_tokens}, is allowed")
        if self.memory_bytes < 8 * self.block_bytes:
            self._refuse("max_memory_mb", f"at least eight blocks of {self.block_bytes} bytes must fit")

    @property
    def strategy(self) -> CacheStrategy:
        """The strategy, however it was named."""
        return CacheStrategy(self.cache_strategy)

    @property
    def mode(self) -> CacheMode:
        """The mode, however it was named."""
        return CacheMode(self.cache_mode)

    @property
    def coordinators(self) -> list[str]:
        """The cluster's coordinators, ``host:port`` each; none without a cluster."""
        return [one.strip() for one in (self.cluster_address or "").split(",") if one.strip()]

    @property
    def listens(self) -> str:
        """Where the node serves."""
        return self.listen_address or "127.0.0.1:0"

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def block_bytes(self) -> int:
        """Bytes of one block as the model has it: keys and values of ``block_size`` tokens in every layer."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.block_size * self.element_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory for blocks."""
        if self.max_memory_mb is not None:
            return self.max_memory_mb << 20
        blocks = math.ceil(self.max_tokens / self.block_size)
        return max(64 << 20, 4 * blocks * self.block_bytes)

    @property
    def stored_bits(self) -> int | None:
        """Bits that a stored element is rounded to; None where none is."""
        if not self.use_quantization or self.quantization_bits == 16:
            return None
        # What a strategy would round later is rounded at once: a block always comes back alike.
        if not self.use_compression or self.strategy is CacheStrategy.QUANTIZED:
            return self.quantization_bits
        # What the ratio can be reached with, of what may be: each has its scales besides.
        full = 8 * self.element_bytes
        if self.compression_ratio >= _LOSSLESS_RATIO:
            return None
        return 8 if self.compression_ratio * full >= 8.5 or self.quantization_bits == 8 else 4

    @property
    def codec(self) -> Codec:
        """Name of the codec that blocks are stored by."""
        if self.stored_bits is not None:
            return "int8" if self.stored_bits == 8 else "int4"
        return "lossless" if self.use_compression and self.compression_ratio < 1 else "raw"

    @property
    def codecs_allowed(self) -> list[Codec]:
        """Names of all codecs that blocks may be stored by."""
        allowed: list[Codec] = ["raw"]
        if self.use_compression:
            allowed.append("lossless")
        if self.use_quantization and self.quantization_bits <= 8:
            allowed.append("int8")
        if self.use_quantization and self.quantization_bits <= 4:
            allowed.append("int4")
        return allowed

    def _refuse(self, name: str, allowed: str) -> None:
        raise MisuseError(f"{name} is {getattr(self, name)!r}: {allowed}")

    def _check_addresses(self) -> None:
        for name in ("listen_address", "advertise_address", "cluster_address", "token_file", "tls", "admin_address"):
            if getattr(self, name) is not None and not self.enable_distributed:
                self._refuse(name, "it goes with enable_distributed")
        single = ("admin_address", "listen_address", "advertise_address")
        named = {name: [address] for name in single if (address := getattr(self, name)) is not None}
        for name, given in {"cluster_address": self.coordinators, **named}.items():
            try:
                for address in given:
                    addresses.split(address)
            except ValueError:
                self._refuse(name, "host:port is allowed, as in 10.0.0.5:7810")
        if self.enable_distributed and (wrong := addresses.unreachable(self.coordinators, self.listens, self.advertise_address or "")):
            field, why = wrong
            self._refuse(f"{field}_address", why)

    def _check_whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(name, f"a whole number from {least} to {most} is allowed")

    def _check_number(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            self._refuse(name, f"a number from {least:g} to {most:g} is allowed")

    def _check_one_of(self, name: str, allowed: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if type(value) is not type(allowed[0]) or value not in allowed:
            self._refuse(name, f"one of {', '.join(map(repr, allowed))} is allowed")

    def _named(self, name: str, kind: type[Enum]) -> Any:
        try:
            return kind(getattr(self, name))
        except ValueError:
            self._refuse(name, f"one of {', '.join(repr(each.value) for each in kind)} is allowed")

    def _check_dtype(self) -> str:
        """Returns the name of an element type given as a name, a numpy type or dtype, or a torch dtype."""
        name = self.dtype if isinstance(self.dtype, str) else str(self.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            try:
                name = np.dtype(self.dtype).name
            except TypeError:
                pass
        if name not in _DTYPES:
            self._refuse("dtype", f"one of {', '.join(_DTYPES)} is allowed, as a name or as numpy's or torch's own")
        return name


#: The lowest ratio that lossless compression is asked for: what it reaches on tensors of 16 bits is 0.6 to 0.9.
_LOSSLESS_RATIO = 0.7


def checked(config: KVCacheConfig | None) -> KVCacheConfig:
    """Returns a configuration that may be taken; as usual :class:`KVCacheConfig` with nothing said.

    :raises kvhive.MisuseError: when it is none, or has a value that is not allowed.
    """
    if config is None:
        return KVCacheConfig()
    if not isinstance(config, KVCacheConfig):
        raise WrongTypeError(f"config is {config!r}: a KVCacheConfig or None is allowed")
    config.validate()
    return config
