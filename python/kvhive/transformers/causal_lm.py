"""A causal LM of transformers as a model of :mod:`kvhive.engine`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kvhive import MisuseError
from kvhive.engine import KVCacheConfig
from kvhive.engine.tensors import KV, Float32

from .caches import DTYPES, layout_of


def engine_config(model: PreTrainedModel, **settings: Any) -> KVCacheConfig:
    """Makes an engine's configuration with the shape and element type of a model's keys and values.

    :param settings: every other field of :class:`kvhive.engine.KVCacheConfig`.
    :raises kvhive.MisuseError: when a field is not allowed.
    :raises MisuseError: when the model's cache is none of full attention, or its dtype is none that is stored.
    """
    return KVCacheConfig(**(_shape(model) | settings))


class _Kept(NamedTuple):
    """What the model has of the tokens of one request, where it computes: the host's memory of the same, and what is in it."""

    memory: weakref.ref[KV]
    cache: DynamicCache
    tokens: int
    #: Keys and values of the last ones, as they were given out: what is kept of them may be other than that.
    last: KV


class CausalLM:
    """Has an engine serve with a model of transformers: what :class:`kvhive.engine.Model` asks for.

    Answers are greedy. The model computes where it lies, and keeps there what it has of one request while that lasts: what goes through host
    memory is what is found, and what is new. Decoders whose layers all attend to all tokens.

    :param name: names weights and tokenizer: two that differ must have two names.
    :raises ValueError: when the configuration is not of the model's shape; :func:`engine_config` makes one that is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: KVCacheConfig,
        *,
        name: str,
    ) -> None:
        if not name:
            raise MisuseError("name is '': a name of these weights is needed, so that others do not find their blocks")
        for field, value in _shape(model).items():
            given = getattr(config, field)
            if given != value:
                raise MisuseError(f"{field} is {given!r}: the model's is {value!r}; engine_config(model) has all of them")
        self._model, self._tokenizer, self._dtype = model.eval(), tokenizer, model.dtype
        self._name = name
        self._kept: _Kept | None = None
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = {int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        if tokenizer.eos_token_id is not None:
            self._ends.add(int(tokenizer.eos_token_id))

    @property
    def fingerprint(self) -> str:
        """The name, and how the model computes."""
        return f"{self._name}+transformers-{DTYPES[self._dtype]}"

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokenizer's tokens; of a text that has none, one that ends or begins a text."""
        tokens = [int(token) for token in self._tokenizer(text)["input_ids"]]
        return tokens or [min(self._ends, default=0)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without those that mean no text."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def is_end(self, token: int) -> bool:
        """Says whether an answer ends with this token."""
        return token in self._ends

    def decode(self, token: int, past: KV) -> tuple[KV, Float32]:
        """Computes one token of the answer."""
        return self.prefill([token], past)

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        """Computes a piece of the prompt."""
        before, device = past.shape[2], self._model.device
        with torch.inference_mode():
            cache, known = self._known(past)
            if known < before:
                self._upload(cache, past[:, :, known:])
            piece = torch.tensor([list(tokens)], device=device)
            out = self._model(input_ids=piece, past_key_values=cache, use_cache=True)
            new = torch.stack(
                [
                    torch.stack([part[0, :, before:].transpose(0, 1) for part in (layer.keys, layer.values)])
                    for layer in cache.layers
                ]
            )
            logits: Float32 = out.logits[0, -1].float().cpu().numpy()
        computed = self._array(new.cpu().contiguous())
        self._keep(past, cache, before + len(tokens), computed)
        return computed, logits

    def _known(self, past: KV) -> tuple[DynamicCache, int]:
        """Returns a cache with the first tokens of the past, and how many they are."""
        kept, self._kept = self._kept, None
        if kept is None or past.base is None or kept.memory() is not past.base or past.shape[2] < kept.tokens:
            return DynamicCache(config=self._model.config), 0
        # A request's past grows in one memory, so what was there is there. What was computed since may have been rounded.
        known = kept.tokens - kept.last.shape[2]
        if np.array_equal(_bits(past[:, :, known : kept.tokens]), _bits(kept.last)):
            known = kept.tokens
        else:
            # Below zero: so many of the last.
            kept.cache.crop(known - kept.tokens)
        return (kept.cache, known) if known else (DynamicCache(config=self._model.config), 0)

    def _keep(self, past: KV, cache: DynamicCache, tokens: int, computed: KV) -> None:
        """Keeps the cache until the request's memory goes."""
        if past.base is None:
            return

        def gone(memory: weakref.ref[KV]) -> None:
            if self._kept is not None and self._kept.memory is memory:
                self._kept = None

        # Whoever gets what was computed may change it.
        self._kept = _Kept(weakref.ref(past.base, gone), cache, tokens, computed.copy())

    def _upload(self, cache: DynamicCache, part: KV) -> None:
        for at, layer in enumerate(part):
            # From [tokens, heads, head_dim] to [1, heads, tokens, head_dim].
            keys, values = (self._tensor(one).transpose(0, 1).unsqueeze(0).to(self._model.device) for one in layer)
            cache.update(keys, values, at)

    def _tensor(self, stored: KV) -> torch.Tensor:
        whole = np.ascontiguousarray(stored)
        if self._dtype == torch.bfloat16:
            return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(whole)

    def _array(self, tensor: torch.Tensor) -> KV:
        if self._dtype == torch.bfloat16:
            bits: KV = tensor.view(torch.int16).numpy().view(np.uint16)
            return bits
        numbers: KV = tensor.numpy()
        return numbers


def _bits(numbers: KV) -> KV:
    """Returns numbers as what they are stored as: what is no number is equal to itself."""
    return np.ascontiguousarray(numbers).view(f"u{numbers.itemsize}")


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    layout = layout_of(model.config, model.dtype, 1)
    return {
        "num_layers": layout.layers,
        "num_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "dtype": DTYPES[model.dtype],
    }
