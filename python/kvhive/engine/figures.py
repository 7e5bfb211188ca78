"""What an engine has done, as its ``get_stats`` says it."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from .backing import memory_used
from .counts import share


class Figures(TypedDict):
    """What ``get_stats`` of an engine says."""

    total_requests: int
    cache_hits: int
    cache_misses: int
    hit_rate: float
    avg_latency: float
    p50_latency: float
    p95_latency: float
    p99_latency: float
    memory_usage: int
    gpu_utilization: float
    gpu_utilization_of: Literal["gpu", "memory"]
    memory_utilization: float
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    token_hit_rate: float
    compression_ratio: float
    strategy: str
    pinned_bytes: int
    transport: str
    cache_failures: int
    is_resting: bool
    #: All that the node says of itself.
    node: dict[str, Any]


def figures(engine: dict[str, float], node: dict[str, Any], strategy: str) -> Figures:
    """Returns what an engine counts together with what its node says of itself."""
    filled = float(node["device_utilization"])
    busy: float | None = node["gpu_utilization"]
    requests, hits = int(engine["requests"]), int(engine["hits"])
    prompt_tokens, cached_tokens = int(engine["prompt_tokens"]), int(engine["cached_tokens"])
    stored = sum(one["stored_bytes"] for one in node["codecs"])
    raw = sum(one["raw_bytes"] for one in node["codecs"])
    return {
        "total_requests": requests,
        "cache_hits": hits,
        "cache_misses": requests - hits,
        "hit_rate": share(hits, requests),
        "avg_latency": engine["avg"],
        "p50_latency": engine["p50"],
        "p95_latency": engine["p95"],
        "p99_latency": engine["p99"],
        "memory_usage": memory_used(node),
        "gpu_utilization": filled if busy is None else busy,
        "gpu_utilization_of": "memory" if busy is None else "gpu",
        "memory_utilization": filled,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "computed_tokens": prompt_tokens - cached_tokens,
        "generated_tokens": int(engine["generated_tokens"]),
        "token_hit_rate": share(cached_tokens, prompt_tokens),
        "compression_ratio": stored / raw if raw else 1.0,
        "strategy": strategy,
        "pinned_bytes": node["pinned_bytes"],
        "transport": _transport(node),
        "cache_failures": int(engine["cache_failures"]),
        "is_resting": bool(engine["is_resting"]),
        "node": node,
    }


def _transport(node: dict[str, Any]) -> str:
    """Returns by which way most bytes have gone to other devices; none where none have."""
    ways = [way for way in node["transports"] if way["bytes"]]
    return str(max(ways, key=lambda way: int(way["bytes"]))["transport"]) if ways else "none"
