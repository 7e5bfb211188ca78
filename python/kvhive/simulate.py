"""What a cache would have done: kvhive's strategies over a trace, without bytes, as fast as they go."""

from __future__ import annotations

from collections.abc import Sequence

from kvhive import _native

__all__ = ["replay"]


def replay(requests: Sequence[Sequence[bytes]], strategy: str, capacity: int) -> list[int]:
    """Serves requests one after the other with a pool of `capacity` blocks that is empty at first.

    Each request is the keys of its blocks, 32 bytes each, from token 0 on. Returns how many blocks each found.

    >>> one, two = bytes(32), bytes([1] * 32)
    >>> replay([[one, two], [one], [one, two]], "lru", 2)
    [0, 1, 2]
    """
    return _native.replay(requests, strategy, capacity)
