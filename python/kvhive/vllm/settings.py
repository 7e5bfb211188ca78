"""What a connector is told in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvhive.access import Tls
from kvhive.reach import KEYS, is_whole, names, reach, refuse_unknown

__all__ = ["Settings"]

WHERE = "kv_connector_extra_config"


@dataclass(frozen=True)
class Settings:
    """Everything that may be set, with what is usual."""

    coordinators: tuple[str, ...]
    """Where the cluster's coordinators are. Without, it is the cluster that `kvhive up` runs on this machine."""
    token: str
    """The cluster's token, or the file that it is in: `token` or `token_file`."""
    tls: Tls | None = None
    """Three files, where the cluster speaks TLS: `{"certificate": …, "key": …, "authorities": …}`."""
    tenant: str = "default"
    """Whose blocks they are. It must exist."""
    weights: str | None = None
    """A name for the weights, where the model's own does not say them: two weights of one name would share blocks."""
    wait_ms: int = 500
    """The longest that a request waits for what the cluster has. Then the engine computes."""
    asks: int = 32
    """Requests that are asked for at once."""
    least_tokens: int = 1
    """Fewer missing tokens than this are computed without asking."""
    memory_mb: int = 1024
    """Memory of each worker for blocks on their way, in MiB. What does not fit is computed, or not saved."""
    known_s: int = 60
    """How long a saved block counts as being in the cluster, and is not sent again."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Reads what an operator wrote. Everything wrong is refused, with its name and what is allowed."""
        given = dict(given)
        refuse_unknown(WHERE, given, KEYS | {field.name for field in fields(cls)})
        settings = cls(*reach(WHERE, given), **given)
        for name, least, most in (
            ("wait_ms", 1, 600_000),
            ("asks", 1, 10_000),
            ("least_tokens", 1, 1 << 31),
            ("memory_mb", 1, 1 << 20),
            ("known_s", 1, 86_400),
        ):
            is_whole(WHERE, name, getattr(settings, name), least, most)
        names(WHERE, "tenant", settings.tenant)
        names(WHERE, "weights", settings.weights, optional=True)
        return settings
