"""Models that compute keys and values: what an engine asks of one, and a small real one for those who have none at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kvhive import MisuseError, WrongTypeError

from .config import KVCacheConfig
from .tensors import KV, Float32, from_float32, to_float32

_BYTES = 256
_END = 256


class Model(Protocol):
    """What an engine asks of a model.

    The same tokens after the same ``past`` must give the same numbers. The engine asks block by block, so that what follows a
    block is computed from the same shapes whether that block was computed or found.
    """

    @property
    def fingerprint(self) -> str:
        """Names weights and tokenizer: models that compute different numbers have different ones. It is part of every key."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Turns text into tokens, at least one."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Turns tokens into text."""
        ...

    def is_end(self, token: int) -> bool:
        """Says whether an answer ends with this token."""
        ...

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        """Computes a piece of the prompt.

        :param tokens: the piece's tokens, ``n`` of them.
        :param past: keys and values of all tokens before, ``[layers, 2, past, heads, head_dim]``: of one request always a view of the
            same array, which the next tokens come into and in which nothing changes.
        :return: keys and values of the piece, ``[layers, 2, n, heads, head_dim]``, and the logits after it, ``[vocabulary]``.
        """
        ...

    def decode(self, token: int, past: KV) -> tuple[KV, Float32]:
        """Computes one token of the answer: as :meth:`prefill` of that token alone."""
        ...


def checked(model: Model) -> Model:
    """Returns what an engine can ask.

    :raises kvhive.WrongTypeError: naming what it lacks.
    """
    asked = ("fingerprint", "tokenize", "detokenize", "is_end", "prefill", "decode")
    if lacking := [name for name in asked if not hasattr(model, name)]:
        raise WrongTypeError(f"model is of {type(model).__name__}, which has no {', '.join(lacking)}: a model has {', '.join(asked)}")
    if not (isinstance(model.fingerprint, str) and model.fingerprint):
        raise WrongTypeError(f"model.fingerprint is {model.fingerprint!r}: text that names weights and tokenizer is allowed")
    return model


class SeededTransformer:
    """A transformer with weights drawn from a seed: pre-norm (RMSNorm), rotary positions, a gated MLP, bytes as tokens.

    It says nothing sensible, but does all of the arithmetic: attention over the whole past, and keys and values in the
    configuration's shape and element type. Rotary embedding as by Su et al., "RoFormer", 2021.
    """

    def __init__(self, config: KVCacheConfig, seed: int = 0) -> None:
        if config.head_dim % 2:
            raise MisuseError(f"head_dim is {config.head_dim}: rotary positions need an even one")
        self._config = config
        self._seed = seed
        rng = np.random.default_rng(seed)
        width = config.num_heads * config.head_dim

        def weights(rows: int, columns: int) -> Float32:
            return rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))

        self._embedding: Float32 = rng.standard_normal((_BYTES + 1, width), dtype=np.float32)
        self._layers = [
            (weights(width, 3 * width), weights(width, width), weights(width, 2 * width), weights(width, width))
            for _ in range(config.num_layers)
        ]
        self._out = weights(width, _BYTES + 1)
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        self._frequencies: Float32 = np.power(np.float32(10000.0), -exponents, dtype=np.float32)

    @property
    def fingerprint(self) -> str:
        """Names the seed and the shape."""
        config = self._config
        shape = f"{config.num_layers}x{config.num_heads}x{config.head_dim}-{config.dtype}"
        return f"kvhive-seeded-transformer-1-{shape}-seed{self._seed}"

    def tokenize(self, text: str) -> list[int]:
        """Returns the text's bytes; of an empty text, the end."""
        return list(text.encode()) or [_END]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text that the tokens are bytes of, with a mark for each that makes none."""
        return bytes(token for token in tokens if token < _BYTES).decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """Says whether an answer ends with this token."""
        return token == _END

    def decode(self, token: int, past: KV) -> tuple[KV, Float32]:
        """Computes one token of the answer."""
        return self.prefill([token], past)

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        """Computes a piece of the prompt."""
        config = self._config
        before, count = past.shape[2], len(tokens)
        heads = (count, config.num_heads, config.head_dim)
        angles = np.arange(before, before + count, dtype=np.float32)[:, None, None] * self._frequencies
        sine, cosine = np.sin(angles), np.cos(angles)
        # Row t sees all of the past, and the piece up to itself.
        unseen = np.triu(np.full((count, before + count), -np.inf, np.float32), before + 1)
        new: list[KV] = []
        x = self._embedding[np.asarray(tokens)]
        for number, (attention, projection, gate, down) in enumerate(self._layers):
            query, key, value = np.split(_normed(x) @ attention, 3, axis=1)
            query = _rotated(query.reshape(heads), sine, cosine)
            key = _rotated(key.reshape(heads), sine, cosine)
            # What is attended to is what is stored: rounded once, here.
            both = from_float32(np.stack([key, value.reshape(heads)]), config.dtype)
            new.append(both)
            keys, values = to_float32(np.concatenate([past[number], both], axis=1), config.dtype)
            scores = np.einsum("thd,nhd->htn", query, keys, optimize=True) / np.float32(np.sqrt(config.head_dim))
            mixed = np.einsum("htn,nhd->thd", _softmax(scores + unseen), values, optimize=True)
            x = x + mixed.reshape(count, -1) @ projection
            open_, through = np.split(_normed(x) @ gate, 2, axis=1)
            x = x + (open_ / (1 + np.exp(-open_)) * through) @ down
        return np.stack(new), (_normed(x[-1:]) @ self._out)[0]


def _normed(x: Float32) -> Float32:
    normed: Float32 = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-6))
    return normed


def _rotated(x: Float32, sine: Float32, cosine: Float32) -> Float32:
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def _softmax(scores: Float32) -> Float32:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Float32 = weights / weights.sum(axis=-1, keepdims=True)
    return shares
