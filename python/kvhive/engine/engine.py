"""Requests with a cache: the longest prefix that anyone has computed is found, a model computes the rest, and what is new is stored."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kvhive import KvHiveError, Layout, Namespace, Prefix
from kvhive.access import StrPath
from kvhive.codec import Codec, decode, encode

from .backing import Backing, frames_of, memory_used
from .behind import Behind
from .config import KVCacheConfig
from .counts import Counts, share
from .model import Model, SeededTransformer
from .optimizer import Sample, Served, Target, optimize
from .profile import Profile
from .requests import Answer, Job, Request, taken, tokenize
from .sessions import Sessions
from .tensors import KV, Growing, storage_dtype

#: Requests whose latency counts in percentiles, and whose blocks :meth:`optimize` replays.
_REMEMBERED = 4096
#: Blocks of those requests at most.
_REMEMBERED_BLOCKS = 1 << 18
#: Requests that may wait.
_WAITING = 16_384
#: Blocks that may wait to be stored, in bytes.
_PENDING_BYTES = 512 << 20
#: Blocks kept to measure codecs on.
_SAMPLES = 4


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
        self._backing = Backing(config, frames_of(config, self._layout), folder="kvhive-engine")
        self._codec: Codec = config.codec
        self._behind: Behind[KV] | None = Behind(_PENDING_BYTES) if config.non_blocking else None
        self._counts = Counts(
            "requests", "hits", "failures", "prompt_tokens", "cached_tokens", "generated_tokens"
        )
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._latency_sum = 0.0
        self._served: deque[Served] = deque()
        self._served_blocks = 0
        self._samples: deque[KV] = deque(maxlen=_SAMPLES)
        self._sessions = Sessions()
        self._waiting: queue.PriorityQueue[tuple[int, int, Job | None, Future[Answer] | None]] = queue.PriorityQueue()
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
            is_known, prefix = self._sessions.end(session_id)
            if prefix is not None and len(prefix):
                with self._failing():
                    self._backing.client.release(prefix, "over")
        return is_known

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
            "computed_tokens": counts["prompt_tokens"] - counts["cached_tokens"],
            "generated_tokens": counts["generated_tokens"],
            "token_hit_rate": share(counts["cached_tokens"], counts["prompt_tokens"]),
            "compression_ratio": stored / raw if raw else 1.0,
            "strategy": self._backing.strategy,
            "pinned_bytes": stats["pinned_bytes"],
            "transport": "tcp",
            "cache_failures": counts["failures"],
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
        if self._behind is not None:
            self._behind.wait()

    def close(self) -> None:
        """Serves what waits, stores it, persists where that is wanted, and gives the memory back. Again, it does nothing."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            # After everything else, whatever its priority.
            self._waiting.put((1 << 62, next(self._numbers), None, None))
        self._thread.join()
        if self._behind is not None:
            self._behind.close()
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

    def _take(self, request: Request) -> Job:
        return taken(request, self.config, next(self._numbers))

    def _tokenize_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            tokenize(job, self.model, self.config)

    def _submit(self, job: Job) -> Future[Answer]:
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
                tokenize(job, self.model, self.config)
                with self._turn:
                    answer = self._serve(job)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)

    def _serve(self, job: Job) -> Answer:
        config, tokens = self.config, job.tokens
        begun = time.perf_counter()
        profile = Profile()
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
        turn = self._sessions.turn(job.session_id, prefix) if job.session_id is not None else None
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

    def _prefix(self, job: Job) -> Prefix | None:
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

    def _find(self, prefix: Prefix, most: int, kv: Growing, profile: Profile) -> int:
        """Takes the longest prefix that is there, of at most so many blocks; returns how many they are."""
        blocks = min(most, len(prefix))
        if not blocks:
            return 0
        # Looked at before the cache is asked: what leaves it meanwhile is there by then.
        waiting = self._behind.find(prefix.keys[:blocks]) if self._behind is not None else {}
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
        """Stores new blocks: now, or after what waits to be stored."""
        if not blocks:
            return
        codec, client = self._codec, self._backing.client

        def store() -> None:
            with self._failing():
                client.store_from(
                    prefix,
                    [block.computed for block in blocks],
                    start,
                    codec=codec,
                    input_tokens=prompt_tokens,
                    output_tokens=answer_tokens,
                )

        if self._behind is None:
            store()
            return
        keys = prefix.keys[start : start + len(blocks)]
        waiting = dict(zip(keys, (block.comes_back for block in blocks), strict=True))
        self._behind.add(waiting, len(blocks) * self._layout.block_bytes, store)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Goes on without the cache where it fails."""
        try:
            yield
        except KvHiveError:
            self._counts.add(failures=1)


@dataclass(frozen=True)
class _New:
    """A block that was computed, and as it comes back from the cache."""

    computed: KV
    comes_back: KV
