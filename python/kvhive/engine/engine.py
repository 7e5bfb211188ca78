"""The engine: requests in, answers out, and what is done with the cache as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from kvhive import Client, Prefix
from kvhive.access import StrPath

from .backing import Backing
from .config import KVCacheConfig
from .figures import Figures
from .model import Model, SeededTransformer
from .optimizer import Sample, Target, optimize
from .requests import Answer, Job, Request, taken, tokenize
from .serving import EXACT, Serving
from .turns import Turns


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
        self._figures = Figures()
        self._serving = Serving(config, self.model, self._figures)
        self._backing = self._serving.backing
        # What changes the backing waits for the request that uses it.
        self._turn = self._backing.lock
        self._turns = Turns(self._serve)

    async def process_request(self, request: Request) -> Answer:
        """Answers a request.

        :raises ValueError: when the request cannot be served as it is: what is wrong, its value and what is allowed.
        """
        return await asyncio.wrap_future(self._turns.submit(self._take(request)))

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
            futures = [asyncio.wrap_future(self._turns.submit(jobs[at])) for at in batch]
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
            return self._serving.end_session(session_id)

    def get_stats(self) -> dict[str, Any]:
        """Returns what the engine has done and holds.

        ``total_requests``, ``cache_hits`` and ``cache_misses`` (requests of which some block was found, and none), ``hit_rate`` of these;
        ``avg_latency`` and percentiles of the last 4096, in milliseconds; ``memory_usage`` in bytes; ``gpu_utilization``, the filled
        share of the upper tier, which is memory of this process, whether the host has a GPU or not. Besides: ``token_hit_rate`` and the tokens that it is of, ``compression_ratio``, ``strategy``, ``pinned_bytes``,
        ``transport`` (how blocks come), ``cache_failures``, and all figures of the node, ``node``.
        """
        return self._figures.read(self._backing.stats(), self._backing.strategy)

    def persist(self, path: StrPath | None = None) -> bool:
        """Writes all blocks into a folder, as usual the configuration's.

        :raises IOError: when that cannot be done.
        """
        # Nodes that were added may take long to leave: requests are served meanwhile.
        self._backing.gather()
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

    def clear_cache(self, *, whole_cluster: bool = False) -> None:
        """Forgets every block, of all tenants.

        :param whole_cluster: in a cluster the tenants are not this engine's alone: says that nobody is to find their blocks any more.
        :raises kvhive.MisuseError: in a cluster, where that is not said.
        """
        with self._turn:
            self._backing.check_alone("this would forget what is stored for", whole_cluster)
            self.flush()
            self._backing.clear(whole_cluster=whole_cluster)

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
        :raises ValueError: when the target is none of these.
        """
        is_advice = self.config.enable_distributed and not whole_cluster
        serving = self._serving
        with self._turn:
            self.flush()
            now = {"cache_strategy": self._backing.strategy, "codec": serving.codec}
            sample = Sample(
                served=serving.history.served(),
                blocks=serving.history.samples(),
                layout=serving.layout,
                frames=self._backing.frames(),
                is_behind=self.config.non_blocking,
                fetch_seconds=serving.measure_fetch(),
            )
            report = optimize(target, now, sample, self.config.codecs_allowed)
            advised = report["advised"]
            report["unreachable_blocks"] = self._unreachable(advised)
            report["changed"] = {} if is_advice else dict(advised)
            if "cache_strategy" in report["changed"]:
                self._backing.set_strategy(advised["cache_strategy"]["to"])
            if "codec" in report["changed"]:
                serving.codec = advised["codec"]["to"]
        return report

    def _unreachable(self, advised: dict[str, dict[str, str]]) -> int:
        """Counts blocks that go by other keys than those which are asked for under other settings."""
        codec = advised.get("codec")
        if codec is None or (codec["from"] in EXACT and codec["to"] in EXACT):
            return 0
        left = EXACT if codec["from"] in EXACT else (codec["from"],)
        return sum(int(one["blocks"]) for one in self._backing.stats()["codecs"] if one["codec"] in left)

    def flush(self) -> None:
        """Waits until what was computed so far is stored."""
        self._serving.flush()

    def close(self) -> None:
        """Serves what waits, stores it, persists where that is wanted, and gives the memory back. Again, it does nothing."""
        if self._turns.end():
            self._serving.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @contextmanager
    def asking(self, text: str, tenant: str | None = None) -> Iterator[tuple[Client, Prefix]]:
        """Lends the client, and the names of a prompt's full blocks: both are good until this is left."""
        with self._backing.used() as client:
            yield client, self._serving.prefix_of(text, tenant)

    @property
    def backing(self) -> Backing:
        """The node and the client that its blocks lie behind."""
        return self._backing

    def _take(self, request: Request) -> Job:
        return taken(request, self.config, self._turns.number())

    def _tokenize_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            tokenize(job, self.model, self.config)

    def _serve(self, job: Job) -> Answer:
        tokenize(job, self.model, self.config)
        with self._turn:
            return self._serving.serve(job)
