"""What other settings would have made of recent traffic: the requests are replayed against each, with costs measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from kvhive import Layout
from kvhive.codec import Codec, decode, encode
from kvhive.simulate import replay

from .config import CacheStrategy
from .history import Served
from .tensors import KV

Target = Literal["latency", "memory", "throughput"]

#: Fewer requests say nothing.
_LEAST_REQUESTS = 2
#: What is better by less than this share is not worth a change.
_LEAST_GAIN = 0.01
#: How often costs are measured: by how much a gain varies among these, so much of it may be chance.
_MEASUREMENTS = 5


@dataclass(frozen=True)
class Sample:
    """Recent traffic, and what it lay in."""

    served: list[Served]
    blocks: list[KV]
    layout: Layout
    #: Frames by the bytes of one, growing.
    frames: dict[int, int]
    #: Whether no request waits until its blocks are stored.
    is_behind: bool
    #: Seconds that fetching a block takes where no request fetched one; None where that is not known either.
    fetch_seconds: float | None


@dataclass(frozen=True)
class _Codec:
    """What a codec comes to, measured on recent blocks."""

    frame_bytes: int
    capacity: int
    encode_seconds: float
    decode_seconds: float
    #: What a request waits for at each block that it computes.
    rounding_seconds: float


@dataclass(frozen=True)
class _Costs:
    """One measurement: seconds of a block as it is stored now, and codecs."""

    compute: float
    fetch: float
    store: float
    codecs: dict[str, _Codec]


@dataclass
class _Candidate:
    setting: dict[str, str]
    #: One for each measurement; and by how much it is better than what is set now.
    figures: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    gain: float = 0.0

    @property
    def figure(self) -> float:
        return float(np.median(self.figures))

    @property
    def spread(self) -> float:
        return max(self.gains) - min(self.gains)


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
        "advised": {},
        "improvement_percentage": 0.0,
        "spread_percentage": 0.0,
        "measurements": _MEASUREMENTS,
        "unit": unit,
        "before": None,
        "after": None,
        "replayed_requests": len(sample.served),
        "candidates": [],
    }
    if len(sample.served) < _LEAST_REQUESTS or not sample.blocks:
        return report
    measured = [_costs(sample, codecs, at) for at in range(_MEASUREMENTS)]
    if now["codec"] not in measured[0].codecs:
        return report
    candidates = [_Candidate(setting) for setting in _settings(target, now, list(measured[0].codecs))]
    current = next(one for one in candidates if one.setting == now)
    replays: dict[tuple[str, int], list[int]] = {}
    for costs in measured:
        for one in candidates:
            one.figures.append(_figure(target, one.setting, now, sample, costs, replays))
        for one in candidates:
            one.gains.append(_gain(target, current.figures[-1], one.figures[-1]))
    for one in candidates:
        one.gain = _gain(target, current.figure, one.figure)
    best = _best(candidates, now)
    shown = best or max(candidates, key=lambda one: one.gain)
    report["candidates"] = [{**one.setting, "figure": one.figure, "spread_percentage": 100 * one.spread} for one in candidates]
    report["spread_percentage"] = 100 * shown.spread
    report["before"] = report["after"] = current.figure
    if best is not None:
        report["after"] = best.figure
        report["improvement_percentage"] = 100 * best.gain
        report["advised"] = {name: {"from": now[name], "to": best.setting[name]} for name in _changes(best, now)}
    return report


def _settings(target: Target, now: dict[str, str], codecs: Sequence[str]) -> list[dict[str, str]]:
    settings: list[dict[str, str]] = []
    for codec in codecs:
        for strategy in CacheStrategy:
            # It may round what was stored exactly, and nobody asked for that.
            if strategy is CacheStrategy.QUANTIZED and strategy.value != now["cache_strategy"]:
                continue
            # What a block takes depends on its codec alone.
            if target == "memory" and strategy.value != now["cache_strategy"]:
                continue
            settings.append({"cache_strategy": strategy.value, "codec": codec})
    return settings


def _best(candidates: Sequence[_Candidate], now: dict[str, str]) -> _Candidate | None:
    """Returns what is surely better than what is set now; of those that are as good as the best, what changes least."""
    sure = [one for one in candidates if one.gain >= _LEAST_GAIN and one.gain > one.spread]
    if not sure:
        return None
    best = max(sure, key=lambda one: one.gain)
    as_good = [one for one in sure if one.gain >= best.gain - max(best.spread, _LEAST_GAIN)]
    return min(as_good, key=lambda one: (len(_changes(one, now)), -one.gain))


def _changes(candidate: _Candidate, now: dict[str, str]) -> list[str]:
    return [name for name in now if candidate.setting[name] != now[name]]


def _gain(target: Target, before: float, after: float) -> float:
    return (after - before) / before if target == "throughput" else (before - after) / before


def _costs(sample: Sample, codecs: Sequence[Codec], number: int) -> _Costs:
    """Makes one of several measurements: of codecs anew, of the rest by some of the requests."""
    # Each request is in one measurement; where none of these has a figure, all have.
    some = sample.served[number::_MEASUREMENTS]

    def median(name: str) -> float | None:
        for served in (some, sample.served):
            if values := [value for one in served if (value := getattr(one, name)) is not None]:
                return float(np.median(values))
        return None

    compute = median("compute_seconds") or 0.0
    fetch = median("fetch_seconds")
    if fetch is None:
        # Where it is not known at all what a block found saves, it saves nothing.
        fetch = compute if sample.fetch_seconds is None else sample.fetch_seconds
    known: dict[str, _Codec] = {codec: cost for codec in codecs if (cost := _measured(codec, sample)) is not None}
    return _Costs(compute, fetch, median("store_seconds") or 0.0, known)


def _measured(codec: Codec, sample: Sample) -> _Codec | None:
    """Measures a codec on recent blocks; None where its blocks do not fit any frame."""
    stored_bytes: list[int] = []
    encode_seconds = decode_seconds = 0.0
    for block in sample.blocks:
        if codec == "raw":
            stored_bytes.append(block.nbytes)
            continue
        begun = time.perf_counter()
        stored = encode(codec, sample.layout, block)
        encoded = time.perf_counter()
        decode(codec, sample.layout, stored, np.empty_like(block))
        decode_seconds += time.perf_counter() - encoded
        encode_seconds += encoded - begun
        stored_bytes.append(len(stored))
    typical = int(np.median(stored_bytes))
    fitting = [frame for frame in sample.frames if frame >= typical]
    if not fitting:
        return None
    count = len(sample.blocks)
    encode_seconds, decode_seconds = encode_seconds / count, decode_seconds / count
    # A request goes on with what comes back of a block, where that is not what was stored.
    rounding = 0.0 if codec in ("raw", "lossless") else encode_seconds + decode_seconds
    return _Codec(min(fitting), sample.frames[min(fitting)], encode_seconds, decode_seconds, rounding)


def _figure(
    target: Target,
    setting: dict[str, str],
    now: dict[str, str],
    sample: Sample,
    costs: _Costs,
    replays: dict[tuple[str, int], list[int]],
) -> float:
    """Says how recent requests would have done with a setting."""
    codec, codec_now = costs.codecs[setting["codec"]], costs.codecs[now["codec"]]
    if target == "memory":
        return float(codec.frame_bytes)
    of = setting["cache_strategy"], codec.capacity
    if of not in replays:
        replays[of] = replay([one.keys for one in sample.served], *of)
    # What was measured includes codecs as they are used now.
    fetch = max(0.0, costs.fetch + codec.decode_seconds - codec_now.decode_seconds)
    compute = costs.compute + codec.rounding_seconds - codec_now.rounding_seconds
    waits = 0.0 if sample.is_behind else codec.encode_seconds - codec_now.encode_seconds
    new_seconds = max(0.0, compute + costs.store + waits)
    seconds: list[float] = []
    stored = 0
    for one, covered in zip(sample.served, replays[of], strict=True):
        found = min(covered, one.most)
        new = len(one.keys) - found
        stored += new
        seconds.append(found * fetch + new * new_seconds + one.rest_seconds)
    if target == "latency":
        return float(np.percentile(seconds, 95)) * 1e3
    # One thread stores behind all requests: it can be what the others wait for.
    behind = stored * codec.encode_seconds if sample.is_behind else 0.0
    return len(seconds) / max(sum(seconds), behind, 1e-9)
