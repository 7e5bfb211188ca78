"""The engine: requests in, answers out, and what is done with the cache as a whole."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

from kvhive import ClosedError, Layout, MisuseError, WrongTypeError, _native
from kvhive._native import Connection
from kvhive.access import StrPath
from kvhive.aio import drive

from .asked import Asked
from .backing import Backing, frames_of
from .config import KVCacheConfig
from .config import checked as checked_config
from .figures import Figures, figures
from .model import Model, SeededTransformer
from .model import checked as checked_model
from .requests import Answer, Request, checked, text_of, told

Target = Literal["latency", "memory", "throughput"]

#: The longest that a request waits for the cache, once to be told what is there and once to be given it, in seconds.
_CACHE_WAIT = 5.0
#: Bytes of blocks that may wait to be stored.
_PENDING_BYTES = 512 << 20
#: Codecs that bring back what was stored, bit by bit.
_EXACT = ("raw", "lossless")


class UltraAdaptiveKVCacheEngine:
    """Serves requests with a model, and keeps what it computes for those that begin alike.

    The engine is that of ``kvhive_node::engine``, in Rust; of Python's is the model. One request is computed at a time, on a thread of the
    engine's; the event loop goes on meanwhile. A cache that fails costs time and never an answer: what cannot be found is computed. A context manager, also for ``async with``; one that is not closed keeps its
    node and thread until the process ends, and persists nothing.

    >>> import asyncio
    >>> config = KVCacheConfig(num_heads=2, head_dim=16, num_layers=2, block_size=16, max_memory_mb=64)
    >>> async def ask_twice():
    ...     async with UltraAdaptiveKVCacheEngine(config) as engine:
    ...         first = await engine.process_request({"text": "The same long question as before, word by word."})
    ...         return first, await engine.process_request({"text": "The same long question as before, word by word."})
    >>> first, again = asyncio.run(ask_twice())
    >>> first["cache_hit"], again["cache_hit"], first["result"] == again["result"], again["metadata"]["cached_tokens"]
    (False, True, True, 32)

    :param model: what computes; :class:`SeededTransformer` where none is given.
    """

    def __init__(self, config: KVCacheConfig | None = None, *, model: Model | None = None) -> None:
        self.config = config = checked_config(config)
        self.model: Model = SeededTransformer(config) if model is None else checked_model(model)
        layout = Layout(
            layers=config.num_layers,
            kv_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens=config.block_size,
            dtype=config.dtype,
        )
        self._closing = threading.Lock()
        self._is_closed = False
        self._backing = Backing(config, frames_of(config, layout), folder="kvhive-engine")
        try:
            self._native = _native.Engine(
                self._backing.connection,
                Asked(self.model, config),
                self.model.fingerprint,
                layout,
                max_tokens=config.max_tokens,
                codec=config.codec,
                cache_wait=_CACHE_WAIT,
                pending_bytes=_PENDING_BYTES if config.non_blocking else 0,
                new_tenants="isolated" if config.tenant_isolation else "sharing",
            )
            self._connection: Connection | None = None
            if self._backing.tenants:
                with self._paused() as pause:
                    self._take_up(pause)
            self._connection = self._backing.connection
        except BaseException:
            self._backing.end()
            raise

    async def process_request(self, request: Request) -> Answer:
        """Answers a request.

        :raises kvhive.MisuseError: when the request cannot be served as it is: what is wrong, its value and what is allowed.
        """
        asked = checked(request, self.config)
        return told(await drive(self._native.serve(asked)), asked, self.config.enable_profiling)

    async def process_batch_optimized(self, requests: Sequence[Request], batch_size: int = 10) -> list[Answer]:
        """Answers requests in the order that computes each shared prefix once; answers are in the order of the requests.

        Requests that begin alike are served one after the other, ``batch_size`` in line at a time.

        :raises kvhive.MisuseError: when one cannot be served as it is; none is served then. What the model raises of one is raised when all
            others have been served.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise MisuseError(f"batch_size is {batch_size!r}: a whole number of 1 and more is allowed")
        asked = [checked(request, self.config) for request in requests]
        answers = await drive(self._native.serve_all(asked, batch_size))
        served: list[Answer] = []
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            served.append(told(answer, one, self.config.enable_profiling))
        return served

    def end_session(self, session_id: str) -> bool:
        """Says that a conversation is over: what it alone used goes first. Returns whether it was known."""
        text_of("session_id", session_id)
        return self._native.end_session(session_id).wait()

    def covered(self, text: str, tenant: str | None = None) -> int:
        """Returns how many blocks of a prompt are there, from its first token on. They are held for a while, and what lies in slower memory
        is brought up.

        :raises kvhive.ClosedError: when the engine has been closed.
        """
        text_of("text", text)
        if tenant is not None:
            text_of("tenant", tenant)
        if self._is_closed:
            raise ClosedError("the engine has been closed")
        return self._native.covered(text, tenant).wait()

    def get_stats(self) -> Figures:
        """Returns what the engine has done and holds.

        ``total_requests``, ``cache_hits`` and ``cache_misses`` (requests of which some block was found, and none), ``hit_rate`` of these;
        ``avg_latency`` and percentiles of the last 4096, in milliseconds; ``memory_usage`` in bytes; ``memory_utilization``, the filled
        share of the upper tier; ``gpu_utilization``, the share of the last moment in which the GPU that blocks lie in did something, whoever
        had it do it, as NVML tells it, and where they lie in none or NVML does not tell, ``memory_utilization``: ``gpu_utilization_of`` says
        which, ``gpu`` or ``memory``. Besides: ``token_hit_rate`` and the tokens that it is of, ``compression_ratio``, ``strategy``,
        ``pinned_bytes``, ``transport`` (by which way most bytes have gone to other devices: ``in-process``, ``shared-memory``, ``nccl`` or
        ``tcp``; ``none`` until some have), ``cache_failures``, and all figures of the node, ``node``.

        """
        return figures(self._native.stats(), self._backing.stats(), self._backing.strategy)

    def persist(self, path: StrPath | None = None) -> bool:
        """Writes all blocks into a folder, as usual the configuration's.

        :raises IOError: when that cannot be done.
        """
        # Nodes that were added may take long to leave: requests are served meanwhile.
        self._backing.gather()
        with self._paused():
            return self._backing.persist(path, {})

    def load(self, path: StrPath | None = None) -> bool:
        """Takes in what was persisted, in place of what is here; of another model or shape, nothing in it is ever found. Blocks that are
        damaged or missing are left out, with a ``RuntimeWarning`` that says how many.

        What cannot be read, or has no block that can be told, is refused before anything is let go of, and leaves the engine as it was.
        It goes on empty where its new node does not start or does not take in what was read, or where the bytes of all blocks are damaged.

        :raises FileNotFoundError: when nothing was persisted there.
        :raises IOError: when it cannot be read.
        """
        with self._paused() as pause:
            try:
                self._backing.load(path)
            finally:
                # Also where that failed half-way, and the engine goes on with an empty node.
                self._take_up(pause)
        return True

    def clear_cache(self, *, whole_cluster: bool = False) -> None:
        """Forgets every block, of all tenants.

        :param whole_cluster: in a cluster the tenants are not this engine's alone: says that nobody is to find their blocks any more.
        :raises kvhive.MisuseError: in a cluster, where that is not said.
        """
        self._backing.check_alone("this would forget what is stored", whole_cluster)
        with self._paused() as pause:
            pause.clear().wait()

    def optimize(self, target: Target, *, whole_cluster: bool = False) -> dict[str, Any]:
        """Looks for settings that serve recent traffic better, and takes them.

        The last 4096 requests are replayed against each setting, with what computing, fetching and storing a block took here, measured
        several times. What is compared is for ``latency`` the 95th percentile of a request, for ``throughput`` requests a second, for
        ``memory`` the bytes of a block's frame. A setting is changed only for 1 % or more, and for more than the gain varies by from
        one measurement to the next; of those that do as well, the one that changes least.

        Returns ``target``, ``advised`` (each setting's old and new value, empty where none does better), ``changed`` (what of that was
        taken), ``improvement_percentage`` and the ``spread_percentage`` of it over ``measurements``, what it rests on (``before``, ``after``,
        ``unit``, ``replayed_requests``), all ``candidates``, and ``unreachable_blocks``: so many that are there now will not be found
        under the new settings, because blocks that were rounded and those that were not go by different keys.

        :param whole_cluster: in a cluster the tenants' strategy is not this engine's alone, and nothing is changed unless this says so.
        :raises kvhive.MisuseError: when the target is none of these.
        """
        is_advice = self.config.enable_distributed and not whole_cluster
        backing = self._backing
        with self._paused() as pause:
            advice = pause.advise(target, backing.strategy, backing.frames(), self.config.codecs_allowed).wait()
            report: dict[str, Any] = json.loads(advice.json)
            advised = report["advised"]
            report["unreachable_blocks"] = self._unreachable(advised)
            report["changed"] = {} if is_advice else dict(advised)
            if report["changed"]:
                pause.take(advice).wait()
            if "cache_strategy" in report["changed"]:
                backing.strategy = advised["cache_strategy"]["to"]
        return report

    def _unreachable(self, advised: dict[str, dict[str, str]]) -> int:
        """Counts blocks that go by other keys than those which are asked for under other settings."""
        codec = advised.get("codec")
        if codec is None or (codec["from"] in _EXACT and codec["to"] in _EXACT):
            return 0
        left = _EXACT if codec["from"] in _EXACT else (codec["from"],)
        return sum(int(one["blocks"]) for one in self._backing.stats()["codecs"] if one["codec"] in left)

    def flush(self) -> None:
        """Waits until what was computed so far is stored."""
        self._native.settled().wait()

    def close(self) -> None:
        """Serves what waits, stores it, persists where that is wanted, and gives the memory back. Again, it does nothing."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self._native.end().wait()
        finally:
            self._backing.close({})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def backing(self) -> Backing:
        """The node and the client that its blocks lie behind."""
        return self._backing

    @contextmanager
    def _paused(self) -> Iterator[_native.EnginePause]:
        """Has what was computed be stored, and serves nothing until this is left."""
        pause = self._native.pause().wait()
        try:
            yield pause
        finally:
            pause.resume()

    def _take_up(self, pause: _native.EnginePause) -> None:
        """Goes on with the backing's client, where that is another one now."""
        connection = self._backing.connection
        if connection is self._connection:
            return
        pause.renew(connection, self._backing.tenants)
        self._native.holds(connection)
        self._connection = connection
        # Rules of then may name another strategy.
        pause.set_strategy(self._backing.strategy).wait()


def backing_of(engine: UltraAdaptiveKVCacheEngine) -> Backing:
    """Returns what an engine's blocks lie behind.

    :raises kvhive.WrongTypeError: when it is no engine.
    """
    if not isinstance(engine, UltraAdaptiveKVCacheEngine):
        raise WrongTypeError(f"engine is {engine!r}: an UltraAdaptiveKVCacheEngine is allowed")
    return engine.backing
