"""Saves and restores the `DynamicCache` of a model: prompts that begin alike are computed once in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from transformers import Cache, DynamicCache, PretrainedConfig

from kvhive._native import Layout, Prefix, StoreReport
from kvhive.access import whole
from kvhive.client import Client
from kvhive.errors import MisuseError, OutOfRangeError, WrongTypeError

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
FULL = "full_attention"


class Restored(NamedTuple):
    """A cache that was put together from stored blocks."""

    cache: DynamicCache
    """To be given to the model as `past_key_values`. Empty where nothing was stored."""
    tokens: int
    """How many tokens of the prompt it covers: the model computes those behind."""


class CacheStore:
    """The caches of one model in a cluster.

    `model` names the weights: two that differ must have two names. `config` is the model's own, `dtype` that of its keys and values.
    `extras` are what else changes them (an adapter's id, as bytes), `block_tokens` how many tokens a block has. One prompt at a time, decoders
    whose layers all attend to all tokens, and keys and values of one shape: what is not so is refused.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        config: PretrainedConfig,
        *,
        dtype: torch.dtype = torch.float16,
        block_tokens: int = 16,
        tenant: str = "default",
        extras: Sequence[bytes] = (),
    ) -> None:
        self._client, self._dtype, self._extras, self._config = client, dtype, list(extras), config
        self.layout = layout_of(config, dtype, block_tokens)
        self._names = client.namespace(model, self.layout, tenant=tenant)
        # What are no extras is told here, not to the first request.
        self._prefix(())

    def restore(
        self, tokens: Sequence[SupportsIndex], *, device: Any = "cpu", timeout: float | None = None
    ) -> Restored:
        """Fetches the longest stored beginning of a prompt. At least one token is left, whose answer the model has to compute."""
        prefix = self._prefix(tokens)
        cache = DynamicCache(config=self._config)
        reach = min(len(prefix), max(len(tokens) - 1, 0) // self.layout.tokens)
        covered = min(self._client.match(prefix, timeout=timeout).covered, reach) if reach else 0
        if covered == 0:
            return Restored(cache, 0)
        blocks = self._memory(covered)
        delivered = self._client.fetch_into(prefix, blocks, timeout=timeout).delivered
        if delivered == 0:
            return Restored(cache, 0)
        for layer in range(self.layout.layers):
            # To [1, kv_heads, tokens, head_dim], as the model has it.
            keys, values = (
                blocks[:delivered, layer, which].permute(2, 0, 1, 3).flatten(1, 2).unsqueeze(0).to(device)
                for which in (0, 1)
            )
            cache.update(keys, values, layer)
        return Restored(cache, delivered * self.layout.tokens)

    def save(
        self,
        tokens: Sequence[SupportsIndex],
        cache: DynamicCache,
        *,
        known: SupportsIndex = 0,
        timeout: float | None = None,
    ) -> StoreReport:
        """Stores the full blocks of `tokens` that `cache` holds. `known` tokens of them were restored and are passed over."""
        if not isinstance(cache, Cache):
            raise WrongTypeError(f"cache is of {type(cache).__name__}: allowed is the DynamicCache that the model filled")
        passed = whole(known)
        if passed is None:
            raise WrongTypeError(f"known {known!r}: allowed is a whole number of tokens")
        if not 0 <= passed <= len(tokens):
            raise OutOfRangeError(f"known {passed}: allowed is 0 to {len(tokens)}, as many tokens as there are")
        prefix = self._prefix(tokens)
        size = self.layout.tokens
        begin, end = passed // size, min(len(prefix), int(cache.get_seq_length()) // size)
        blocks = self._memory(max(end - begin, 0))
        for at, (keys, values) in enumerate(self._tensors(cache)):
            for which, tensor in enumerate((keys, values)):
                # From [kv_heads, tokens, head_dim] to [blocks, tokens, kv_heads, head_dim].
                part = tensor[0, :, begin * size : begin * size + len(blocks) * size]
                blocks[:, at, which] = part.unflatten(1, (len(blocks), size)).permute(1, 2, 0, 3)
        return self._client.store_from(prefix, blocks, begin, timeout=timeout)

    def _prefix(self, tokens: Sequence[SupportsIndex]) -> Prefix:
        return self._names.keys(tokens, self._extras)

    def _memory(self, blocks: int) -> torch.Tensor:
        layout = self.layout
        shape = (blocks, layout.layers, 2, layout.tokens, layout.kv_heads, layout.head_dim)
        return torch.empty(shape, dtype=self._dtype)

    def _tensors(self, cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        layout = self.layout
        if len(cache.layers) != layout.layers:
            raise MisuseError(f"a cache of {len(cache.layers)} layers for a model of {layout.layers}")
        tensors = [(layer.keys, layer.values) for layer in cache.layers]
        expected = (1, layout.kv_heads, int(cache.get_seq_length()), layout.head_dim)
        for at, pair in enumerate(tensors):
            for tensor in pair:
                if tuple(tensor.shape) != expected or tensor.dtype != self._dtype:
                    raise MisuseError(
                        f"layer {at} holds {tuple(tensor.shape)} of {tensor.dtype}: expected is {expected} of {self._dtype}"
                    )
        return tensors


def layout_of(config: PretrainedConfig, dtype: torch.dtype, block_tokens: int) -> Layout:
    """Returns what a block of this model's cache is."""
    if dtype not in DTYPES:
        raise MisuseError(f"dtype {dtype}: allowed is {', '.join(map(str, DTYPES))}")
    if config.is_encoder_decoder:
        raise MisuseError("the model has an encoder: only decoders have one cache of a prompt's tokens")
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [FULL])
    if getattr(text, "sliding_window", None) and getattr(text, "layer_types", None) is None:
        kinds.add("sliding_attention")
    if kinds != {FULL}:
        raise MisuseError(f"layers of {', '.join(sorted(kinds - {FULL}))}: allowed is {FULL} alone")
    heads = text.num_attention_heads
    return Layout(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        tokens=block_tokens,
        dtype=DTYPES[dtype],
    )
