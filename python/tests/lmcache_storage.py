"""What a server of LMCache keeps objects in, its real `StorageManager`, in a process of its own: it stores some objects or loads them,
and says in JSON what came of it. Run by `test_lmcache.py`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from queue import Queue
from typing import Any

import torch
from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey, PrefetchTaskSpec
from lmcache.v1.distributed.config import EvictionConfig, L1ManagerConfig, L1MemoryManagerConfig, StorageManagerConfig
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.distributed.storage_manager import StorageManager
from lmcache.v1.mp_observability.event import EventType
from lmcache.v1.mp_observability.event_bus import EventBusConfig, get_event_bus, init_event_bus

PATIENCE_SECONDS = 60.0


def storage_manager(adapter: dict[str, Any], memory: int = 64 << 20) -> StorageManager:
    """Makes one as `lmcache server --l2-adapter` does, in a process whose events are told."""
    if not get_event_bus().enabled:
        init_event_bus(EventBusConfig(enabled=True)).start()
    adapters = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(adapter)]))
    level_one = L1ManagerConfig(L1MemoryManagerConfig(size_in_bytes=memory, use_lazy=False, shm_name=""))
    return StorageManager(StorageManagerConfig(level_one, EvictionConfig("LRU"), adapters))


def keys(model: str, chunks: int, ranks: int = 1, salt: str = "") -> list[list[ObjectKey]]:
    """Names the chunks of a text, for each rank."""
    return [
        [
            ObjectKey(
                chunk_hash=chunk.to_bytes(32, "big"),
                model_name=model,
                kv_rank=ObjectKey.ComputeKVRank(ranks, rank, ranks, rank),
                cache_salt=salt,
            )
            for chunk in range(chunks)
        ]
        for rank in range(ranks)
    ]


def fill(key: ObjectKey, memory: torch.Tensor) -> None:
    """Writes what an engine would have computed for a chunk."""
    seed = int.from_bytes(key.chunk_hash, "big") * 1000 + key.kv_rank % 1000
    numbers = torch.randint(0, 256, (memory.numel() * memory.element_size(),), generator=torch.Generator().manual_seed(seed))
    memory.view(-1).view(torch.uint8).copy_(numbers.to(torch.uint8))


def store(manager: StorageManager, rows: list[list[ObjectKey]], layout: MemoryLayoutDesc) -> dict[str, Any]:
    """Writes objects, and waits until the adapter is done with them: how many it kept, and how many not."""
    ended: Queue[tuple[int, int]] = Queue()
    get_event_bus().subscribe(
        EventType.L2_STORE_COMPLETED,
        lambda event: ended.put((event.metadata["succeeded_count"], event.metadata["failed_count"])),
    )
    reserved = manager.reserve_write([key for row in rows for key in row], layout)
    for key, memory in reserved.items():
        fill(key, memory.raw_tensor)
    begun = time.monotonic()
    manager.finish_write(list(reserved))
    kept, lost = 0, 0
    while kept + lost < len(reserved):
        some = ended.get(timeout=PATIENCE_SECONDS)
        kept, lost = kept + some[0], lost + some[1]
    return {"kept": kept, "lost": lost, "seconds": time.monotonic() - begun}


def load(manager: StorageManager, rows: list[list[ObjectKey]], layout: MemoryLayoutDesc) -> dict[str, Any]:
    """Prefetches objects as a lookup does, and compares what came."""
    spec = PrefetchTaskSpec([GroupedObjectKeys(row, 0, layout) for row in rows])
    begun = time.monotonic()
    handle = manager.submit_prefetch_task(spec)
    assert manager.wait_prefetch_status(handle, PATIENCE_SECONDS), "a prefetch ends"
    took = time.monotonic() - begun
    result = manager.query_prefetch_status(handle)
    assert result is not None
    hits = [key for row, bits in zip(rows, result.hit_cells, strict=True) for at, key in enumerate(row) if bits.test(at)]
    equal = 0
    if hits:
        with manager.read_prefetched_results(hits) as objects:
            assert objects is not None
            for key, memory in zip(hits, objects, strict=True):
                wanted = torch.empty_like(memory.raw_tensor)
                fill(key, wanted)
                equal += int(torch.equal(wanted.view(torch.uint8), memory.raw_tensor.view(torch.uint8)))
        manager.finish_read_prefetched(hits)
    return {"hits": len(hits), "from the cluster": result.l2_hit_count, "equal": equal, "seconds": took}


def main() -> None:
    told = json.loads(sys.stdin.read())
    manager = storage_manager(told["adapter"])
    layout = MemoryLayoutDesc([torch.Size(told["shape"])], [getattr(torch, told["dtype"])])
    rows = keys(told["model"], told["chunks"], told["ranks"], told["salt"])
    came = {"store": store, "load": load}[told["verb"]](manager, rows, layout)
    manager.close()
    print(json.dumps(came))


if __name__ == "__main__":
    main()
