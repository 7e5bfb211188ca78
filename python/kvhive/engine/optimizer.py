"""What other settings would have made of recent traffic: the requests are replayed against each, with costs measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from kvhive import Layout
from kvhive.codec import Codec, decode, encode
from kvhive.simulate import replay

from .config import CacheStrategy
from .tensors import KV

Target = Literal["latency", "memory", "throughput"]

#: Fewer requests say nothing.
_LEAST_REQUESTS = 2
#: What is better by less than this share is not worth a change.
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Served:
    """What one request was and took."""

    keys: list[bytes]
    found: int
    #: Seconds that a block took to compute.
    compute_seconds: float
    #: Seconds that a found block took to come; None where none was found.
    fetch_seconds: float | None
    #: Seconds that the answer and all else took.
    rest_seconds: float


@dataclass(frozen=True)
class Sample:
    """Recent traffic, and what it lay in."""

    served: list[Served]
    blocks: list[KV]
    layout: Layout
    #: Frames by the bytes of one, growing.
    frames: dict[int, int]


@dataclass(frozen=True)
class _Costs:
    """What a codec comes to, measured on recent blocks."""

    frame_bytes: int
    capacity: int
    encode_seconds: float
    decode_seconds: float


def optimize(target: Target, now: dict[str, str], sample: Sample, codecs: Sequence[Codec]) -> dict[str, Any]:
    """Compares settings on recent traffic; see the engine's method of this name.

    :param now: ``cache_strategy`` and ``codec``.
    :param codecs: codecs that may be taken.
    :raises ValueError: when the target is unknown.
    """
    if target not in get_args(Target):
        raise ValueError(f"target is {target!r}: one of {', '.join(map(repr, get_args(Target)))} is allowed")
    unit = {"latency": "ms of a request, 95th percentile", "throughput": "requests/s", "memory": "bytes of a block"}[target]
    report: dict[str, Any] = {
        "target": target,
        "changed": {},
        "improvement_percentage": 0.0,
        "unit": unit,
        "before": None,
        "after": None,
        "replayed_requests": len(sample.served),
        "candidates": [],
    }
    if len(sample.served) < _LEAST_REQUESTS or not sample.blocks:
        return report
    costs: dict[str, _Costs] = {codec: cost for codec in codecs if (cost := _measured(codec, sample)) is not None}
    if now["codec"] not in costs:
        return report
    scored: list[tuple[float, dict[str, str]]] = []
    for codec, cost in costs.items():
        for strategy in CacheStrategy:
            # It may round what was stored exactly, and nobody asked for that.
            if strategy is CacheStrategy.QUANTIZED and strategy.value != now["cache_strategy"]:
                continue
            setting = {"cache_strategy": strategy.value, "codec": codec}
            # What a block takes depends on its codec alone.
            if target == "memory" and strategy.value != now["cache_strategy"]:
                continue
            figure = float(cost.frame_bytes) if target == "memory" else _replayed(target, setting, sample, cost, costs[now["codec"]])
            scored.append((figure, setting))
    before = next(figure for figure, setting in scored if setting == now)
    more_is_better = target == "throughput"
    after, best = (max if more_is_better else min)(scored, key=lambda one: one[0])
    gain = (after - before) / before if more_is_better else (before - after) / before
    report["candidates"] = [{**setting, "figure": figure} for figure, setting in scored]
    report["before"], report["after"] = before, before
    if gain >= _LEAST_GAIN:
        report["after"] = after
        report["improvement_percentage"] = 100 * gain
        report["changed"] = {
            name: {"from": now[name], "to": best[name]} for name in now if now[name] != best[name]
        }
    return report


def _measured(codec: Codec, sample: Sample) -> _Costs | None:
    """Measures a codec on recent blocks; None where its blocks do not fit any frame."""
    stored_bytes: list[int] = []
    encode_seconds = decode_seconds = 0.0
    for block in sample.blocks:
        begun = time.perf_counter()
        stored = block.tobytes() if codec == "raw" else encode(codec, sample.layout, block)
        encoded = time.perf_counter()
        if codec != "raw":
            decode(codec, sample.layout, stored, np.empty_like(block))
        decode_seconds += time.perf_counter() - encoded
        encode_seconds += encoded - begun
        stored_bytes.append(len(stored))
    typical = int(np.median(stored_bytes))
    fitting = [frame for frame in sample.frames if frame >= typical]
    if not fitting:
        return None
    count = len(sample.blocks)
    return _Costs(min(fitting), sample.frames[min(fitting)], encode_seconds / count, decode_seconds / count)


def _replayed(target: Target, setting: dict[str, str], sample: Sample, cost: _Costs, cost_now: _Costs) -> float:
    """Replays recent requests against a setting."""
    hits = replay([one.keys for one in sample.served], setting["cache_strategy"], cost.capacity)
    fetches = [one.fetch_seconds for one in sample.served if one.fetch_seconds is not None]
    # What was measured includes decoding as it is done now.
    fetch = (float(np.median(fetches)) if fetches else 0.0) + cost.decode_seconds - cost_now.decode_seconds
    compute = float(np.median([one.compute_seconds for one in sample.served])) + cost.encode_seconds - cost_now.encode_seconds
    seconds = [
        found * max(fetch, 0.0) + (len(one.keys) - found) * max(compute, 0.0) + one.rest_seconds
        for one, found in zip(sample.served, hits, strict=True)
    ]
    if target == "throughput":
        return len(seconds) / max(sum(seconds), 1e-9)
    return float(np.percentile(seconds, 95)) * 1e3
