"""vLLM's KV connector, for the versions of vLLM in `kvhive.vllm.versions`. What it decides is decided by the package's native half.

A request's blocks are fetched into memory of the workers first, and then promised: vLLM is never told of blocks that might not come. So
nothing has to be taken back, a silent cluster costs a bounded wait, and no block of the engine is held while something is on its way.
"""

from __future__ import annotations

import functools
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import vllm
from vllm import envs
from vllm.distributed.kv_events import ZmqEventPublisher
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import resolve_dcp_kv_block_size, resolve_kv_cache_block_sizes
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from kvhive._native import EngineCourier, EnginePlanner, engine_fingerprint
from kvhive.errors import MisuseError
from kvhive.vllm.events import CUT, follow
from kvhive.vllm.hints import pass_on
from kvhive.vllm.pages import Pages, Placement
from kvhive.vllm.settings import Settings
from kvhive.vllm.versions import line, refusal

if TYPE_CHECKING:
    import torch

__all__ = ["KvHiveConnector"]

# Below vLLM's own, so that its configuration shows it.
logger = init_logger("vllm.kvhive.connector")

# An engine that ends waits so long for what it still saves: vLLM ends by force who takes longer.
FLUSH_SECONDS = 2.0

_T = TypeVar("_T")


@dataclass
class Orders(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side tells each worker's, once a step."""

    orders: bytes = b""


@dataclass
class Reports(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What the workers' sides answer; one part a worker that has something to say."""

    parts: list[bytes]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        return Reports(self.parts + other.parts)


class Unsupported(Exception):
    """Why a model's blocks are not shared."""


NOTHING: tuple[int | None, bool] = (0, False)
AT_ONCE: tuple[bool, dict[str, Any] | None] = (False, None)


def spared(otherwise: _T) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Has the engine's scheduler go on without kvhive where this fails. What was promised before is loaded all the same."""

    def spare(call: Callable[..., _T]) -> Callable[..., _T]:
        @functools.wraps(call)
        def guarded(self: KvHiveConnector, *given: Any, **named: Any) -> _T:
            if self._is_off:
                return otherwise
            try:
                return call(self, *given, **named)
            except Exception:
                logger.exception("kvhive: %s failed; this engine goes on without kvhive", call.__name__)
                self._is_off = True
                self._requests.clear()
                return otherwise

        return guarded

    return spare


class KvHiveConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Shares a fleet's prefixes. Loaded by `kv_connector_module_path="kvhive.vllm.connector"`."""

    @property
    def requires_kv_delivery(self) -> bool:
        # A save that is dropped is a miss later on.
        return False

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if refused := refusal(vllm.__version__):
            raise MisuseError(refused)
        transfer = vllm_config.kv_transfer_config
        self._settings = Settings.of(transfer.kv_connector_extra_config)
        self._loads, self._saves = transfer.kv_role != "kv_producer", transfer.kv_role != "kv_consumer"
        self._planner: EnginePlanner | None = None
        self._courier: EngineCourier | None = None
        self._pages: Pages | None = None
        self._requests: dict[str, Any] = {}
        self._loading: deque[tuple[Any, Any, int]] = deque()
        self._copied: SimpleQueue[tuple[Any, int, torch.Tensor]] = SimpleQueue()
        self._is_off = False
        try:
            self._groups, self._hash_tokens = groups_of(vllm_config, kv_cache_config)
        except Unsupported as why:
            self._is_off = True
            logger.warning("kvhive: nothing of this model is shared: %s", why)
            return
        algorithm = vllm_config.cache_config.prefix_caching_hash_algo
        if "xxhash" in str(algorithm) and "PYTHONHASHSEED" not in os.environ:
            logger.warning(
                "kvhive: no two engines name a block alike with %s unless PYTHONHASHSEED is the same for all of them",
                algorithm,
            )
        if role == KVConnectorRole.SCHEDULER:
            if self._publishes() and envs.VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES:
                logger.warning(CUT)
            self._planner = EnginePlanner(
                groups=self._groups,
                hash_tokens=self._hash_tokens,
                ranks=vllm_config.parallel_config.world_size,
                wait=self._settings.wait_ms / 1000,
                asks=self._settings.asks,
                least_tokens=self._settings.least_tokens,
                loads=self._loads,
                saves=self._saves,
                known=self._settings.known_s,
            )

    def _publishes(self) -> bool:
        events = self._vllm_config.kv_events_config
        return events is not None and bool(events.enable_kv_cache_events)

    # The scheduler's side

    @spared(NOTHING)
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._planner is not None
        if request.skip_reading_prefix_cache:
            return 0, False
        # Never asynchronous in vLLM's sense: what is promised is in the workers' memory.
        return (
            self._planner.matched(
                request.request_id, num_computed_tokens, request.num_tokens, request.block_hashes
            ),
            False,
        )

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        # Raises where vLLM counts on what it was not promised: those blocks would be used without ever being written.
        if self._planner is not None and (num_external_tokens > 0 or not self._is_off):
            self._planner.allocated(request.request_id, list(blocks.get_block_ids()), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        self._plan(scheduler_output)
        return Orders(b"" if self._planner is None else self._planner.orders())

    @spared(None)
    def _plan(self, output: Any) -> None:
        assert self._planner is not None and self._kv_cache_manager is not None
        for request_id in output.preempted_req_ids or ():
            self._planner.preempted(request_id)
        for new in output.scheduled_new_reqs:
            self._part(output, new.req_id, list(new.block_ids), True, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for request_id, blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            is_whole = request_id in cached.resumed_req_ids
            self._part(output, request_id, None if blocks is None else list(blocks), is_whole, computed)

    def _part(
        self, output: Any, request_id: str, blocks: list[list[int]] | None, is_whole: bool, computed: int
    ) -> None:
        assert self._planner is not None
        request = self._requests.get(request_id)
        if request is not None:
            computed += output.num_scheduled_tokens[request_id]
            self._planner.scheduled(request_id, blocks, is_whole, computed, request.block_hashes)

    @spared(None)
    def on_new_request(self, request: Any) -> None:
        self._requests[request.request_id] = request

    @spared(None)
    def update_connector_output(self, connector_output: Any) -> None:
        assert self._planner is not None
        reports = connector_output.kv_connector_worker_meta
        if isinstance(reports, Reports):
            for part in reports.parts:
                self._planner.heard(part)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    @spared(AT_ONCE)
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        assert self._planner is not None
        self._requests.pop(request.request_id, None)
        self._wish(request)
        self._planner.finished(request.request_id)
        # What is saved was copied within the step: nothing of the engine's is used any more.
        return False, None

    def _wish(self, request: Any) -> None:
        assert self._planner is not None
        wished = functools.partial(self._planner.wished, request.request_id)
        names = request.block_hashes
        pass_on(request.kv_hints, logger, lambda kind, version, payload: wished(kind, version, payload, names))

    def reset_cache(self) -> bool | None:
        # Other engines' blocks are not this one's to forget: `kvhive clear` ends a tenant's era.
        return False

    # The workers' side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        parallel, config = self._vllm_config.parallel_config, self._kv_cache_config
        if self._is_off:
            return
        on_gpu = self._settings.gpu_memory_mb
        self._pages = pages = Pages(kv_caches, config.num_blocks, placements(config), stays=on_gpu > 0)
        if on_gpu and pages.device.type != "cuda":
            logger.warning("kvhive: gpu_memory_mb is of no use, this engine's blocks are in memory of %s", pages.device.type)
            on_gpu = 0
        replicas = config.kv_tp_replicas
        self._courier = EngineCourier(
            **self._settings.cluster,
            model=engine_fingerprint("vllm", facts(self._vllm_config, config, self._settings, pages)),
            rank=parallel.rank // replicas,
            groups=self._groups,
            hash_tokens=self._hash_tokens,
            block_bytes=pages.block_bytes,
            wait=self._settings.wait_ms / 1000,
            asks=self._settings.asks,
            memory=(on_gpu or self._settings.memory_mb) << 20,
            allocate=pages.memory,
        )
        if pages.device.type == "cuda":
            Thread(target=self._store_copied, name="kvhive-copied", daemon=True).start()
        logger.info("kvhive: blocks of this worker are %s, rank %d", self._courier.model, parallel.rank // replicas)
        if self._publishes() and parallel.rank == 0:
            self._tell_how_to_follow(parallel, pages, self._courier.model)

    def _tell_how_to_follow(self, parallel: Any, pages: Pages, model: str) -> None:
        config = self._vllm_config.kv_events_config
        # As vLLM's publishers do it: each data-parallel rank has ports of its own.
        events, replay = (
            ZmqEventPublisher.offset_endpoint_port(endpoint, parallel.data_parallel_index)
            for endpoint in (config.endpoint, config.replay_endpoint)
        )
        tenant = self._settings.tenant
        told = follow(model, self._groups, pages.block_bytes, rank=0, tenant=tenant, events=events, replay=replay)
        if told is not None:
            logger.info("kvhive: coordinators follow this engine by: %s", told)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        # Before the step runs, so that questions are on their way meanwhile.
        if self._courier is not None and isinstance(connector_metadata, Orders):
            self._courier.told(connector_metadata.orders)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        # Not spared: a step must not run on blocks that were promised and not written.
        if self._courier is None or self._pages is None:
            return
        for number, parts in self._courier.loads():
            for group, (memory, row, blocks) in enumerate(parts):
                self._pages.load(group, memory, row, blocks)
            self._loading.append((self._pages.begun(), parts, number))

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        if self._courier is None or self._pages is None:
            return
        for number, group, blocks in self._courier.saves():
            try:
                memory = self._pages.save(group, blocks)
                event = self._pages.begun()
                if event is None:
                    self._courier.store(number, memory)
                else:
                    self._copied.put((event, number, memory))
            except Exception:
                logger.exception("kvhive: %d blocks are not saved", len(blocks))
                self._courier.unsaved(number)

    def _store_copied(self) -> None:
        # Beside the steps: the last one of a busy stretch has none after it.
        assert self._courier is not None
        while True:
            event, number, memory = self._copied.get()
            try:
                event.synchronize()
                self._courier.store(number, memory)
            except Exception:
                logger.exception("kvhive: blocks of save %d are lost", number)
                self._courier.unsaved(number)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if self._courier is None or self._pages is None:
            return None
        while self._loading and (self._loading[0][0] is None or self._loading[0][0].query()):
            self._courier.loaded(self._loading.popleft()[2])
        for trouble in self._courier.troubles():
            logger.warning_once("kvhive: %s", trouble)
        reports = self._courier.reports()
        return None if reports is None else Reports([reports])

    def shutdown(self) -> None:
        if self._courier is not None:
            self._courier.flush(FLUSH_SECONDS)
            # What is still under way, and what went wrong since the last step.
            for trouble in self._courier.troubles():
                logger.warning("kvhive: as this engine ends: %s", trouble)
            logger.info("kvhive: %s", dict(self._courier.figures()))


def groups_of(vllm_config: Any, config: Any) -> tuple[list[tuple[int, int | None]], int]:
    """Returns tokens of a block and the window of each group, and how many tokens one hash names."""
    groups = []
    dcp = vllm_config.parallel_config.decode_context_parallel_size
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        inner = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        kinds = {type(one) for one in inner}
        windows = {one.sliding_window for one in inner} if kinds == {SlidingWindowSpec} else {None}
        is_plain = kinds <= {FullAttentionSpec, MLAAttentionSpec} or (kinds == {SlidingWindowSpec} and len(windows) == 1)
        if not is_plain or not group.enable_kv_transfer or any(getattr(one, "non_causal", False) for one in inner):
            raise Unsupported(f"layers of {', '.join(sorted(kind.__name__ for kind in kinds))}")
        groups.append((resolve_dcp_kv_block_size(spec, dcp), windows.pop()))
    if not groups:
        raise Unsupported("it has no cache")
    return groups, resolve_kv_cache_block_sizes(config, vllm_config)[1]


def placements(config: Any) -> list[list[Placement]]:
    """Returns where each group's layers have their pages."""
    places = {}
    for tensor in config.kv_cache_tensors:
        span = config.num_blocks * tensor.block_stride
        for at, layer in enumerate(tensor.layers):
            offset = tensor.offset + at * tensor.layer_stride
            is_outermost = tensor.layer_stride >= span
            page = tensor.block_stride if is_outermost else tensor.layer_stride
            parts = tensor.layer_stride // span if is_outermost else 1
            places[layer] = Placement(layer, offset, tensor.block_stride, page, parts)
    return [[places[layer] for layer in group.layer_names] for group in config.kv_cache_groups]


def facts(vllm_config: Any, config: Any, settings: Settings, pages: Pages) -> list[tuple[str, str]]:
    """Lists everything that changes a block's bytes beside its tokens."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    architecture = {
        name: value
        for name, value in model.hf_config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version")
    }
    layers = vllm_config.compilation_config.static_forward_context
    backends = sorted(
        {layers[name].get_attn_backend().full_cls_name() for group in config.kv_cache_groups for name in group.layer_names}
    )
    listed = {
        "line": line(vllm.__version__),
        "weights": settings.weights or f"{model.model}@{model.revision}",
        "architecture": json.dumps(architecture, sort_keys=True, default=str),
        "quantization": model.quantization,
        "dtype": model.dtype,
        "cache dtype": cache.cache_dtype,
        "hash": cache.prefix_caching_hash_algo,
        "hash seed": os.environ.get("PYTHONHASHSEED", "vLLM's own"),
        "hash tokens": config.hash_block_size,
        "layout": config.kv_cache_layout,
        "groups": [(group.layer_names, str(group.kv_cache_spec)) for group in config.kv_cache_groups],
        "pages": pages.widths,
        "backends": backends,
        "device": pages.device.type,
        "parallel": (
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            parallel.prefill_context_parallel_size,
            parallel.decode_context_parallel_size,
            config.kv_tp_replicas,
        ),
    }
    return [(name, str(value)) for name, value in listed.items()]
