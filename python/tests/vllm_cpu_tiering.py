"""Has vLLM's own offloading in tiers run on its CPU backend, for tests: copies between "device" and pool are plain copies of memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class MemoryWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies between the pages of a CPU engine and the shared pool."""

    def __init__(self, caches: Any, blocks_per_chunk: int, region: Any) -> None:
        self._per_chunk, self._region, self._done = blocks_per_chunk, region, list[Any]()
        self._device = [one.tensor.view(torch.int8).view(-1, one.page_size_bytes) for one in caches.tensors]
        self._host = [region.create_next_worker_view(one.page_size_bytes * blocks_per_chunk) for one in caches.tensors]
        self._refs = caches.group_data_refs

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec, dst_spec, True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False) -> bool:
        return self._copy(job_id, dst_spec, src_spec, False)

    def get_finished(self) -> list[Any]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: Any) -> None:
        return

    def shutdown(self) -> None:
        self._device, self._host = [], []
        self._region.cleanup()

    def _copy(self, job: int, device: Any, host: Any, is_store: bool) -> bool:
        begun, copied, from_device, from_host = time.monotonic(), 0, 0, 0
        for group, (size, first) in enumerate(zip(device.group_sizes, device.block_indices, strict=True)):
            skip = first % self._per_chunk
            for at in range(size):
                block = int(device.block_ids[from_device + at])
                chunk = int(host.block_ids[from_host + (skip + at) // self._per_chunk])
                part = (skip + at) % self._per_chunk
                for ref in self._refs[group]:
                    page = self._device[ref.tensor_idx].shape[1]
                    there = self._host[ref.tensor_idx][chunk][part * page : (part + 1) * page]
                    here = self._device[ref.tensor_idx][block]
                    there.copy_(here) if is_store else here.copy_(there)
                    copied += page
            from_device += size
            from_host += -(-(skip + size) // self._per_chunk) if size else 0
        self._done.append(TransferResult(job, True, copied, time.monotonic() - begun))
        return True


class CpuTieringSpec(TieringOffloadingSpec):  # type: ignore[misc]
    def get_worker(self, kv_caches: Any) -> Any:
        if not self._worker:  # type: ignore[has-type]
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = MemoryWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker
