"""What a storage backend is told in `hicache-storage-backend-extra-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvhive.access import Tls, given_cluster
from kvhive.errors import MisuseError

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
        given = dict(given)
        known = {field.name for field in fields(cls)} | {"token_file", "directory"} | SGLANGS
        if unknown := sorted(given.keys() - known):
            raise MisuseError(f"{WHERE} {', '.join(unknown)}: allowed is {', '.join(sorted(known - SGLANGS))}")
        addresses, token, tls = given_cluster(given, WHERE)
        # As SGLang reads it.
        is_v1 = bool(given.get("interface_v1", 0))
        rest = {name: value for name, value in given.items() if name not in SGLANGS}
        settings = cls(tuple(addresses), token, tls, is_v1, **rest)
        for name in ("wait_ms", "fetch_ms", "store_ms"):
            value = getattr(settings, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_MS:
                raise MisuseError(f"{WHERE} {name}={value!r}: allowed is 1 to {MOST_MS}")
        for name in ("tenant", "weights"):
            value = getattr(settings, name)
            if not (isinstance(value, str) and value) and not (name == "weights" and value is None):
                raise MisuseError(f"{WHERE} {name}={value!r}: allowed is a name")
        return settings
