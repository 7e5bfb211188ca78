"""Hugging Face transformers: saves and restores a `DynamicCache`, and has the engine serve with a causal LM.

Needs torch and transformers. The page `docs/integrate/transformers.md` shows it at work.
"""

from .caches import CacheStore, Restored
from .causal_lm import CausalLM, engine_config

__all__ = ["CacheStore", "CausalLM", "Restored", "engine_config"]
