"""Requests with a cache: the longest prefix that anyone has computed is found, a model computes the rest, and what is new is stored."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NotRequired, Self, TypedDict

import numpy as np

from kvhive import KvHiveError, Layout, Namespace, Prefix
from kvhive.access import StrPath
from kvhive.codec import Codec, decode, encode, stored_bytes

from .backing import Backing, memory_used
from .config import CacheStrategy, KVCacheConfig
from .counts import Counts, share
from .model import Model, SeededTransformer
from .optimizer import Sample, Served, Target, optimize
from .tensors import KV, Growing, storage_dtype

#: Tokens of an answer where the request does not say.
_MAX_NEW_TOKENS = 16
#: Requests whose latency counts in percentiles, and whose blocks :meth:`optimize` replays.
_REMEMBERED = 4096
#: Blocks of those requests at most.
_REMEMBERED_BLOCKS = 1 << 18
#: Requests that may wait.
_WAITING = 16_384
#: Sessions that are known at a time.
_SESSIONS = 4096
#: Blocks that may wait to be stored, in bytes.
_PENDING_BYTES = 512 << 20
#: Blocks kept to measure codecs on.
_SAMPLES = 4


class Request(TypedDict):
    """What an engine is asked."""

    #: The prompt.
    text: str
    #: Of requests that wait, those with more come first; 0 where nothing is said.
    priority: NotRequired[int]
    #: What conversation it is a turn of.
    session_id: NotRequired[str]
    #: Whose blocks it may use; only with ``multi_tenant``.
    tenant: NotRequired[str]
    #: Tokens of the answer at most.
    max_new_tokens: NotRequired[int]


class Answer(TypedDict):
    """What an engine answers."""

    #: The text that the model went on with.
    result: str
    #: Whether any block of the prompt was found.
    cache_hit: bool
    #: Milliseconds from the call to the answer.
    latency: float
    #: ``prompt_tokens``, ``cached_tokens``, ``computed_tokens``, ``generated_tokens``, ``waited_ms``, ``priority``, ``tenant``,
    #: ``session_id`` and the ``turn`` of it, and with ``enable_profiling`` milliseconds of each stage in ``profile``.
    metadata: dict[str, Any]


@dataclass
class _Session:
    turns: int = 0
    prefix: Prefix | None = None


@dataclass
class _Job:
    """A request that was looked at and waits, or is being served."""

    text: str
    priority: int
    session_id: str | None
    tenant: str | None
    wanted: int | None
    #: Its place among those that are as urgent.
    number: int
    asked_at: float = field(default_factory=time.perf_counter)
    #: Empty before the prompt was looked at.
    tokens: list[int] = field(default_factory=list)
    max_new_tokens: int = 0


class UltraAdaptiveKVCacheEngine:
    """Serves requests with a model, and keeps what it computes for those that begin alike.

    One request is computed at a time, on a thread of the engine's; the event loop goes on meanwhile. A cache that fails costs time
    and never an answer: what cannot be found is computed. A context manager, also for ``async with``; one that is not closed keeps its
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
        self.config = config or KVCacheConfig()
        self.config.validate()
        config = self.config
        self.model: Model = model or SeededTransformer(config)
        self._layout = Layout(
            layers=config.num_layers,
            kv_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens=config.block_size,
            dtype=config.dtype,
        )
        self._backing = Backing(config, _frames(config, self._layout), folder="kvhive-engine")
        self._codec: Codec = config.codec
        self._store = _Store(self._backing, self._layout) if config.non_blocking else None
        self._counts = Counts(
            "requests", "hits", "failures", "prompt_tokens", "cached_tokens", "computed_tokens", "generated_tokens"
        )
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._latency_sum = 0.0
        self._served: deque[Served] = deque()
        self._served_blocks = 0
        self._samples: deque[KV] = deque(maxlen=_SAMPLES)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._waiting: queue.PriorityQueue[tuple[int, int, _Job | None, Future[Answer] | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        # What changes the backing waits for the request that uses it.
        self._turn = self._backing.lock
        # Nothing is put behind the end of what waits.
        self._gate = threading.Lock()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="kvhive-engine", daemon=True)
        self._thread.start()
        self._is_closed = False

    async def process_request(self, request: Request) -> Answer:
        """Answers a request.

        :raises ValueError: when the request cannot be served as it is: what is wrong, its value and what is allowed.
        """
        return await asyncio.wrap_future(self._submit(self._take(request)))

    async def process_batch_optimized(self, requests: Sequence[Request], batch_size: int = 10) -> list[Answer]:
        """Answers requests in the order that computes each shared prefix once; answers are in the order of the requests.

        Requests that begin alike are served one after the other, ``batch_size`` in line at a time.

        :raises ValueError: when one cannot be served as it is; none is served then. What the model raises of one is raised when all
            others have been served.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: 1 and more is allowed")
        jobs = [self._take(request) for request in requests]
        await asyncio.to_thread(self._tokenize_all, jobs)
        # In the order of their tokens, prompts that begin alike are neighbours.
        order = sorted(range(len(jobs)), key=lambda at: (jobs[at].tenant or "", jobs[at].tokens))
        answers: dict[int, Answer | BaseException] = {}
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            futures = [asyncio.wrap_future(self._submit(jobs[at])) for at in batch]
            answers.update(zip(batch, await asyncio.gather(*futures, return_exceptions=True), strict=True))
        served: list[Answer] = []
        for at in range(len(jobs)):
            answer = answers[at]
            if isinstance(answer, BaseException):
                raise answer
            served.append(answer)
        return served

    def end_session(self, session_id: str) -> bool:
        """Says that a conversation is over: what it alone used goes first. Returns whether it was known."""
        with self._turn:
            session = self._sessions.pop(session_id, None)
            if session is not None and session.prefix is not None and len(session.prefix):
                with self._failing():
                    self._backing.client.release(session.prefix, "over")
        return session is not None

    def get_stats(self) -> dict[str, Any]:
        """Returns what the engine has done and holds.

        ``total_requests``, ``cache_hits`` and ``cache_misses`` (requests of which some block was found, and none), ``hit_rate`` of these;
        ``avg_latency`` and percentiles of the last 4096, in milliseconds; ``memory_usage`` in bytes; ``gpu_utilization``, the used share of
        device memory. Besides: ``token_hit_rate`` and the tokens that it is of, ``compression_ratio``, ``strategy``, ``pinned_bytes``,
        ``transport`` (how blocks come), ``cache_failures``, and all figures of the node, ``node``.
        """
        stats, counts = self._backing.stats(), self._counts.read()
        latencies = list(self._latencies)
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if latencies else (0.0, 0.0, 0.0)
        stored = sum(one["stored_bytes"] for one in stats["codecs"])
        raw = sum(one["raw_bytes"] for one in stats["codecs"])
        return {
            "total_requests": counts["requests"],
            "cache_hits": counts["hits"],
            "cache_misses": counts["requests"] - counts["hits"],
            "hit_rate": share(counts["hits"], counts["requests"]),
            "avg_latency": share(self._latency_sum, counts["requests"]),
            "p50_latency": float(p50),
            "p95_latency": float(p95),
            "p99_latency": float(p99),
            "memory_usage": memory_used(stats),
            "gpu_utilization": float(stats["device_utilization"]),
            "prompt_tokens": counts["prompt_tokens"],
            "cached_tokens": counts["cached_tokens"],
            "computed_tokens": counts["computed_tokens"],
            "generated_tokens": counts["generated_tokens"],
            "token_hit_rate": share(counts["cached_tokens"], counts["prompt_tokens"]),
            "compression_ratio": stored / raw if raw else 1.0,
            "strategy": self._backing.strategy,
            "pinned_bytes": stats["pinned_bytes"],
            "transport": "tcp",
            "cache_failures": counts["failures"] + (self._store.failures if self._store is not None else 0),
            "node": stats,
        }

    def persist(self, path: StrPath | None = None) -> bool:
        """Writes all blocks into a folder, as usual the configuration's.

        :raises IOError: when that cannot be done.
        """
        with self._turn:
            self.flush()
            return self._backing.persist(path, {})

    def load(self, path: StrPath | None = None) -> bool:
        """Takes in what was persisted, in place of what is here; of another model or shape, nothing in it is ever found.

        :raises FileNotFoundError: when nothing was persisted there.
        :raises IOError: when it cannot be read.
        """
        with self._turn:
            self.flush()
            self._backing.load(path)
        return True

    def clear_cache(self) -> None:
        """Forgets every block, of all tenants."""
        with self._turn:
            self.flush()
            self._backing.clear()

    def optimize(self, target: Target) -> dict[str, Any]:
        """Looks for settings that serve recent traffic better, and takes them.

        The last 4096 requests are replayed against each setting, with what computing, fetching and storing a block took here. What
        is compared is for ``latency`` the 95th percentile of a request, for ``throughput`` requests a second, for ``memory`` the bytes of
        a block's frame. Returns ``target``, ``changed`` (each setting's old and new value, empty where none does better),
        ``improvement_percentage``, what it rests on (``before``, ``after``, ``unit``, ``replayed_requests``) and all ``candidates``.

        :raises ValueError: when the target is none of these.
        """
        with self._turn:
            self.flush()
            now = {"cache_strategy": self._backing.strategy, "codec": self._codec}
            sample = Sample(list(self._served), list(self._samples), self._layout, self._backing.frames())
            report = optimize(target, now, sample, self.config.codecs_allowed)
            changed = report["changed"]
            if "cache_strategy" in changed:
                self._backing.set_strategy(changed["cache_strategy"]["to"])
            if "codec" in changed:
                self._codec = changed["codec"]["to"]
        return report

    def flush(self) -> None:
        """Waits until what was computed so far is stored."""
        if self._store is not None:
            self._store.wait()

    def close(self) -> None:
        """Serves what waits, stores it, persists where that is wanted, and gives the memory back. Again, it does nothing."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            # After everything else, whatever its priority.
            self._waiting.put((1 << 62, next(self._numbers), None, None))
        self._thread.join()
        if self._store is not None:
            self._store.close()
        self._backing.close({})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def prefix_of(self, text: str, tenant: str | None = None) -> Prefix:
        """Names the full blocks of a prompt."""
        return self._namespace(tenant).keys(self._whole(self.model.tokenize(text)))

    @property
    def backing(self) -> Backing:
        """The node and the client that its blocks lie behind."""
        return self._backing

    def _take(self, request: Request) -> _Job:
        """Checks what of a request can be checked before its prompt was looked at."""
        text, priority = request.get("text"), request.get("priority", 0)
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r}: text is allowed")
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) >= 1 << 32:
            raise ValueError(f"priority is {priority!r}: a whole number is allowed")
        for name in ("session_id", "tenant"):
            if not isinstance(request.get(name), (str, type(None))) or request.get(name) == "":
                raise ValueError(f"{name} is {request.get(name)!r}: text is allowed")
        tenant = request.get("tenant")
        if tenant is not None and not self.config.multi_tenant:
            raise ValueError(f"tenant is {tenant!r}: an engine with multi_tenant=True knows tenants, this one has none")
        wanted = request.get("max_new_tokens")
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
            raise ValueError(f"max_new_tokens is {wanted!r}: a whole number above 0 is allowed")
        return _Job(text, priority, request.get("session_id"), tenant, wanted, next(self._numbers))

    def _tokenize(self, job: _Job) -> None:
        """Looks at a prompt, once."""
        if job.tokens:
            return
        tokens = self.model.tokenize(job.text)
        most = self.config.max_tokens - len(tokens)
        if most < 1:
            allowed = f"at most {self.config.max_tokens - 1} of max_tokens={self.config.max_tokens} are allowed"
            raise ValueError(f"text has {len(tokens)} tokens: {allowed}")
        if job.wanted is not None and job.wanted > most:
            allowed = f"1 to {most} are allowed, with {len(tokens)} tokens of text and max_tokens={self.config.max_tokens}"
            raise ValueError(f"max_new_tokens is {job.wanted!r}: {allowed}")
        job.tokens, job.max_new_tokens = tokens, job.wanted or min(_MAX_NEW_TOKENS, most)

    def _tokenize_all(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._tokenize(job)

    def _submit(self, job: _Job) -> Future[Answer]:
        if os.getpid() != self._process:
            raise RuntimeError("this engine is of the process that forked this one: make one here")
        future: Future[Answer] = Future()
        with self._gate:
            if self._is_closed:
                raise RuntimeError("the engine has been closed")
            if self._waiting.qsize() >= _WAITING:
                raise RuntimeError(f"{_WAITING} requests wait already")
            self._waiting.put((-job.priority, job.number, job, future))
        return future

    def _run(self) -> None:
        """Serves what waits, until the end."""
        while True:
            _, _, job, future = self._waiting.get()
            if job is None or future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self._tokenize(job)
                with self._turn:
                    answer = self._serve(job)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)

    def _serve(self, job: _Job) -> Answer:
        config, tokens = self.config, job.tokens
        begun = time.perf_counter()
        profile = _Profile()
        prefix = self._prefix(job)
        kv = Growing(config, len(tokens) + job.max_new_tokens)
        # The last token is computed in any case: the answer begins with what the model makes of it.
        most = (len(tokens) - 1) // config.block_size
        found = self._find(prefix, most, kv, profile) if prefix is not None else 0
        new: list[_New] = []
        logits = None
        with profile.stage("compute"):
            for begin in range(found * config.block_size, len(tokens), config.block_size):
                piece = tokens[begin : begin + config.block_size]
                more, logits = self.model.prefill(piece, kv.filled)
                if len(piece) == config.block_size:
                    new.append(self._new(more))
                    more = new[-1].comes_back
                kv.append(more)
        computed_seconds = profile.seconds["compute"]
        answer: list[int] = []
        with profile.stage("generate"):
            while logits is not None:
                token = int(np.argmax(logits))
                if self.model.is_end(token):
                    break
                answer.append(token)
                if len(answer) == job.max_new_tokens:
                    break
                more, logits = self.model.decode(token, kv.filled)
                kv.append(more)
        with profile.stage("store"):
            if prefix is not None:
                self._keep(prefix, new, found, len(tokens), len(answer))
        turn = self._end_turn(job.session_id, prefix)
        ended = time.perf_counter()
        latency = (ended - job.asked_at) * 1e3
        cached = found * config.block_size
        self._latencies.append(latency)
        self._latency_sum += latency
        self._counts.add(
            requests=1,
            hits=int(found > 0),
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            computed_tokens=len(tokens) - cached,
            generated_tokens=len(answer),
        )
        self._remember(
            Served(
                keys=prefix.keys if prefix is not None else [],
                found=found,
                compute_seconds=computed_seconds / max(1, len(tokens) - cached) * config.block_size,
                fetch_seconds=profile.seconds["fetch"] / found if found else None,
                rest_seconds=(ended - begun) - computed_seconds - profile.seconds["fetch"],
            )
        )
        metadata: dict[str, Any] = {
            "prompt_tokens": len(tokens),
            "cached_tokens": cached,
            "computed_tokens": len(tokens) - cached,
            "generated_tokens": len(answer),
            "waited_ms": (begun - job.asked_at) * 1e3,
            "priority": job.priority,
            "tenant": job.tenant,
            "session_id": job.session_id,
            "turn": turn,
        }
        if config.enable_profiling:
            metadata["profile"] = profile.milliseconds()
        return {"result": self.model.detokenize(answer), "cache_hit": found > 0, "latency": latency, "metadata": metadata}

    def _prefix(self, job: _Job) -> Prefix | None:
        """Names a prompt's blocks; None where the cache does not know the tenant and cannot be told."""
        with self._failing():
            return self._namespace(job.tenant).keys(self._whole(job.tokens))
        return None

    def _remember(self, served: Served) -> None:
        """Keeps what was served for replays, of so many blocks at most."""
        self._served.append(served)
        self._served_blocks += len(served.keys)
        while len(self._served) > _REMEMBERED or self._served_blocks > _REMEMBERED_BLOCKS:
            self._served_blocks -= len(self._served.popleft().keys)

    def _whole(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the tokens that fill blocks."""
        return tokens[: len(tokens) // self.config.block_size * self.config.block_size]

    def _namespace(self, tenant: str | None) -> Namespace:
        # Blocks that were rounded are never taken for others.
        rounding = "" if self._codec in ("raw", "lossless") else f"+{self._codec}"
        return self._backing.namespace(self.model.fingerprint + rounding, self._layout, tenant)

    def _find(self, prefix: Prefix, most: int, kv: Growing, profile: _Profile) -> int:
        """Takes the longest prefix that is there, of at most so many blocks; returns how many they are."""
        blocks = min(most, len(prefix))
        if not blocks:
            return 0
        # Looked at before the cache is asked: what leaves it meanwhile is there by then.
        waiting = self._store.waiting(prefix.keys[:blocks]) if self._store is not None else {}
        found = 0
        wanted = prefix.first(blocks)
        with self._failing():
            with profile.stage("match"):
                covered = self._backing.client.match(wanted).covered
            if covered:
                with profile.stage("fetch"):
                    room = self._room(covered)
                    found = self._backing.client.fetch_into(wanted, room).delivered
                    for block in room[:found]:
                        kv.append(block)
        for key in prefix.keys[found:blocks]:
            block = waiting.get(key)
            if block is None:
                break
            kv.append(block)
            found += 1
        return found

    def _room(self, blocks: int) -> KV:
        config = self.config
        shape = (blocks, config.num_layers, 2, config.block_size, config.num_heads, config.head_dim)
        return np.empty(shape, storage_dtype(config.dtype))

    def _new(self, computed: KV) -> _New:
        """Makes a block of what was computed. The request goes on with it as it will come back, so that an answer does not depend on
        who computed its prompt."""
        # A copy: the model may use its memory again before the block is stored.
        block = np.array(computed, order="C", copy=True)
        self._samples.append(block)
        if self._codec in ("raw", "lossless"):
            return _New(block, block)
        back = np.empty_like(block)
        decode(self._codec, self._layout, encode(self._codec, self._layout, block), back)
        return _New(block, back)

    def _keep(self, prefix: Prefix, blocks: list[_New], start: int, prompt_tokens: int, answer_tokens: int) -> None:
        if not blocks:
            return
        batch = _Batch(prefix, blocks, start, self._codec, prompt_tokens, answer_tokens)
        if self._store is not None:
            self._store.add(batch)
            return
        with self._failing():
            batch.store(self._backing)

    def _end_turn(self, session_id: str | None, prefix: Prefix | None) -> int | None:
        if session_id is None:
            return None
        session = self._sessions.setdefault(session_id, _Session())
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        session.turns += 1
        session.prefix = prefix
        return session.turns

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Goes on without the cache where it fails."""
        try:
            yield
        except KvHiveError:
            self._counts.add(failures=1)


def _frames(config: KVCacheConfig, layout: Layout) -> dict[int, int]:
    """Returns the bytes of frames for an engine's blocks, growing, each with its share of the memory."""
    whole = config.block_bytes
    if config.stored_bits is not None:
        # All blocks are of one size then.
        return {stored_bytes(config.codec, layout) or whole: 1}
    may_shrink = config.codec != "raw" or config.strategy in (CacheStrategy.COMPRESSED, CacheStrategy.QUANTIZED)
    # Most blocks of 16 bits an element compress to less than three quarters.
    return {whole * 3 // 4: 3, whole: 1} if may_shrink else {whole: 1}


class _Profile:
    """How long each stage of a request took."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("match", "fetch", "compute", "generate", "store"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    def milliseconds(self) -> dict[str, float]:
        """Returns all of them."""
        return {name: seconds * 1e3 for name, seconds in self.seconds.items()}


@dataclass(frozen=True)
class _New:
    """A block that was computed, and as it comes back from the cache."""

    computed: KV
    comes_back: KV


@dataclass(frozen=True)
class _Batch:
    """New blocks of one request."""

    prefix: Prefix
    blocks: list[_New]
    start: int
    codec: Codec
    prompt_tokens: int
    answer_tokens: int

    def store(self, backing: Backing) -> None:
        """Stores them."""
        backing.client.store_from(
            self.prefix,
            [block.computed for block in self.blocks],
            self.start,
            codec=self.codec,
            input_tokens=self.prompt_tokens,
            output_tokens=self.answer_tokens,
        )


class _Store:
    """Blocks that a thread of its own stores, in order; found here until they are."""

    def __init__(self, backing: Backing, layout: Layout) -> None:
        self._backing = backing
        self._block_bytes = layout.block_bytes
        self._worker = ThreadPoolExecutor(1, "kvhive-store")
        self._changed = threading.Condition()
        self._bytes = 0
        self._waiting: dict[bytes, KV] = {}
        self._last: Future[None] | None = None
        self.failures = 0

    def add(self, batch: _Batch) -> None:
        """Takes new blocks; waits while too many wait already."""
        keys = batch.prefix.keys[batch.start : batch.start + len(batch.blocks)]
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < _PENDING_BYTES)
            self._bytes += len(keys) * self._block_bytes
            self._waiting.update(zip(keys, (block.comes_back for block in batch.blocks), strict=True))
            self._last = self._worker.submit(self._run, batch, keys)

    def _run(self, batch: _Batch, keys: list[bytes]) -> None:
        failed = 0
        try:
            batch.store(self._backing)
        except KvHiveError:
            failed = 1
        with self._changed:
            self.failures += failed
            self._bytes -= len(keys) * self._block_bytes
            for key in keys:
                self._waiting.pop(key, None)
            self._changed.notify_all()

    def waiting(self, keys: Sequence[bytes]) -> dict[bytes, KV]:
        """Returns those of some blocks that wait to be stored, as they come back."""
        with self._changed:
            return {key: self._waiting[key] for key in keys if key in self._waiting}

    def wait(self) -> None:
        """Waits for what has been added so far."""
        with self._changed:
            last = self._last
        if last is not None:
            last.result()

    def close(self) -> None:
        """Stores what waits, and ends."""
        self._worker.shutdown()
