"""Requests with a cache: what they have in common is computed once, and answers are what they would be without it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import STORY, ask, small_engine

import kvhive
from kvhive.engine import (
    Answer,
    AutoScaler,
    CachePrefetcher,
    KVCacheConfig,
    SeededTransformer,
    TruthGPTIntegration,
    UltraAdaptiveKVCacheEngine,
    create_kv_cache_engine,
)
from kvhive.engine.tensors import KV, Float32


class Watched(SeededTransformer):
    """Counts the prompt tokens that it computes, and waits where it is told to."""

    def __init__(self, config: KVCacheConfig) -> None:
        super().__init__(config)
        self.computed: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()

    def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
        self.began.set()
        assert self.may_go.wait(120)
        self.computed += tokens
        return super().prefill(tokens, past)

    def decode(self, token: int, past: KV) -> tuple[KV, Float32]:
        return super().prefill([token], past)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"use_compression": False, "non_blocking": False},
        {"use_quantization": True},
        {"use_quantization": True, "quantization_bits": 4},
        {"dtype": "bfloat16"},
        {"dtype": "float32", "cache_strategy": "lru"},
        {"cache_strategy": "compressed", "use_compression": False},
        {"cache_strategy": "quantized"},
        {"cache_strategy": "paged", "cache_mode": "training"},
    ],
    ids=str,
)
def test_cached_and_uncached_answers_are_equal(given: dict[str, Any]) -> None:
    config = small_engine(**given)
    prompts = [STORY + "Who", STORY + "What", STORY * 3, STORY]
    with UltraAdaptiveKVCacheEngine(config) as engine:
        cold = [ask(engine, prompt) for prompt in prompts]
        engine.flush()
        warm = [ask(engine, prompt) for prompt in prompts]
    assert not cold[0]["cache_hit"] and all(answer["cache_hit"] for answer in warm)
    for prompt, one, again in zip(prompts, cold, warm, strict=True):
        # Nobody has computed anything for this engine.
        with UltraAdaptiveKVCacheEngine(config) as fresh:
            alone = ask(fresh, prompt)
        assert one["result"] == again["result"] == alone["result"] != ""
        whole = (len(prompt.encode()) - 1) // 16 * 16
        assert again["metadata"]["cached_tokens"] == whole and alone["metadata"]["cached_tokens"] == 0


def test_an_answer_says_what_was_found_and_computed() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(enable_profiling=True)) as engine:
        first = ask(engine, STORY, max_new_tokens=3, session_id="s", priority=2)
        again = ask(engine, STORY, max_new_tokens=3, session_id="s")
    assert (first["cache_hit"], again["cache_hit"]) == (False, True)
    assert first["latency"] > 0 and again["metadata"]["waited_ms"] >= 0
    tokens = len(STORY)
    for answer, cached in ((first, 0), (again, tokens // 16 * 16)):
        said = answer["metadata"]
        assert said["prompt_tokens"] == tokens and said["cached_tokens"] == cached
        assert said["computed_tokens"] == tokens - cached and said["generated_tokens"] == 3
        assert said["profile"]["compute"] > 0 and set(said["profile"]) == {"match", "fetch", "compute", "generate", "store"}
    assert (first["metadata"]["turn"], again["metadata"]["turn"], first["metadata"]["priority"]) == (1, 2, 2)
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        assert "profile" not in ask(engine, STORY)["metadata"]


def test_stats_count_requests_tokens_and_milliseconds() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        nothing = engine.get_stats()
        assert nothing["total_requests"] == 0 and nothing["hit_rate"] == 0 and nothing["p99_latency"] == 0
        for _ in range(4):
            ask(engine, STORY)
        engine.flush()
        stats = engine.get_stats()
    assert (stats["total_requests"], stats["cache_hits"], stats["cache_misses"], stats["hit_rate"]) == (4, 3, 1, 0.75)
    assert 0 < stats["p50_latency"] <= stats["p95_latency"] <= stats["p99_latency"] and stats["avg_latency"] > 0
    assert stats["memory_usage"] > 0 and 0 < stats["gpu_utilization"] == stats["memory_utilization"] <= 1
    assert stats["gpu_utilization_of"] == "memory", "no block lies in a GPU"
    assert stats["cached_tokens"] == 3 * 80 and stats["prompt_tokens"] == 4 * len(STORY)
    assert stats["compression_ratio"] < 1 and stats["cache_failures"] == 0 and stats["transport"] == "none"


def test_a_batch_computes_each_shared_prefix_once() -> None:
    async def batch(engine: UltraAdaptiveKVCacheEngine, texts: list[str]) -> list[Answer]:
        return await engine.process_batch_optimized([{"text": text} for text in texts], batch_size=4)

    one, two = STORY, STORY[::-1]
    texts = [(one if at % 2 else two) + f" question {at:02}" for at in range(12)]
    config = small_engine()
    model = Watched(config)
    with UltraAdaptiveKVCacheEngine(config, model=model) as engine:
        answers = asyncio.run(batch(engine, texts))
        # Two stories once each, and each question's end.
        shared, whole = 96, len(texts[0])
        assert len(model.computed) == 2 * whole + 10 * (whole - shared)
        assert [answer["metadata"]["cached_tokens"] for answer in answers].count(shared) == 10
        with UltraAdaptiveKVCacheEngine(config) as fresh:
            assert [answer["result"] for answer in answers] == [ask(fresh, text)["result"] for text in texts]
        with pytest.raises(ValueError, match="batch_size is 0"):
            asyncio.run(engine.process_batch_optimized([], batch_size=0))
        assert asyncio.run(engine.process_batch_optimized([])) == []


def test_of_those_that_wait_the_more_urgent_come_first() -> None:
    config = small_engine()
    model = Watched(config)
    order: list[str] = []

    async def all_at_once(engine: UltraAdaptiveKVCacheEngine) -> None:
        async def one(name: str, priority: int) -> None:
            await engine.process_request({"text": name * 8, "priority": priority, "max_new_tokens": 1})
            order.append(name)

        model.may_go.clear()
        first = asyncio.create_task(one("first", 0))
        await asyncio.to_thread(model.began.wait, 30)
        others = [asyncio.create_task(one(*other)) for other in (("low", -1), ("plain", 0), ("urgent", 5), ("next", 0))]
        await asyncio.sleep(0)
        model.may_go.set()
        await asyncio.gather(first, *others)

    with UltraAdaptiveKVCacheEngine(config, model=model) as engine:
        asyncio.run(all_at_once(engine))
    assert order == ["first", "urgent", "plain", "next", "low"]


def test_an_engine_for_which_as_many_wait_as_may_is_busy_until_some_have_gone() -> None:
    config = small_engine()
    model = Watched(config)

    def one(engine: UltraAdaptiveKVCacheEngine) -> asyncio.Task[Answer]:
        return asyncio.create_task(engine.process_request({"text": "a", "max_new_tokens": 1}))

    async def crowd(engine: UltraAdaptiveKVCacheEngine) -> None:
        model.may_go.clear()
        first = one(engine)
        await asyncio.to_thread(model.began.wait, 30)
        waiting = [one(engine) for _ in range(16_384)]
        # Each takes its place as it begins.
        await asyncio.sleep(0)
        with pytest.raises(kvhive.BusyError, match="16384 requests wait already") as raised:
            await engine.process_request({"text": "b"})
        assert isinstance(raised.value, kvhive.KvHiveError) and not isinstance(raised.value, ValueError)
        for gone in waiting[1:]:
            gone.cancel()
        ended = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        # There is room again, though the first is still being computed.
        late = one(engine)
        await asyncio.sleep(0)
        assert not late.done()
        model.may_go.set()
        answers = await asyncio.gather(first, waiting[0], late)
        assert len({answer["result"] for answer in answers}) == 1

    with UltraAdaptiveKVCacheEngine(config, model=model) as engine:
        asyncio.run(crowd(engine))
        assert engine.get_stats()["total_requests"] == 3


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "text is None"),
        ({"text": 3}, "text is 3"),
        ("a", "a request is 'a': a dict is allowed"),
        ({"text": "a", "txt": "b", "session": "c"}, "a request has session, txt: allowed is text, priority"),
        ({"text": "a" * 512}, "text has 512 tokens: 1 to 511 are allowed, with max_tokens=512"),
        ({"text": "a", "max_new_tokens": 0}, "max_new_tokens is 0: a whole number above 0"),
        ({"text": "a", "max_new_tokens": 512}, "max_new_tokens is 512: 1 to 511"),
        ({"text": "a", "priority": 1.5}, "priority is 1.5"),
        ({"text": "a", "session_id": 3}, "session_id is 3"),
        ({"text": "a", "tenant": "b"}, "multi_tenant=True"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(request_: Any, said: str) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine, pytest.raises(ValueError, match=said):
        asyncio.run(engine.process_request(request_))


def test_tenants_share_blocks_unless_they_are_kept_apart() -> None:
    for isolation in (True, False):
        with UltraAdaptiveKVCacheEngine(small_engine(multi_tenant=True, tenant_isolation=isolation)) as engine:
            ask(engine, STORY, tenant="one")
            engine.flush()
            assert ask(engine, STORY, tenant="two")["cache_hit"] is not isolation
            engine.flush()
            assert ask(engine, STORY, tenant="one")["cache_hit"]
            engine.clear_cache()
            assert not ask(engine, STORY, tenant="one")["cache_hit"]


def test_a_session_that_is_over_is_told_to_the_cache() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        ask(engine, STORY, session_id="s")
        engine.flush()
        assert engine.end_session("s") and not engine.end_session("s")
        assert engine.get_stats()["node"]["released"] == 5
        assert ask(engine, STORY, session_id="s")["metadata"]["turn"] == 1


def test_what_is_persisted_is_found_by_the_next_engine(tmp_path: Path) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(multi_tenant=True)) as engine:
        before = ask(engine, STORY, tenant="a")
        engine.clear_cache()
        ask(engine, STORY, tenant="a")
        assert engine.persist(tmp_path / "one") is True
        with pytest.raises(IOError):
            engine.persist(Path("/proc/nowhere"))
    with UltraAdaptiveKVCacheEngine(small_engine(multi_tenant=True)) as engine:
        with pytest.raises(FileNotFoundError):
            engine.load(tmp_path / "two")
        assert engine.load(tmp_path / "one") is True
        after = ask(engine, STORY, tenant="a")
        assert after["cache_hit"] and after["result"] == before["result"]
        assert not ask(engine, STORY, tenant="b")["cache_hit"]
        (tmp_path / "one" / "current").write_bytes(b"\xc9\xff")
        with pytest.raises(IOError, match="current is damaged"):
            engine.load(tmp_path / "one")
        assert engine.persist(tmp_path / "one") and engine.load(tmp_path / "one")
        assert ask(engine, STORY, tenant="a")["cache_hit"]


def test_a_load_that_fails_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        ask(engine, STORY)
        engine.persist(tmp_path)
        copy = tmp_path / (tmp_path / "current").read_text()
        (segment,) = (copy / "blocks").glob("*.seg")
        for file in (copy / "cluster.backup", copy / "blocks" / "manifest.json", segment):
            whole = file.read_bytes()
            # Half of a segment has half of its blocks, which are loaded: of this one not even the first head is whole.
            half = whole[:64] if file == segment else whole[: len(whole) // 2]
            for damaged in (b"", half, b"\x55" + whole[1:], None):
                if damaged is None:
                    file.unlink()
                else:
                    file.write_bytes(damaged)
                said = file.name if damaged is None and file != segment else "cannot load from"
                with pytest.raises(IOError, match="5 blocks are damaged or missing" if file == segment else said):
                    engine.load(tmp_path)
                assert engine.covered(STORY) == 5, (file.name, damaged)
            file.write_bytes(whole)
        assert engine.load(tmp_path) and engine.covered(STORY) == 5


def blocks_of(engine: UltraAdaptiveKVCacheEngine) -> int:
    return sum(int(one["blocks"]) for one in engine.get_stats()["node"]["codecs"])


def test_of_a_copy_that_is_damaged_in_part_the_rest_is_loaded(tmp_path: Path) -> None:
    said = f"^[1-4] blocks in {tmp_path} are damaged or missing: the rest"
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        ask(engine, STORY)
        engine.persist(tmp_path)
        (segment,) = tmp_path.glob("*/blocks/*.seg")
        whole = segment.read_bytes()
        segment.write_bytes(whole[: len(whole) // 2])
        with pytest.warns(RuntimeWarning, match=said) as warned:
            assert engine.load(tmp_path)
        (one,) = warned
        assert one.filename == __file__ and blocks_of(engine) == 5 - int(str(one.message).split()[0])
    config = small_engine(enable_persistence=True, persistence_path=tmp_path)
    segment.unlink()
    with pytest.warns(RuntimeWarning, match="begins empty: .*: 5 blocks"):
        engine = UltraAdaptiveKVCacheEngine(config)
    # Bytes of the first block: they are read only when it is taken in.
    segment.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with engine, pytest.warns(RuntimeWarning, match=said) as warned, UltraAdaptiveKVCacheEngine(config) as another:
        (one,) = warned
        assert blocks_of(engine) == 0 and blocks_of(another) == 5 - int(str(one.message).split()[0])


def test_a_copy_whose_bytes_are_all_damaged_is_told_of(tmp_path: Path) -> None:
    # One block.
    prompt = STORY[:17]
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        before = ask(engine, prompt)
        engine.persist(tmp_path)
        (segment,) = tmp_path.glob("*/blocks/*.seg")
        whole = segment.read_bytes()
        segment.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(IOError, match="1 blocks are damaged or missing, and no other"):
            engine.load(tmp_path)
        # What it had is gone, and it goes on.
        assert engine.covered(prompt) == 0
        after = ask(engine, prompt)
        engine.flush()
        assert after["result"] == before["result"] and engine.covered(prompt) == 1


def test_an_engine_that_persists_begins_with_what_the_last_one_had(tmp_path: Path) -> None:
    config = small_engine(enable_persistence=True, persistence_path=tmp_path / "kept")
    for hit in (False, True, True):
        with UltraAdaptiveKVCacheEngine(config) as engine:
            assert ask(engine, STORY)["cache_hit"] is hit


def test_other_models_and_shapes_find_nothing_of_each_other(tmp_path: Path) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        ask(engine, STORY)
        engine.persist(tmp_path)
    other = small_engine()
    for engine in (
        UltraAdaptiveKVCacheEngine(other, model=SeededTransformer(other, seed=1)),
        UltraAdaptiveKVCacheEngine(small_engine(block_size=32)),
    ):
        with engine:
            engine.load(tmp_path)
            assert not ask(engine, STORY)["cache_hit"]
    with UltraAdaptiveKVCacheEngine(small_engine(num_heads=1)) as engine:
        ask(engine, STORY)
        with pytest.raises(IOError, match="another layout"):
            engine.load(tmp_path)
        assert ask(engine, STORY)["cache_hit"], "what it has it keeps"


def test_a_cache_that_is_gone_costs_no_answer() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(non_blocking=False)) as engine:
        before = ask(engine, STORY)
        engine.backing.node.stop()
        after = ask(engine, STORY)
        assert after["result"] == before["result"] and not after["cache_hit"]


def test_a_tenant_that_cannot_be_made_is_answered_without_the_cache() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(multi_tenant=True)) as engine:
        engine.backing.node.stop()
        answer = ask(engine, STORY, tenant="new")
        assert answer["result"] and not answer["cache_hit"]


def test_a_model_may_use_its_memory_again() -> None:
    class Thrifty(SeededTransformer):
        """Gives out the same memory each time."""

        room: KV | None = None

        def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
            computed, logits = super().prefill(tokens, past)
            if self.room is None or self.room.shape != computed.shape:
                self.room = computed
            self.room[:] = computed
            return self.room, logits

    config = small_engine(use_compression=False)
    with UltraAdaptiveKVCacheEngine(config, model=Thrifty(config)) as engine:
        answers = [ask(engine, STORY * 4) for _ in range(3)]
        assert answers[0]["result"] == answers[1]["result"] == answers[2]["result"]


def test_an_exact_engine_takes_no_block_that_was_rounded(tmp_path: Path) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(use_quantization=True)) as engine:
        ask(engine, STORY)
        engine.persist(tmp_path)
    with UltraAdaptiveKVCacheEngine(small_engine(use_compression=False)) as engine:
        engine.load(tmp_path)
        assert not ask(engine, STORY)["cache_hit"]
    with UltraAdaptiveKVCacheEngine(small_engine(use_quantization=True)) as engine:
        engine.load(tmp_path)
        assert ask(engine, STORY)["cache_hit"]


def test_whoever_asks_while_an_engine_closes_is_answered_or_told() -> None:
    config = small_engine()
    model = Watched(config)
    engine = UltraAdaptiveKVCacheEngine(config, model=model)

    async def batch() -> None:
        model.may_go.clear()
        asked = asyncio.create_task(engine.process_batch_optimized([{"text": f"{at} {STORY}"} for at in range(4)], batch_size=1))
        await asyncio.to_thread(model.began.wait, 30)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        model.may_go.set()
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(asked, 30)
        await closing

    asyncio.run(batch())


def test_what_a_model_raises_of_one_request_keeps_no_other_from_its_answer() -> None:
    config = small_engine()

    class Picky(Watched):
        def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
            if tokens[0] == ord("x"):
                raise ArithmeticError("no such number")
            return super().prefill(tokens, past)

    with UltraAdaptiveKVCacheEngine(config, model=Picky(config)) as engine:
        with pytest.raises(ArithmeticError):
            asyncio.run(engine.process_batch_optimized([{"text": "x"}, {"text": "y"}, {"text": "z"}], batch_size=1))
        assert engine.get_stats()["total_requests"] == 2


def test_memory_is_freed_ahead_where_that_is_wanted() -> None:
    collected = {}
    for enabled in (True, False):
        with UltraAdaptiveKVCacheEngine(
            small_engine(enable_gc=enabled, gc_threshold=0.5, max_memory_mb=1, use_compression=False, cache_strategy="lru")
        ) as engine:
            for at in range(16):
                ask(engine, f"{at:02}" * 240, max_new_tokens=1)
            engine.flush()
            collected[enabled] = engine.get_stats()["node"]["collections"]["runs"]
    assert collected[True] > 0 == collected[False]


def test_what_fails_while_it_is_persisted_leaves_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        before = ask(engine, STORY)
        engine.persist(kept)
        there = sorted(path.relative_to(kept) for path in kept.rglob("*"))
        engine.backing.node.stop()
        with pytest.raises(IOError, match="cannot persist into .*kept"):
            engine.persist(kept)
        assert sorted(path.relative_to(kept) for path in kept.rglob("*")) == there
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        assert engine.load(kept) and ask(engine, STORY)["result"] == before["result"]


def test_an_engine_may_be_looked_at_and_asked_while_it_loads(tmp_path: Path) -> None:
    with UltraAdaptiveKVCacheEngine(small_engine(multi_tenant=True)) as engine:
        ask(engine, STORY, tenant="a")
        engine.persist(tmp_path)
        prefetcher, is_over = CachePrefetcher(engine), threading.Event()

        def look(one: Callable[[], object]) -> int:
            times = 0
            while not is_over.is_set():
                one()
                times += 1
            return times

        # What each of these uses ends and begins anew in every load.
        looks: list[Callable[[], object]] = [
            engine.get_stats,
            prefetcher.get_prefetch_stats,
            lambda: prefetcher.prefetch([STORY], tenant="a"),
            lambda: ask(engine, STORY, tenant="a"),
            lambda: engine.end_session("none"),
        ]
        with ThreadPoolExecutor(len(looks)) as threads:
            looking = [threads.submit(look, one) for one in looks]
            try:
                for _ in range(4):
                    engine.load(tmp_path)
            finally:
                is_over.set()
            assert all(looked.result() > 0 for looked in looking)
        assert engine.get_stats()["cache_failures"] == 0 and ask(engine, STORY, tenant="a")["cache_hit"]


def test_requests_are_served_while_a_node_leaves() -> None:
    with UltraAdaptiveKVCacheEngine(small_engine()) as engine:
        scaler = AutoScaler(engine)
        assert scaler.scale_up() == 2
        looked, may_leave = threading.Event(), threading.Event()
        slots = engine.backing._slots_of

        def held_up(node: kvhive.EmbeddedNode) -> int:
            looked.set()
            return slots(node) if may_leave.is_set() else 1

        engine.backing._slots_of = held_up  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as threads:
            leaving = threads.submit(scaler.scale_down)
            try:
                assert looked.wait(30)
                assert ask(engine, STORY)["result"] and engine.get_stats()["total_requests"] == 1
                assert not leaving.done()
            finally:
                may_leave.set()
            assert leaving.result() == 1


def test_an_engine_ends_also_where_its_last_store_failed() -> None:
    engine = UltraAdaptiveKVCacheEngine(small_engine())
    engine.backing.node.stop()
    assert ask(engine, STORY)["result"]
    engine.close()
    with pytest.raises(kvhive.ClosedError):
        engine.get_stats()
    with pytest.raises(kvhive.ClosedError):
        engine.backing.client.refresh()
    engine.close()


@pytest.mark.parametrize("call", ["tokenize", "detokenize", "is_end", "prefill", "decode"])
def test_what_a_model_raises_is_raised_as_it_is(call: str) -> None:
    config, error = small_engine(), ArithmeticError("no such number")
    model = SeededTransformer(config)

    def broken(*_: object) -> None:
        raise error

    setattr(model, call, broken)
    with UltraAdaptiveKVCacheEngine(config, model=model) as engine:
        with pytest.raises(ArithmeticError) as raised:
            ask(engine, STORY)
        assert raised.value is error
        delattr(model, call)
        # And the next one has its turn.
        assert ask(engine, STORY)["result"]


def test_keys_and_values_of_another_shape_or_kind_are_refused() -> None:
    config = small_engine()

    class Wrong(SeededTransformer):
        def prefill(self, tokens: Sequence[int], past: KV) -> tuple[KV, Float32]:
            computed, logits = super().prefill(tokens, past)
            return (computed[:, :, :-1] if len(tokens) < 16 else computed.astype("float32")), logits

    with UltraAdaptiveKVCacheEngine(config, model=Wrong(config)) as engine:
        with pytest.raises(ValueError, match="float32, and the configuration's dtype is stored as float16"):
            ask(engine, STORY)


def test_who_stops_waiting_for_an_answer_lets_the_model_finish_first() -> None:
    config = small_engine()
    model = Watched(config)

    async def leave(engine: UltraAdaptiveKVCacheEngine) -> Answer:
        model.may_go.clear()
        first = asyncio.create_task(engine.process_request({"text": "first " * 8}))
        await asyncio.to_thread(model.began.wait, 30)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(engine.process_request({"text": "second " * 8}))
        await asyncio.sleep(0)
        assert bytes(model.computed) == b""
        model.may_go.set()
        return await second

    with UltraAdaptiveKVCacheEngine(config, model=model) as engine:
        answer = asyncio.run(leave(engine))
        # One after the other: pieces of two requests never mix.
        assert bytes(model.computed) == b"first " * 8 + b"second " * 8 and answer["result"]


def test_engines_in_one_call() -> None:
    with create_kv_cache_engine(small_engine(), "lfu") as engine:
        assert engine.config.cache_strategy == "lfu" and engine.get_stats()["strategy"] == "lfu"
    with pytest.raises(ValueError, match="cache_strategy is 'clock'"):
        create_kv_cache_engine(small_engine(), "clock")
    with TruthGPTIntegration.create_engine_for_truthgpt(max_tokens=1024) as engine:
        assert (engine.config.max_tokens, engine.config.mode.value) == (1024, "interactive")


def test_a_closed_engine_says_so() -> None:
    engine = UltraAdaptiveKVCacheEngine(small_engine())
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        ask(engine, STORY)
