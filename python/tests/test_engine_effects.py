"""Settings of an engine's cache by what they change: which block leaves, when, and what comes up before it is asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LAYOUT, STORY, ask, small_engine

from kvhive.engine import AdaptiveKVCache, BaseKVCache, CachePrefetcher, KVCacheConfig, SeededTransformer, UltraAdaptiveKVCacheEngine
from kvhive.engine.tensors import KV, Float32


def until(is_so: Callable[[], bool], limit: float = 30.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + limit
    while not is_so():
        assert time.monotonic() < end, "it does not come to be so"
        time.sleep(0.01)


def tensors(strategy: str, **given: Any) -> KVCacheConfig:
    """Room for 256 values of up to 16 KiB in one tier, from which only those leave that must."""
    usual: dict[str, Any] = {"max_memory_mb": 4, "block_size": 16, "use_compression": False, "non_blocking": False}
    return KVCacheConfig(cache_strategy=strategy, **(usual | {"enable_prefetch": False, "enable_gc": False} | given))


#: What lossless compression makes little of.
VALUE = np.repeat(np.arange(80), 100).astype(np.float16)


def kept_after_a_scan(strategy: str, **given: Any) -> tuple[int, int, dict[str, Any]]:
    """Returns how many of eight popular values outlive 400 that are stored once, how many of these are there then, and what the cache
    says of itself."""
    with BaseKVCache(tensors(strategy, **given)) as cache:
        for popular in range(8):
            cache.store(popular, VALUE)
        for _ in range(12):
            assert all(cache.retrieve(popular) is not None for popular in range(8))
        for scanned in range(400):
            cache.store(("scanned", scanned), VALUE)
        popular_kept = sum(cache.retrieve(popular) is not None for popular in range(8))
        return popular_kept, sum(cache.retrieve(("scanned", at)) is not None for at in range(400)), cache.get_stats()


def test_recency_lets_the_popular_go_and_frequency_keeps_it() -> None:
    assert kept_after_a_scan("lru")[:2] == kept_after_a_scan("paged")[:2] == (0, 256)
    assert kept_after_a_scan("lfu")[:2] == (8, 248)


def test_a_value_that_was_retrieved_leaves_after_one_that_was_not() -> None:
    with BaseKVCache(tensors("lru")) as cache:
        for at in range(250):
            cache.store(at, VALUE)
        assert cache.retrieve(0) is not None
        for at in range(250, 350):
            cache.store(at, VALUE)
        assert cache.retrieve(0) is not None and cache.retrieve(1) is None


def test_what_is_cold_is_shrunk_before_anything_leaves() -> None:
    _, plain, stats = kept_after_a_scan("lru")
    assert stats["node"]["shrinks"]["done"] == 0
    for strategy in ("compressed", "quantized"):
        _, kept, stats = kept_after_a_scan(strategy)
        assert kept > plain and stats["node"]["shrinks"]["done"] > 0
        blocks = {one["codec"]: one["blocks"] for one in stats["node"]["codecs"]}
        # Nobody has let it round.
        assert blocks["lossless"] > 0 == blocks["int8"] + blocks["int4"] and stats["strategy"] == "compressed"


def test_a_quantized_cache_that_may_round_stores_rounded() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(cache_strategy="quantized", use_quantization=True, use_compression=False)) as engine:
        ask(engine, "rounded " * 20)
        engine.flush()
        blocks = {one["codec"]: one["blocks"] for one in engine.get_stats()["node"]["codecs"]}
        assert blocks["int8"] == 10 and sum(blocks.values()) == 10 and engine.get_stats()["strategy"] == "quantized"


def recent(seed: int, uses: int) -> Iterator[int]:
    """Keys of which the recent ones are likelier by far, and a quarter are new."""
    rng, used = np.random.default_rng(seed), list[int]()
    for at in range(uses):
        key = used[-1 - min(int(rng.exponential(120)), len(used) - 1)] if used and rng.random() < 0.75 else at
        if key in used:
            used.remove(key)
        used.append(key)
        yield key


def test_an_adaptive_cache_changes_its_way_by_the_evidence() -> None:
    with AdaptiveKVCache(tensors("adaptive")) as cache:
        assert cache.get_current_strategy() == "adaptive"
        for at, key in enumerate(recent(seed=1, uses=4000)):
            if cache.retrieve(key) is None:
                cache.store(key, VALUE[:1000])
            if at % 250 == 249:
                choice = cache.adjust_strategy()[0]["choice"]
                if choice["switches"] > 0 and choice["evidence"] >= 1000:
                    break
        rates = {one["ranker"]: one["hit_rate_ppm"] for one in choice["estimates"]}
        # Where recency is all that there is to know, a simple way does as well as what is learnt, or better.
        assert choice["switches"] > 0 and choice["reason"] in {"is_better", "not_behind", "none_is_better"}
        current = cache.get_current_strategy()
        assert current == ("adaptive" if choice["in_charge"] == "learnt" else choice["in_charge"])
        assert rates[choice["in_charge"]] >= rates["learnt"] > 0


def test_a_mode_decides_how_long_what_was_matched_is_held() -> None:
    # Of a match that asks for half a minute, streaming grants a second and bulk twenty.
    prompt = range(64 * LAYOUT.tokens)
    given: dict[str, Any] = {"max_memory_mb": 1, "use_compression": False, "cache_strategy": "lru"}
    with ExitStack() as ends:
        stores, looks = {}, {}
        for mode in ("streaming", "bulk"):
            config = small_engine(cache_mode=mode, enable_prefetch=False, enable_gc=False, **given)
            node = ends.enter_context(UltraAdaptiveKVCacheEngine(config)).backing.node
            client = ends.enter_context(node.client(hold=30.0))
            space = client.namespace("held", LAYOUT)
            held = space.keys(prompt)
            client.store_from(held, bytes(len(held) * LAYOUT.block_bytes))
            assert client.match(held).covered == 64
            stores[mode] = (client, space)
            looks[mode] = ends.enter_context(node.client(hold=0.001))
        turns = iter(range(1 << 20))

        def covered(mode: str) -> int:
            return looks[mode].match(looks[mode].namespace("held", LAYOUT).keys(prompt)).covered

        def more() -> bool:
            turn = next(turns)
            for client, space in stores.values():
                # More than there is room for.
                for at in range(20):
                    client.store_from(space.keys([1 + turn * 20 + at] * 256), bytes(16 * LAYOUT.block_bytes))
            return covered("streaming") < 64

        until(more, limit=15)
        assert covered("bulk") == 64


def prefetched(**given: Any) -> tuple[int, int]:
    """Has fourteen prompts be served and then be brought up, of which the older lie in the lower tier, while the collection has left frames
    free in the upper one. Returns how many of their blocks were asked for, and how many bytes the lower tier has."""
    config = small_engine(max_memory_mb=1, use_compression=False, cache_strategy="lru", gc_threshold=0.5, **given)
    prompts = [f"{at:03} " * 60 for at in range(14)]
    with UltraAdaptiveKVCacheEngine(config) as engine:
        for prompt in prompts:
            ask(engine, prompt, max_new_tokens=1)
        engine.flush()
        until(lambda: engine.get_stats()["node"]["collections"]["runs"] > 0)
        prefetcher = CachePrefetcher(engine)
        there = [prompt for prompt in prompts if prefetcher.prefetch([prompt]) > 0]
        assert there
        if config.enable_prefetch:
            until(lambda: engine.get_stats()["node"]["promoted"] > 0)
        asked = prefetcher.get_prefetch_stats()["asked"]

        def is_used() -> bool:
            for prompt in there:
                prefetcher.prefetch([prompt])
                ask(engine, prompt, max_new_tokens=1)
            return prefetcher.get_prefetch_stats()["useful"] > 0

        if config.enable_prefetch:
            # What has come up may be collected again before it is asked for.
            until(is_used)
        return asked, engine.get_stats()["node"]["host"]["capacity_bytes"]


def test_more_comes_up_the_more_is_said_and_nothing_where_none_should() -> None:
    (few, below), (many, _) = prefetched(prefetch_size=1), prefetched(prefetch_size=15)
    assert 0 < few < many and below > 0
    assert prefetched(enable_prefetch=False) == (0, 0)


def test_memory_is_freed_down_to_the_threshold_that_is_said() -> None:
    given: dict[str, Any] = {"max_memory_mb": 1, "use_compression": False, "cache_strategy": "lru", "enable_prefetch": False}
    filled = {}
    for threshold in (0.4, 0.8):
        with UltraAdaptiveKVCacheEngine(small_engine(gc_threshold=threshold, **given)) as engine:
            for at in range(30):
                ask(engine, f"{at:03} " * 60, max_new_tokens=1)
            engine.flush()

            def share(engine: UltraAdaptiveKVCacheEngine = engine) -> float:
                return float(engine.get_stats()["memory_utilization"])

            until(lambda: share() <= threshold)
            filled[threshold] = share()
    # It frees down to a twentieth below the threshold, and not much more.
    assert 0.3 < filled[0.4] <= 0.4 < 0.7 < filled[0.8] <= 0.8


def test_shape_and_elements_decide_what_a_block_is_and_takes() -> None:
    answers = {}
    for given in ({}, {"num_heads": 4}, {"head_dim": 32}, {"num_layers": 3}, {"dtype": "float32"}, {"block_size": 32}):
        config = small_engine(use_compression=False, **given)
        with UltraAdaptiveKVCacheEngine(config) as engine:
            answers[str(given)] = ask(engine, "shaped " * 20)["result"]
            engine.flush()
            stored = engine.get_stats()["node"]["codecs"][0]
            assert (stored["codec"], stored["blocks"]) == ("raw", 140 // config.block_size)
            assert stored["raw_bytes"] == stored["blocks"] * config.block_bytes
    # Another shape is another model; how a prompt is cut changes no more than a rounding.
    assert len({answers[given] for given in answers if "block_size" not in given}) >= 4


def test_who_waits_for_stores_finds_them_made() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(non_blocking=False, use_compression=False, enable_profiling=True)) as engine:
        answer = ask(engine, "waited for " * 10)
        # Nobody has flushed.
        assert engine.get_stats()["node"]["codecs"][0]["blocks"] == 110 // 16 and answer["metadata"]["profile"]["store"] > 0


#: A cluster in a process of its own, until it has nothing more to read.
ELSEWHERE = """
import json, sys
import kvhive
with kvhive.EmbeddedNode(memory=16 << 20, block_bytes=[4096, 8192]) as node:
    print(json.dumps([node.coordinators, node.token.decode()]), flush=True)
    sys.stdin.read()
