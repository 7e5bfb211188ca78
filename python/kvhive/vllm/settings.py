"""What a connector is told in `kv_connector_extra_config`."""

from __future__ import annotations

from dataclasses import dataclass

from kvhive.reach import ToldWeights

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings(ToldWeights):
    """Everything that may be set, with what is usual."""

    wait_ms: int = 500
    """The longest that a request waits for what the cluster has. Then the engine computes."""
    asks: int = 32
    """Requests that are asked for at once."""
    least_tokens: int = 1
    """Fewer missing tokens than this are computed without asking."""
    memory_mb: int = 1024
    """Memory of each worker for blocks on their way, in MiB. What does not fit is computed, or not saved."""
    gpu_memory_mb: int = 0
    """Memory of each worker's GPU for blocks on their way, in MiB, in place of the host's: they go to GPUs of nodes on this host and come
    from them without it. vLLM must leave as much free (`gpu_memory_utilization`). 0: they pass through the host's memory."""
    known_s: int = 60
    """How long a saved block counts as being in the cluster, and is not sent again."""

    WHERE = "kv_connector_extra_config"
    BOUNDS = {
        "wait_ms": (1, 600_000),
        "asks": (1, 10_000),
        "least_tokens": (1, 1 << 31),
        "memory_mb": (1, 1 << 20),
        "gpu_memory_mb": (0, 1 << 20),
        "known_s": (1, 86_400),
    }
