"""What many use at a time, and one replaces while nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Shared:
    """A lock that users share. Whoever replaces what it guards has it alone, and may use it meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._replacer: int | None = None
        # How often this thread uses it just now: who is in already never waits for who wants to be alone.
        self._mine = threading.local()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Waits until nobody replaces it, and keeps it from being replaced."""
        depth = int(getattr(self._mine, "depth", 0))
        with self._changed:
            if not depth and self._replacer != threading.get_ident():
                self._changed.wait_for(lambda: self._replacer is None)
            self._users += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Waits until nobody uses it, and keeps others from doing so. Not for a thread that uses it."""
        with self._changed:
            self._changed.wait_for(lambda: self._replacer is None)
            self._replacer = threading.get_ident()
            self._changed.wait_for(lambda: self._users == 0)
        try:
            yield
        finally:
            with self._changed:
                self._replacer = None
                self._changed.notify_all()
