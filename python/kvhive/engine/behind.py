"""Stores that nobody waits for: a thread of their own makes them, and what they store is found here until it is elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

V = TypeVar("V")


class Behind(Generic[V]):
    """Stores in the order in which they were added, ``most_bytes`` of them or a little more at a time."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._worker = ThreadPoolExecutor(1, "kvhive-store")
        self._changed = threading.Condition()
        self._bytes = 0
        self._values: dict[bytes, V] = {}
        self._last: Future[None] | None = None
        self._failed: Exception | None = None

    def add(self, values: Mapping[bytes, V], size: int, store: Callable[[], object]) -> None:
        """Has ``store`` be called, which takes ``size`` bytes; waits while too many bytes are waiting already.

        :param values: what it stores, by name; of two of one name the later is found.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < self._most_bytes)
            # It cannot end before this is left.
            self._last = self._worker.submit(self._run, values, size, store)
            self._bytes += size
            self._values.update(values)

    def _run(self, values: Mapping[bytes, V], size: int, store: Callable[[], object]) -> None:
        failed: Exception | None = None
        try:
            store()
        except Exception as error:
            failed = error
        with self._changed:
            self._failed = self._failed or failed
            self._bytes -= size
            for name, value in values.items():
                if self._values.get(name) is value:
                    del self._values[name]
            self._changed.notify_all()

    def find(self, names: Iterable[bytes]) -> dict[bytes, V]:
        """Returns those of some values that wait to be stored."""
        with self._changed:
            return {name: self._values[name] for name in names if name in self._values}

    def wait(self) -> None:
        """Waits for what has been added so far, and raises what went wrong first since the last time."""
        with self._changed:
            last = self._last
        if last is not None:
            last.result()
        with self._changed:
            failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Stores what waits, and ends."""
        self._worker.shutdown()
        self.wait()
