"""An engine with a cache: requests in, answers out, and what prompts have in common is computed once.

>>> import asyncio
>>> from kvhive.engine import KVCacheConfig, create_kv_cache_engine
>>> config = KVCacheConfig(num_heads=2, head_dim=16, num_layers=2, block_size=16, max_memory_mb=64)
>>> with create_kv_cache_engine(config) as engine:
...     answer = asyncio.run(engine.process_request({"text": "Hello", "priority": 1, "session_id": "a"}))
>>> sorted(answer)
['cache_hit', 'latency', 'metadata', 'result']
"""

from importlib.util import find_spec

if find_spec("numpy") is None:
    raise ImportError("kvhive.engine needs numpy, which is not installed: pip install 'numpy>=1.26'", name="numpy")

from .balancing import MultiGPULoadBalancer
from .cache import AdaptiveKVCache, BaseKVCache
from .config import CacheMode, CacheStrategy, KVCacheConfig
from .engine import UltraAdaptiveKVCacheEngine
from .integration import TruthGPTIntegration, create_kv_cache_engine
from .model import Model, SeededTransformer
from .predictor import WorkloadPredictor
from .prefetcher import CachePrefetcher
from .requests import Answer, Request
from .scaling import AutoScaler

__all__ = [
    "AdaptiveKVCache",
    "Answer",
    "AutoScaler",
    "BaseKVCache",
    "CacheMode",
    "CachePrefetcher",
    "CacheStrategy",
    "KVCacheConfig",
    "Model",
    "MultiGPULoadBalancer",
    "Request",
    "SeededTransformer",
    "TruthGPTIntegration",
    "UltraAdaptiveKVCacheEngine",
    "WorkloadPredictor",
    "create_kv_cache_engine",
]
