"""Numbers that several threads add to, and what is read off them."""

from __future__ import annotations

import threading


class Counts:
    """Numbers by name."""

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, **more: int) -> None:
        """Adds to some of them."""
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count

    def read(self) -> dict[str, int]:
        """Returns all of them as of one moment."""
        with self._lock:
            return dict(self._counts)


def share(part: float, whole: float) -> float:
    """Returns a part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0
