"""Engines in one call."""

from __future__ import annotations

import dataclasses

from .config import CacheStrategy, KVCacheConfig, checked
from .engine import UltraAdaptiveKVCacheEngine
from .model import Model


def create_kv_cache_engine(
    config: KVCacheConfig | None = None, strategy: CacheStrategy | str | None = None, *, model: Model | None = None
) -> UltraAdaptiveKVCacheEngine:
    """Makes an engine.

    >>> with create_kv_cache_engine(strategy="lru") as engine:
    ...     engine.config.cache_strategy
    <CacheStrategy.LRU: 'lru'>

    :param config: as usual :class:`KVCacheConfig` with nothing said.
    :param strategy: wins over the configuration's.
    :raises kvhive.MisuseError: when a value is not allowed.
    """
    config = checked(config)
    if strategy is not None:
        config = dataclasses.replace(config, cache_strategy=strategy)
    return UltraAdaptiveKVCacheEngine(config, model=model)


class TruthGPTIntegration:
    """Engines for TruthGPT's models."""

    @staticmethod
    def create_engine_for_truthgpt(max_tokens: int = 16384, *, model: Model | None = None) -> UltraAdaptiveKVCacheEngine:
        """Makes an engine for long conversations: ``interactive``, adaptive, with as many tokens as are asked for.

        :raises kvhive.MisuseError: when ``max_tokens`` is not allowed.
        """
        config = KVCacheConfig(max_tokens=max_tokens, cache_mode="interactive")
        return UltraAdaptiveKVCacheEngine(config, model=model)
