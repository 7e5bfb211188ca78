"""A model as the engine asks it: piece by piece, with one memory for each request's keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .config import KVCacheConfig
from .model import Model
from .tensors import Float32, Growing, storage_dtype


class Asked:
    """What the native engine calls. Its pasts are :class:`Growing`, and its blocks bytes in the shape of the configuration."""

    def __init__(self, model: Model, config: KVCacheConfig) -> None:
        self._model = model
        self._config = config
        self._dtype = storage_dtype(config.dtype)

    def tokenize(self, text: str) -> list[int]:
        """Turns text into tokens."""
        return [int(token) for token in self._model.tokenize(text)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Turns tokens into text."""
        return self._model.detokenize(tokens)

    def is_end(self, token: int) -> bool:
        """Says whether an answer ends with this token."""
        return bool(self._model.is_end(token))

    def begin(self, most_tokens: int) -> Growing:
        """Makes room for a request of so many tokens, prompt and answer."""
        return Growing(self._config, most_tokens)

    def compute(self, past: Growing, tokens: Sequence[int]) -> Float32:
        """Computes a piece of the prompt, and returns the logits after it."""
        more, logits = self._model.prefill(tokens, past.filled)
        past.append(more)
        return _plain(logits)

    def decode(self, past: Growing, token: int) -> Float32:
        """Computes a token of the answer, and returns the logits after it."""
        more, logits = self._model.decode(token, past.filled)
        past.append(more)
        return _plain(logits)

    def save(self, past: Growing, start: int, end: int) -> NDArray[np.uint8]:
        """Returns some tokens' keys and values as the bytes of a block."""
        return np.ascontiguousarray(past.filled[:, :, start:end]).reshape(-1).view(np.uint8)

    def load(self, past: Growing, block: bytes) -> None:
        """Adds a block's keys and values."""
        config = self._config
        shape = (config.num_layers, 2, config.block_size, config.num_heads, config.head_dim)
        past.append(np.frombuffer(block, self._dtype).reshape(shape))

    def truncate(self, past: Growing, tokens: int) -> None:
        """Forgets all tokens but the first so many."""
        past.truncate(tokens)


def _plain(logits: Float32) -> Float32:
    """Returns logits as one row of memory."""
    return np.ascontiguousarray(logits, np.float32).reshape(-1)
