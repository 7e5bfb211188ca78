"""A secondary tier for vLLM's `TieringOffloadingSpec`: what its pool in the host's memory drops goes on in the cluster, and what any
engine has put there comes back into the pool. Bytes go straight between the pool and the network; the scheduler waits for nothing.

For the versions of vLLM in `kvhive.vllm.versions`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from kvhive._native import EngineTier, engine_fingerprint
from kvhive.errors import MisuseError
from kvhive.vllm.hints import pass_on
from kvhive.vllm.settings import Settings
from kvhive.vllm.versions import line, refusal

__all__ = ["KvHiveTier"]

# Below vLLM's own, so that its configuration shows it.
logger = init_logger("vllm.kvhive.tier")

FOUND = {None: LookupResult.RETRY, True: LookupResult.HIT, False: LookupResult.MISS}
NOT_HERE = ("asks", "least_tokens", "memory_mb", "gpu_memory_mb", "known_s")


class KvHiveTier(SecondaryTierManager):  # type: ignore[misc]
    """Named by `{"type": "KvHiveTier", "module_path": "kvhive.vllm.tier", …}`."""

    medium = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **given: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if refused := refusal(vllm.__version__):
            raise MisuseError(refused)
        if wrong := sorted(given.keys() & set(NOT_HERE)):
            raise MisuseError(f"{', '.join(wrong)}: of the connector, and nothing of a tier")
        settings = Settings.of(given)
        self._pool = primary_kv_view.cast("B")
        self._loads: dict[int, list[Any]] = {}
        self._failed: list[int] = []
        self._tier = EngineTier(
            **settings.cluster,
            model=engine_fingerprint("vllm tier", facts(offloading_spec.config, settings, self._block_size_bytes)),
            block_bytes=self._block_size_bytes,
            wait=settings.wait_ms / 1000,
        )
        logger.info("kvhive: chunks of this tier are %s, %d bytes each", self._tier.model, self._block_size_bytes)

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        return FOUND[self._tier.lookup(bytes(key))]

    def submit_store(self, job_metadata: Any) -> None:
        self._submit(self._tier.store, job_metadata)

    def submit_load(self, job_metadata: Any) -> None:
        if self._submit(self._tier.load, job_metadata):
            self._loads[job_metadata.job_id] = list(job_metadata.keys)

    def _submit(self, begin: Callable[[int, list[bytes], list[memoryview]], None], job: Any) -> bool:
        """Begins a job. One that cannot be begun has failed, as vLLM is told in its time: the scheduler gets no exception."""
        try:
            begin(job.job_id, names(job), self._rows(job))
        except Exception:
            logger.exception("kvhive: a job of the tier was not begun; its chunks are computed, or lost to other engines")
            self._failed.append(job.job_id)
            return False
        return True

    def get_finished_jobs(self) -> Iterable[JobResult]:
        for trouble in self._tier.troubles():
            logger.warning_once("kvhive: %s", trouble)
        results = [JobResult(job, False, None, 0.0, 0) for job in self._failed]
        self._failed.clear()
        for job, success, done, seconds, nbytes in self._tier.finished():
            keys = self._loads.pop(job, None)
            kept = tuple(keys[at] for at in done) if keys and not success and done else None
            results.append(JobResult(job, success, kept, seconds, nbytes))
        return results

    def has_pending_work(self) -> bool:
        return bool(self._failed) or self._tier.is_busy()

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        if req_context.kv_hints is None:
            return
        try:
            # Every chunk of it, of all groups and also those that others have stored, with where it ends.
            chunks = [(bytes(key), end) for key, end in req_context._offload_key_positions.items()]
            pass_on(req_context.kv_hints, logger, lambda kind, version, payload: self._tier.wish(kind, version, payload, chunks))
        except Exception:
            logger.exception("kvhive: what kv_hints wish for a request's chunks is not done")

    def on_schedule_end(self, context: Any) -> None:
        self._tier.ask()

    def drain_jobs(self) -> None:
        self._tier.drain()

    def shutdown(self) -> None:
        # The pool is unmapped next: nothing may read or write it any more.
        self._tier.drain()

    def _rows(self, job: Any) -> list[memoryview]:
        size = self._block_size_bytes
        return [self._pool[int(chunk) * size : (int(chunk) + 1) * size] for chunk in job.chunk_ids]


def names(job: Any) -> list[bytes]:
    return [bytes(key) for key in job.keys]


def facts(config: Any, settings: Settings, block_bytes: int) -> list[tuple[str, str]]:
    """Lists everything that changes a chunk's bytes beside its tokens, as far as an offloading backend is told of it."""
    parallel = config.parallel
    sizes = (parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size, parallel.world_size)
    listed = {
        "line": line(vllm.__version__),
        "weights": settings.weights or config.model.name,
        "dtype": config.model.dtype,
        "groups": [(group.tokens_per_block, group.layer_names, group.group_id) for group in config.groups],
        "hash tokens": config.cache.tokens_per_hash,
        "hash seed": os.environ.get("PYTHONHASHSEED", "vLLM's own"),
        "chunk": (config.cache.blocks_per_chunk, block_bytes, config.worker_kv_bytes_per_block),
        "layout": (config.kv_cache_layout, config.canonical_layout, config.replicated_layout),
        "parallel": "agnostic" if parallel.is_parallelism_agnostic else sizes,
    }
    return [(name, str(value)) for name, value in listed.items()]
