"""What an engine remembers of what it served, to replay it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .tensors import KV

#: Requests that are remembered, and their blocks at most.
_REMEMBERED = 4096
_REMEMBERED_BLOCKS = 1 << 18
#: Blocks kept to measure codecs on.
_SAMPLES = 4


@dataclass(frozen=True)
class Served:
    """What one request was and took. Seconds are of one block; none where no block was."""

    keys: list[bytes]
    #: Blocks of these that could be found: the last token is computed in any case.
    most: int
    compute_seconds: float | None
    #: Of a block that was found.
    fetch_seconds: float | None
    #: Of a new block, as far as the request waited for it to be stored.
    store_seconds: float | None
    #: Seconds that the answer and all else took.
    rest_seconds: float


class History:
    """The last requests, and some blocks of them."""

    def __init__(self) -> None:
        self._served: deque[Served] = deque()
        self._blocks = 0
        self._samples: deque[KV] = deque(maxlen=_SAMPLES)

    def add(self, served: Served) -> None:
        """Remembers a request, and forgets the oldest beyond so many blocks."""
        self._served.append(served)
        self._blocks += len(served.keys)
        while len(self._served) > _REMEMBERED or self._blocks > _REMEMBERED_BLOCKS:
            self._blocks -= len(self._served.popleft().keys)

    def add_block(self, block: KV) -> None:
        """Remembers what a block is like."""
        self._samples.append(block)

    def served(self) -> list[Served]:
        """Returns the last requests."""
        return list(self._served)

    def samples(self) -> list[KV]:
        """Returns some blocks of them."""
        return list(self._samples)
