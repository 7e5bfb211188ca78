"""What an adapter is told in `adapter_params`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvhive.access import Tls
from kvhive.errors import MisuseError
from kvhive.reach import KEYS, is_whole, names, reach, refuse_unknown

__all__ = ["Settings"]

WHERE = "adapter_params"


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
    """Whose objects they are. It must exist."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What changes an object's bytes and is in none of LMCache's keys: servers that say different things share nothing."""
    wait_ms: int = 500
    """The longest that a lookup waits for the cluster's answer. Then nothing is there."""
    load_ms: int = 5000
    """The longest that a load takes. What has not come by then is a miss."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Reads what an operator wrote. Everything wrong is refused, with its name and what is allowed."""
        given = dict(given)
        refuse_unknown(WHERE, given, KEYS | {field.name for field in fields(cls)})
        settings = cls(*reach(WHERE, given), **given)
        is_whole(WHERE, "wait_ms", settings.wait_ms, 1, 600_000)
        is_whole(WHERE, "load_ms", settings.load_ms, 1, 600_000)
        names(WHERE, "tenant", settings.tenant)
        if not isinstance(settings.facts, Mapping):
            raise MisuseError(f'{WHERE} facts={settings.facts!r}: allowed is {{"name": value, …}}')
        return settings
