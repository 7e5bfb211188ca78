"""How long each stage of a request takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Profile:
    """How long each stage of a request took."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("match", "fetch", "compute", "generate", "store"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    def milliseconds(self) -> dict[str, float]:
        """Returns all of them."""
        return {name: seconds * 1e3 for name, seconds in self.seconds.items()}
