"""Blocks that are brought up before they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from kvhive import WrongTypeError

from .engine import UltraAdaptiveKVCacheEngine, backing_of


class CachePrefetcher:
    """Brings blocks up that will be asked for soon: from disk or host memory to where they are fetched from fastest.

    A node does that of itself for what follows a match; this is for what only the caller knows.
    """

    def __init__(self, engine: UltraAdaptiveKVCacheEngine) -> None:
        backing_of(engine)
        self._engine = engine

    def prefetch(self, keys: Sequence[str], *, tenant: str | None = None) -> int:
        """Has the prompts' blocks be brought up, ``prefetch_size`` of each segment at most; returns how many blocks of them are there.

        :param keys: prompts, as they will be asked.
        :raises kvhive.WrongTypeError: when it is one prompt alone, not in a list.
        """
        if isinstance(keys, (str, bytes)):
            raise WrongTypeError(f"keys is {keys!r}: prompts in a list are allowed")
        return sum(self._engine.covered(text, tenant) for text in keys)

    def get_prefetch_stats(self) -> dict[str, int]:
        """Returns what became of blocks that were brought up, the node's own choices included: how many were ``asked`` for, ``useful``,
        ``wasted`` (gone before they were used), ``late`` (used before they had come) and ``cancelled`` (for want of room)."""
        return {name: int(count) for name, count in self._engine.backing.stats()["prefetch"].items()}
