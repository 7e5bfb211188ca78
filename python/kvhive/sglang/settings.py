"""What a storage backend is told in `hicache-storage-backend-extra-config`."""

from __future__ import annotations

from dataclasses import dataclass

from kvhive.reach import ToldWeights

__all__ = ["SGLANGS", "Settings"]

# SGLang waits 10 s for its threads when it detaches a backend, and gives up if they are still in a call.
MOST_MS = 8000
SGLANGS = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})
"""What is said there too, and is SGLang's own."""


@dataclass(frozen=True)
class Settings(ToldWeights):
    """Everything that may be set, with what is usual."""

    wait_ms: int = 500
    """The longest that it takes to see what the cluster has of a prompt."""
    fetch_ms: int = 2000
    """The longest that it takes to fetch a batch: 128 pages at most. What has not come by then is computed."""
    store_ms: int = 5000
    """The longest that it takes to store a batch."""

    WHERE = "hicache-storage-backend-extra-config"
    BOUNDS = {"wait_ms": (1, MOST_MS), "fetch_ms": (1, MOST_MS), "store_ms": (1, MOST_MS)}
