"""Hugging Face transformers: saves and restores a `DynamicCache`, and has the engine serve with a causal LM.

Needs torch and transformers. The page `docs/integrate/transformers.md` shows it at work.
"""

from importlib.util import find_spec

if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
    raise ImportError(f"kvhive.transformers needs {' and '.join(missing)}: pip install {' '.join(missing)}", name=missing[0])

from .caches import CacheStore, Restored
from .causal_lm import CausalLM, engine_config

__all__ = ["CacheStore", "CausalLM", "Restored", "engine_config"]
