"""Settings chosen by replaying recent traffic: what gains is changed, and nothing else."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import kvhive
import numpy as np
import pytest
from conftest import STORY, ask, small_engine

from kvhive.engine import SeededTransformer, UltraAdaptiveKVCacheEngine
from kvhive.engine.history import Served
from kvhive.engine.optimizer import Sample, Target, optimize
from kvhive.engine.tensors import KV, Float32


class Slow(SeededTransformer):
    """Takes as long as larger ones do: what a block costs is far from what it costs to fetch one, however busy the host is."""

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        time.sleep(0.01)
        return super().prefill(tokens, past)


def cyclic(engine: UltraAdaptiveKVCacheEngine, prompts: int, turns: int) -> None:
    """Asks the same prompts again and again, in the same order."""
    for _ in range(turns):
        for at in range(prompts):
            ask(engine, f"{at:03} " * 60, max_new_tokens=1)


def test_optimize_changes_what_loses_a_loop_larger_than_the_cache() -> None:
    # Of 64 blocks' room and prompts of 15 blocks: recency has let go of each just before it comes back, and a part could have stayed.
    config = small_engine(num_layers=8, max_memory_mb=1, cache_strategy="lru", use_compression=False)
    with UltraAdaptiveKVCacheEngine(config, model=Slow(config)) as engine:
        cyclic(engine, prompts=6, turns=4)
        report = engine.optimize("throughput")
        assert report["replayed_requests"] == 24 and report["unit"] == "requests/s"
        # All but the one that might round.
        assert len(report["candidates"]) == 5
        assert report["changed"] == report["advised"] == {"cache_strategy": {"from": "lru", "to": "adaptive"}}
        assert report["improvement_percentage"] == pytest.approx(100 * (report["after"] / report["before"] - 1))
        assert report["improvement_percentage"] > 10 and report["improvement_percentage"] > report["spread_percentage"]
        assert report["unreachable_blocks"] == 0 and engine.get_stats()["strategy"] == "adaptive"


@pytest.mark.parametrize("target", ["latency", "throughput", "memory"])
def test_optimize_changes_nothing_where_all_find_the_same(target: Target) -> None:
    config = small_engine(cache_strategy="lfu", use_compression=False)
    with UltraAdaptiveKVCacheEngine(config) as engine:
        cyclic(engine, prompts=5, turns=4)
        report = engine.optimize(target)
        assert report["changed"] == report["advised"] == {} and report["improvement_percentage"] == 0
        assert report["after"] == report["before"] > 0 and engine.get_stats()["strategy"] == "lfu"
        assert len({one["figure"] for one in report["candidates"]}) == 1


def sample_of(**given: Any) -> Sample:
    """Twenty requests for the same eight blocks, with costs that a test says."""
    keys = [bytes([at] * 32) for at in range(8)]
    costs: dict[str, Any] = {"compute_seconds": 1e-3, "fetch_seconds": 1e-4, "store_seconds": 1e-5, "rest_seconds": 1e-3}
    served = [Served(keys, 8, **(costs | given.pop("costs", {}))) for _ in range(20)]
    layout = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="float16")
    block = np.random.default_rng(1).standard_normal((2, 2, 16, 2, 16)).astype(np.float16)
    usual: dict[str, Any] = {"served": served, "blocks": [block], "layout": layout, "frames": {layout.block_bytes: 4}}
    return Sample(**(usual | {"is_behind": True, "fetch_seconds": None} | given))


def test_of_settings_that_do_as_well_the_one_that_is_set_stays() -> None:
    for strategy in ("lru", "compressed", "paged"):
        now = {"cache_strategy": strategy, "codec": "raw"}
        report = optimize("latency", now, sample_of(frames={4096: 64}), ["raw"])
        assert report["advised"] == {} and len({one["figure"] for one in report["candidates"]}) == 1


def test_where_nobody_knows_what_a_found_block_saves_nothing_is_claimed() -> None:
    now = {"cache_strategy": "lru", "codec": "raw"}
    unknown = optimize("throughput", now, sample_of(costs={"fetch_seconds": None}), ["raw"])
    assert unknown["advised"] == {} and unknown["improvement_percentage"] == 0
    measured = optimize("throughput", now, sample_of(costs={"fetch_seconds": None}, fetch_seconds=1e-4), ["raw"])
    assert measured["before"] is not None and measured["spread_percentage"] == 0


def test_what_varies_more_than_it_gains_is_no_gain() -> None:
    # Six prompts in a loop, of which four have room: what is kept of it gains, as long as fetching is surely cheaper than computing.
    prompts = [[bytes([prompt, at]) + bytes(30) for at in range(15)] for prompt in range(6)]
    now = {"cache_strategy": "lru", "codec": "raw"}
    advised = {}
    for varies in (0.0, 3e-4):
        served = [
            Served(prompts[at % 6], 15, compute_seconds=1e-3, fetch_seconds=1e-4 + at % 5 * varies, store_seconds=0.0, rest_seconds=0.0)
            for at in range(60)
        ]
        report = optimize("throughput", now, sample_of(served=served, frames={4096: 64}), ["raw"])
        advised[varies] = report["advised"]
        gain = 100 * (max(one["figure"] for one in report["candidates"]) / report["before"] - 1)
        assert gain > 10 and (report["spread_percentage"] > gain) is (varies > 0)
    assert advised == {0.0: {"cache_strategy": {"from": "lru", "to": "adaptive"}}, 3e-4: {}}


def test_a_request_does_not_pay_for_what_is_stored_behind_it() -> None:
    # A codec costs those that wait for the store, and not those that do not: all miss here, so that nothing is decoded.
    keys = iter(range(1 << 20))
    served = [
        replace(one, keys=[next(keys).to_bytes(32, "big") for _ in range(8)], fetch_seconds=None) for one in sample_of().served
    ]
    figures = {}
    for is_behind in (True, False):
        sample = sample_of(served=served, is_behind=is_behind, frames={4096: 64})
        report = optimize("latency", {"cache_strategy": "lru", "codec": "raw"}, sample, ["raw", "lossless"])
        assert report["advised"] == {}
        figures[is_behind] = {(one["codec"], one["cache_strategy"]): one["figure"] for one in report["candidates"]}
    assert figures[True]["lossless", "lru"] == figures[True]["raw", "lru"] == figures[False]["raw", "lru"]
    assert figures[False]["lossless", "lru"] > figures[False]["raw", "lru"]


def test_optimize_for_memory_takes_a_denser_codec_that_is_allowed() -> None:
    given = {"compression_ratio": 1.0, "cache_strategy": "compressed", "use_quantization": True}
    with UltraAdaptiveKVCacheEngine(small_engine(**given)) as engine:
        assert engine.optimize("memory")["changed"] == {}
        for _ in range(3):
            ask(engine, STORY)
        report = engine.optimize("memory")
        assert report["changed"] == {"codec": {"from": "raw", "to": "int8"}}
        # What is stored exactly goes by other keys than what is rounded, and is not found any more.
        assert report["unreachable_blocks"] == 5 and not ask(engine, STORY)["cache_hit"]
        assert report["improvement_percentage"] == pytest.approx(25)
        assert engine.optimize("memory")["changed"] == {}
        ask(engine, STORY[::-1])
        engine.flush()
        stored = {one["codec"]: one["blocks"] for one in engine.get_stats()["node"]["codecs"]}
        assert stored["int8"] > 0 and stored["raw"] > 0


def test_optimize_knows_its_targets() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        with pytest.raises(ValueError, match="'latency', 'memory', 'throughput'"):
            engine.optimize("beauty")  # type: ignore[arg-type]
        # Nothing was served: nothing is claimed.
        report = engine.optimize("latency")
        assert (report["changed"], report["improvement_percentage"], report["before"]) == ({}, 0.0, None)
