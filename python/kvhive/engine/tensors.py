"""Keys and values as arrays: numbers of the configured kind, and room that a request's tokens grow into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvhive import MisuseError

from .config import KVCacheConfig

#: Keys and values, shape ``[layers, 2, tokens, heads, head_dim]``: keys at 0 of the second axis, values at 1. Elements of bfloat16,
#: which numpy has not, are the upper halves of float32's bits, as uint16.
KV = NDArray[np.generic]
Float32 = NDArray[np.float32]


def storage_dtype(dtype: str) -> np.dtype[np.generic]:
    """Returns numpy's type for elements that are stored."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def to_float32(stored: KV, dtype: str) -> Float32:
    """Widens stored elements."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def from_float32(wide: Float32, dtype: str) -> KV:
    """Rounds to stored elements, to even where two are as near."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(wide).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        quiet = np.isnan(wide)
        return np.where(quiet, 0x7FC0, rounded >> 16).astype(np.uint16)
    return wide.astype(dtype)


class Growing:
    """Keys and values of one request's tokens, in room for as many as it may have."""

    def __init__(self, config: KVCacheConfig, tokens: int) -> None:
        shape = (config.num_layers, 2, tokens, config.num_heads, config.head_dim)
        self._room: KV = np.zeros(shape, storage_dtype(config.dtype))
        self.tokens = 0

    @property
    def filled(self) -> KV:
        """What is there so far: a view."""
        return self._room[:, :, : self.tokens]

    def append(self, more: KV) -> None:
        """Adds what was computed for the next tokens.

        :raises ValueError: when it has another shape, or there is no room for it.
        """
        after = self.tokens + more.shape[2] if more.ndim == 5 else -1
        room = self._room.shape
        if more.dtype != self._room.dtype:
            raise MisuseError(f"keys and values are {more.dtype}, and the configuration's dtype is stored as {self._room.dtype}")
        if more.ndim != 5 or more.shape[:2] + more.shape[3:] != room[:2] + room[3:] or after > room[2]:
            raise MisuseError(f"keys and values of shape {more.shape} do not fit {room} with {self.tokens} tokens in it")
        self._room[:, :, self.tokens : after] = more
        self.tokens = after

    def truncate(self, tokens: int) -> None:
        """Forgets all tokens but the first so many."""
        self.tokens = min(self.tokens, tokens)
