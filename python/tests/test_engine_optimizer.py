"""Settings chosen by replaying recent traffic: what gains is changed, and nothing else."""

import time
from collections.abc import Sequence

import pytest
from conftest import STORY, ask, small_engine

from kvhive.engine import SeededTransformer, UltraAdaptiveKVCacheEngine
from kvhive.engine.engine import Target
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
