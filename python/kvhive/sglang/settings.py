"""What a storage backend is told in `hicache-storage-backend-extra-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvhive.access import Tls
from kvhive.reach import KEYS, is_whole, names, reach, refuse_unknown

__all__ = ["Settings"]

WHERE = "hicache-storage-backend-extra-config"
# SGLang waits 10 s for its threads when it detaches a backend, and gives up if they are still in a call.
MOST_MS = 8000
SGLANGS = {"backend_name", "module_path", "class_name", "interface_v1"}


@dataclass(frozen=True)
class Settings:
    """Everything that may be set, with what is usual."""

    coordinators: tuple[str, ...]
    """Where the cluster's coordinators are. Without, it is the cluster that `kvhive up` runs on this machine."""
    token: str
    """The cluster's token, or the file that it is in: `token` or `token_file`."""
    tls: Tls | None = None
    """Three files, where the cluster speaks TLS: `{"certificate": …, "key": …, "authorities": …}`."""
    interface_v1: bool = False
    """SGLang's own: whether pages go straight between its pool and the network."""
    tenant: str = "default"
    """Whose pages they are. It must exist."""
    weights: str | None = None
    """A name for the weights, where the model's own does not say them: two weights of one name would share pages."""
    wait_ms: int = 500
    """The longest that it takes to see what the cluster has of a prompt."""
    fetch_ms: int = 2000
    """The longest that it takes to fetch a batch: 128 pages at most. What has not come by then is computed."""
    store_ms: int = 5000
    """The longest that it takes to store a batch."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Reads what an operator wrote. Everything wrong is refused, with its name and what is allowed."""
        refuse_unknown(WHERE, given, KEYS | SGLANGS | {field.name for field in fields(cls)})
        # As SGLang reads it.
        is_v1 = bool(given.get("interface_v1", 0))
        rest = {name: value for name, value in given.items() if name not in SGLANGS}
        settings = cls(*reach(WHERE, rest), interface_v1=is_v1, **rest)
        for name in ("wait_ms", "fetch_ms", "store_ms"):
            is_whole(WHERE, name, getattr(settings, name), 1, MOST_MS)
        names(WHERE, "tenant", settings.tenant)
        names(WHERE, "weights", settings.weights, optional=True)
        return settings
