"""What runs an engine's cache: forecasts, prefetching, scaling and balancing."""

import asyncio
import socket
from typing import Any, cast

import kvhive
import numpy as np
import pytest
from conftest import STORY, ask, small_engine

from kvhive.engine import (
    AutoScaler,
    BaseKVCache,
    CachePrefetcher,
    MultiGPULoadBalancer,
    UltraAdaptiveKVCacheEngine,
    WorkloadPredictor,
    create_kv_cache_engine,
)
from kvhive.engine import admin
from kvhive.simulate import replay


def test_a_replay_counts_what_each_request_finds() -> None:
    keys = [bytes([at] * 32) for at in range(4)]
    assert replay([keys[:2], keys[:3], keys[:1]], "lru", 8) == [0, 2, 1]
    bad: list[tuple[list[list[bytes]], str, int]] = [([[b"short"]], "lru", 8), ([keys], "clock", 8), ([keys], "lru", 0)]
    for requests, strategy, capacity in bad:
        with pytest.raises(kvhive.MisuseError, match="32|clock|capacity"):
            replay(requests, strategy, capacity)


def test_forecasts_follow_the_hours_of_the_day() -> None:
    predictor = WorkloadPredictor()
    assert predictor.predict_next_workload() == {}
    step = predictor.step_seconds
    noise = np.random.default_rng(3)
    for at in range(6 * 86_400 // step):
        # Most at noon, least at midnight.
        day = np.sin(np.pi * (at * step % 86_400) / 86_400) ** 2
        asked = int((1_000 + 50_000 * day) * noise.uniform(0.9, 1.1))
        assert predictor.update_pattern(asked, asked // 2, asked * 100, at=at * step)
    assert not predictor.update_pattern(1, 1, 1, at=0)
    steps_of_hour = 3600 // step
    night, noon = (predictor.predict_next_workload(hours * steps_of_hour)["rate"] for hours in (1, 12))
    assert noon["value"] > 5 * night["value"] and noon["low"] <= noon["value"] <= noon["high"]
    assert predictor.predict_next_workload()["reuse"]["value"] == pytest.approx(0.5, abs=0.1)
    assert predictor.predict_next_workload()["rate"]["season_seconds"] == 86_400
    for name, given in (("asked", (-1, 0, 0)), ("covered", (1, 2, 0)), ("new_bytes", (1, 1, -5))):
        with pytest.raises(ValueError, match=name):
            predictor.update_pattern(*given)
    with pytest.raises(ValueError, match="steps is 0"):
        predictor.predict_next_workload(0)


def test_a_predictor_learns_from_an_engine() -> None:
    predictor = WorkloadPredictor()
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        for _ in range(4):
            ask(engine, STORY)
        assert predictor.observe(engine)
        assert predictor.predict_next_workload()["reuse"]["value"] == pytest.approx(0.66, abs=0.05)


def test_prefetching_says_what_is_there_and_what_became_of_it() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(enable_prefetch=True, prefetch_size=8)) as engine:
        prefetcher = CachePrefetcher(engine)
        assert prefetcher.prefetch([STORY, "short"]) == 0
        ask(engine, STORY)
        engine.flush()
        assert prefetcher.prefetch([STORY, "short"]) == 5
        assert set(prefetcher.get_prefetch_stats()) == {"asked", "useful", "wasted", "late", "cancelled"}
        assert engine.backing.prefetch_blocks == 8
        with pytest.raises(kvhive.WrongTypeError, match="prompts in a list are allowed"):
            prefetcher.prefetch(STORY)
    with UltraAdaptiveKVCacheEngine(small_engine(enable_prefetch=False)) as engine:
        assert engine.backing.prefetch_blocks == 0


def test_an_engine_grows_by_nodes_and_shrinks_without_losing_blocks() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        ask(engine, STORY)
        engine.flush()
        scaler = AutoScaler(engine)
        recommended = scaler.get_recommended_scaling()
        assert (recommended["current"], recommended["action"]) == (1, "none") and recommended["reason"]
        assert scaler.scale_up() == 2
        balancer = MultiGPULoadBalancer(engine)
        assert len(balancer.get_gpu_stats()) == 2
        report = balancer.balance_load(dry_run=True)
        assert report["applied"] is False and isinstance(report["changes"], list)
        ask(engine, STORY[::-1])
        engine.flush()
        assert scaler.scale_down() == 1
        assert ask(engine, STORY)["cache_hit"] and ask(engine, STORY[::-1])["cache_hit"]
        with pytest.raises(ValueError, match="the first one stays"):
            scaler.scale_down()
        with pytest.raises(ValueError, match="nodes is 0"):
            scaler.scale_up(0)
        with pytest.raises(ValueError, match="more than 1, which are the most"):
            AutoScaler(engine, most=1).scale_up()
    with pytest.raises(ValueError, match="most is 0"):
        AutoScaler(engine, most=0)


def test_what_is_no_engine_or_no_configuration_is_refused() -> None:
    takers: list[Any] = [create_kv_cache_engine, UltraAdaptiveKVCacheEngine, BaseKVCache]
    for take in takers:
        with pytest.raises(kvhive.WrongTypeError, match=r"config is \{'num_heads': 2\}: a KVCacheConfig or None is allowed"):
            take({"num_heads": 2})
    made: list[Any] = [AutoScaler, MultiGPULoadBalancer, CachePrefetcher, WorkloadPredictor, WorkloadPredictor().observe]
    for take in made:
        with pytest.raises(kvhive.WrongTypeError, match="engine is 5: an UltraAdaptiveKVCacheEngine is allowed"):
            take(5)


def test_arguments_of_a_wrong_type_are_named() -> None:
    wrong: Any = 5
    with pytest.raises(kvhive.WrongTypeError, match="model is of int, which has no fingerprint, tokenize, "):
        UltraAdaptiveKVCacheEngine(small_engine(), model=wrong)
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        for call, why in (
            (lambda: engine.covered(wrong), "text is 5: text is allowed"),
            (lambda: engine.end_session(wrong), "session_id is 5: text is allowed"),
            (lambda: engine.persist(wrong), "path is 5: a path or None is allowed"),
            (lambda: ask(engine, "half \ud800"), "text has .* at 5: half of a character"),
            (lambda: ask(engine, STORY, priority=1 << 32), "a whole number from -4294967295 to 4294967295 is allowed"),
        ):
            with pytest.raises(kvhive.MisuseError, match=why):
                call()
        with pytest.raises(kvhive.MisuseError, match="batch_size is 'ten': a whole number of 1 and more"):
            asyncio.run(engine.process_batch_optimized([], batch_size=cast(int, "ten")))
    with pytest.raises(kvhive.ClosedError, match="the engine has been closed"):
        engine.covered(STORY)


def test_an_admin_api_that_is_gone_is_unreachable() -> None:
    with socket.socket() as taken:
        # Bound and not listened at: nobody else's, and refused.
        taken.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(kvhive.UnreachableError, match=f"GET /v1/scaling at {gone}"):
            admin.ask(gone, b"token", None, "/v1/scaling")
