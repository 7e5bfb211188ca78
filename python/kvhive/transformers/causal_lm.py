"""A causal LM of transformers as a model of :mod:`kvhive.engine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kvhive.engine import KVCacheConfig
from kvhive.engine.tensors import KV, Float32

from .caches import DTYPES, layout_of


def engine_config(model: PreTrainedModel, **settings: Any) -> KVCacheConfig:
    """Makes an engine's configuration with the shape and element type of a model's keys and values.

    :param settings: every other field of :class:`kvhive.engine.KVCacheConfig`.
    :raises ValueError: when a field is not allowed.
    :raises MisuseError: when the model's cache is none of full attention, or its dtype is none that is stored.
    """
    return KVCacheConfig(**(_shape(model) | settings))


class CausalLM:
    """Has an engine serve with a model of transformers: what :class:`kvhive.engine.Model` asks for.

    Answers are greedy. The model computes where it lies; its keys and values go through host memory. Decoders whose layers all attend to
    all tokens.

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
            raise ValueError("name is '': a name of these weights is needed, so that others do not find their blocks")
        for field, value in _shape(model).items():
            given = getattr(config, field)
            if given != value:
                raise ValueError(f"{field} is {given!r}: the model's is {value!r}; engine_config(model) has all of them")
        self._model, self._tokenizer, self._dtype = model.eval(), tokenizer, model.dtype
        self._name = name
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
            cache = DynamicCache(config=self._model.config)
            if before:
                for at, layer in enumerate(past):
                    # From [tokens, heads, head_dim] to [1, heads, tokens, head_dim].
                    keys, values = (self._tensor(part).transpose(0, 1).unsqueeze(0).to(device) for part in layer)
                    cache.update(keys, values, at)
            piece = torch.tensor([list(tokens)], device=device)
            out = self._model(input_ids=piece, past_key_values=cache, use_cache=True)
            new = torch.stack(
                [
                    torch.stack([part[0, :, before:].transpose(0, 1) for part in (layer.keys, layer.values)])
                    for layer in cache.layers
                ]
            )
            logits: Float32 = out.logits[0, -1].float().cpu().numpy()
        return self._array(new.cpu().contiguous()), logits

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


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    layout = layout_of(model.config, model.dtype, 1)
    return {
        "num_layers": layout.layers,
        "num_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "dtype": DTYPES[model.dtype],
    }
