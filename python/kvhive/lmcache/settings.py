"""What an adapter is told in `adapter_params`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kvhive.errors import MisuseError
from kvhive.reach import Told

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings(Told):
    """Everything that may be set, with what is usual."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What changes an object's bytes and is in none of LMCache's keys: servers that say different things share nothing."""
    wait_ms: int = 500
    """The longest that a lookup waits for the cluster's answer. Then nothing is there."""
    load_ms: int = 5000
    """The longest that a load takes. What has not come by then is a miss."""

    WHERE = "adapter_params"
    BOUNDS = {"wait_ms": (1, 600_000), "load_ms": (1, 600_000)}

    @classmethod
    def of(cls, given: Mapping[str, Any], others: frozenset[str] = frozenset()) -> Self:
        told = super().of(given, others)
        if not isinstance(told.facts, Mapping):
            raise MisuseError(f'{cls.WHERE} facts={told.facts!r}: allowed is {{"name": value, …}}')
        return told
