"""What an engine has done, as its ``get_stats`` says it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from .backing import memory_used
from .counts import Counts, share

#: Requests whose latency counts in percentiles.
_REMEMBERED = 4096


class Figures:
    """Counts of requests and tokens, and how long requests took."""

    def __init__(self) -> None:
        self._counts = Counts("requests", "hits", "failures", "prompt_tokens", "cached_tokens", "generated_tokens")
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._latency_sum = 0.0

    def failed(self) -> None:
        """Counts a call of the cache that failed."""
        self._counts.add(failures=1)

    def served(self, latency: float, prompt_tokens: int, cached_tokens: int, generated_tokens: int) -> None:
        """Counts a request that was answered."""
        with self._lock:
            self._latencies.append(latency)
            self._latency_sum += latency
        self._counts.add(
            requests=1,
            hits=int(cached_tokens > 0),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            generated_tokens=generated_tokens,
        )

    def read(self, node: dict[str, Any], strategy: str) -> dict[str, Any]:
        """Returns all of them, with what a node says of itself."""
        with self._lock:
            latencies, latency_sum = list(self._latencies), self._latency_sum
        counts = self._counts.read()
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if latencies else (0.0, 0.0, 0.0)
        stored = sum(one["stored_bytes"] for one in node["codecs"])
        raw = sum(one["raw_bytes"] for one in node["codecs"])
        return {
            "total_requests": counts["requests"],
            "cache_hits": counts["hits"],
            "cache_misses": counts["requests"] - counts["hits"],
            "hit_rate": share(counts["hits"], counts["requests"]),
            "avg_latency": share(latency_sum, counts["requests"]),
            "p50_latency": float(p50),
            "p95_latency": float(p95),
            "p99_latency": float(p99),
            "memory_usage": memory_used(node),
            "gpu_utilization": float(node["device_utilization"]),
            "prompt_tokens": counts["prompt_tokens"],
            "cached_tokens": counts["cached_tokens"],
            "computed_tokens": counts["prompt_tokens"] - counts["cached_tokens"],
            "generated_tokens": counts["generated_tokens"],
            "token_hit_rate": share(counts["cached_tokens"], counts["prompt_tokens"]),
            "compression_ratio": stored / raw if raw else 1.0,
            "strategy": strategy,
            "pinned_bytes": node["pinned_bytes"],
            "transport": "tcp",
            "cache_failures": counts["failures"],
            "node": node,
        }
