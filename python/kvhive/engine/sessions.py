"""Conversations that an engine knows."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kvhive import Prefix

#: Sessions that are known at a time; of more, the one that was asked longest ago is forgotten.
_SESSIONS = 4096


@dataclass
class _Session:
    turns: int = 0
    prefix: Prefix | None = None


class Sessions:
    """How many turns each has had, and which blocks the last one was of."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Session] = OrderedDict()

    def turn(self, name: str, prefix: Prefix | None) -> int:
        """Counts a turn; returns which one it was."""
        session = self._known.setdefault(name, _Session())
        self._known.move_to_end(name)
        if len(self._known) > _SESSIONS:
            self._known.popitem(last=False)
        session.turns += 1
        session.prefix = prefix
        return session.turns

    def end(self, name: str) -> tuple[bool, Prefix | None]:
        """Forgets a session; returns whether it was known, and the blocks of its last turn."""
        session = self._known.pop(name, None)
        return (False, None) if session is None else (True, session.prefix)