"""


class Stopping(SeededTransformer):
    """Has a process stand still once it computes: after its engine was told what is there, and before it stores."""

    def __init__(self, config: KVCacheConfig, process: int) -> None:
        super().__init__(config)
        self._process: int | None = process

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        if self._process is not None:
            os.kill(self._process, signal.SIGSTOP)
            os.waitpid(self._process, os.WUNTRACED)
            self._process = None
        return super().prefill(tokens, past)


@pytest.mark.parametrize("waits", [False, True])
def test_an_answer_waits_for_stores_only_where_that_is_said(waits: bool, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            coordinators, token = json.loads(process.stdout.readline())
            (tmp_path / "token").write_text(token)
            member: dict[str, Any] = {"enable_distributed": True, "cluster_address": ",".join(coordinators), "token_file": tmp_path / "token"}
            config = small_engine(non_blocking=not waits, use_compression=False, **member)
            with UltraAdaptiveKVCacheEngine(config, model=Stopping(config, process.pid)) as engine:
                # Some of so many blocks are the other's, which does not take them.
                ask(engine, STORY * 5, max_new_tokens=1)
                failures = engine.get_stats()["cache_failures"]
                process.send_signal(signal.SIGCONT)
                assert (failures > 0) is waits
        finally:
            process.kill()
