"""How evenly devices are read."""

from __future__ import annotations

from typing import Any

from .backing import Backing
from .engine import UltraAdaptiveKVCacheEngine, backing_of


class MultiGPULoadBalancer:
    """How evenly devices are read, and evening that out: slots that are read much get more replicas, or go elsewhere."""

    def __init__(self, engine: UltraAdaptiveKVCacheEngine) -> None:
        self._backing: Backing = backing_of(engine)

    def balance_load(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Has the coordinator spread load now. Returns ``changes``, each with its reason, ``busiest_to_mean`` before and after, whether they
        are ``applied``, and ``because`` where there is nothing to change."""
        return dict(self._backing.ask("POST", "/v1/balance", {"dry_run": dry_run}))

    def get_gpu_stats(self) -> list[dict[str, Any]]:
        """Returns each device's figures as last reported: ``device``, its ``node``, ``kind`` ("host", until it is a GPU), ``capacity_bytes``,
        ``used_bytes``, ``blocks``, ``slots``, ``hit_rate``, ``read_rate`` (bytes a second), ``wait_us`` (how long requests wait for it),
        ``tiers`` and ``traffic``."""
        return [dict(device) for device in self._backing.ask("GET", "/v1/cluster")["devices"]]
