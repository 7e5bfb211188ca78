"""The real vLLM on its CPU backend, with tiny seeded models: engines that share a cluster say what an engine without one says.

`scripts/test vllm` runs this; it takes gigabytes of packages and minutes.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import kvhive
import numpy as np
import pytest
from fleet import KVHIVE, Cluster, in_full, prompt

pytest.importorskip("vllm")
if KVHIVE is None:
    pytest.skip("KVHIVE_BIN does not say where the command is", allow_module_level=True)

from kvhive.vllm.tier import KvHiveTier  # noqa: E402
from vllm.v1.kv_offload.base import OffloadKey, ReqContext  # noqa: E402
from vllm.v1.kv_offload.tiering.base import TransferJob  # noqa: E402
from vllm_engine import Engine  # noqa: E402

BLOCK = 32
TOKENS = 40


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Gemma with layers that forget and layers that do not."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1234)
    kinds = (["sliding_attention"] * 2 + ["full_attention"]) * 2
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    sizes: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    config = Gemma3TextConfig(
        **sizes, **heads, max_position_embeddings=4096, sliding_window=128, layer_types=kinds, initializer_range=0.1
    )
    folder = str(tmp_path_factory.mktemp("gemma"))
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


class Reference:
    """What an engine without kvhive says. Some prompts it answers otherwise alone than among others: sums of another order decide
    between two tokens that are as good. Those are passed over, as nothing could be said of them."""

    def __init__(self, model: str, prompts: list[list[int]]) -> None:
        with Engine(model) as engine:
            together = engine.generate(prompts, TOKENS)
            engine.reset()
            alone = [engine.generate([prompt], TOKENS)[0] for prompt in prompts]
        agreed = [one["tokens"] == other["tokens"] for one, other in zip(together, alone, strict=True)]
        self.prompts = [prompt for prompt, is_sure in zip(prompts, agreed, strict=True) if is_sure]
        self._says = [answer["tokens"] for answer, is_sure in zip(alone, agreed, strict=True) if is_sure]
        assert len(self.prompts) > len(prompts) // 2

    def agrees(self, answers: list[dict[str, Any]], tokens: int = TOKENS, of: slice = slice(None)) -> None:
        """Of the prompts `of` only so many tokens may have been asked for."""
        assert [answer["tokens"] for answer in answers] == [says[:tokens] for says in self._says[of]]
        assert {answer["finish"] for answer in answers} == {"length"}


@pytest.fixture(scope="module")
def reference(model: str) -> Reference:
    shared = prompt("shared", 600)
    prompts = [shared + prompt(f"tail {at}", 20 + 8 * at) for at in range(4)]
    return Reference(model, prompts + [prompt(f"own {at}", 260 + 40 * at) for at in range(6)])


def full(prompts: list[list[int]]) -> list[int]:
    return in_full(prompts, BLOCK)


def shared(prompts: list[list[int]]) -> list[int]:
    """How many tokens of each are in full blocks that one before it begins with too."""

    def common(one: list[int], other: list[int]) -> int:
        return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    return [max((common(one, other) // BLOCK * BLOCK for other in prompts[:at]), default=0) for at, one in enumerate(prompts)]


def external_hits(engine: Engine) -> float:
    return engine.figures().get("external_prefix_cache_hits", 0)


def test_a_second_engine_has_every_full_block_of_the_first(cluster: Cluster, model: str, reference: Reference) -> None:
    with Engine(model, cluster.extra) as first:
        for one in reference.prompts:
            first.generate([one], TOKENS)
    with Engine(model, cluster.extra) as second:
        alone = [second.generate([one], TOKENS)[0] for one in reference.prompts]
        reference.agrees(alone)
        assert [answer["cached"] for answer in alone] == full(reference.prompts)
        before = external_hits(second)
        # What earlier prompts began with it has itself by then.
        assert before == sum(full(reference.prompts)) - sum(shared(reference.prompts))
        # What it has itself it does not ask for; what it forgot it loads again, all at once this time.
        together = second.generate(reference.prompts, TOKENS)
        reference.agrees(together)
        assert external_hits(second) == before
        second.reset()
        together = second.generate(reference.prompts, TOKENS)
        reference.agrees(together)
        assert [answer["cached"] for answer in together] == full(reference.prompts)
        assert external_hits(second) > before
        # Blocks of another tenant's salt are others.
        assert second.generate(reference.prompts[:1], TOKENS, salt="other")[0]["cached"] == 0
    for other in ({"extra": {**cluster.extra, "weights": "others"}}, {"extra": cluster.extra, "block_size": 64}):
        with Engine(model, **other) as engine:
            answers = engine.generate(reference.prompts[:1], TOKENS)
            assert answers[0]["cached"] == 0, "other weights and other blocks are misses"


def test_prompts_in_chunks_and_preempted_requests_say_the_same(
    cluster: Cluster, model: str, reference: Reference
) -> None:
    tight: dict[str, Any] = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 40, "max_num_seqs": 8, "max_model_len": 1024}
    extra = {**cluster.extra, "weights": "in chunks"}
    with Engine(model, extra, **tight) as engine:
        reference.agrees(engine.generate(reference.prompts, TOKENS))
        assert engine.figures()["num_preemptions"] > 0
        before = external_hits(engine)
        engine.reset()
        answers = engine.generate(reference.prompts, TOKENS)
        reference.agrees(answers)
        assert [answer["cached"] for answer in answers] == full(reference.prompts)
        assert external_hits(engine) > before


def test_layers_that_forget_are_loaded_at_their_window(cluster: Cluster, hybrid: str) -> None:
    reference = Reference(hybrid, [prompt(f"forgets {at}", 500 + 37 * at) for at in range(4)])
    with Engine(hybrid, cluster.extra) as first:
        reference.agrees(first.generate(reference.prompts, TOKENS))
    with Engine(hybrid, cluster.extra) as second:
        answers = second.generate(reference.prompts, TOKENS)
        reference.agrees(answers)
        assert [answer["cached"] for answer in answers] == full(reference.prompts)
        assert external_hits(second) == sum(full(reference.prompts))


def until_both_ranks_serve(engine: Engine, one: list[int]) -> None:
    """Has a prompt be computed and forgotten until it is loaded: what is asked before all ranks have the cluster is computed alone."""
    before = external_hits(engine)
    # How many that takes is up to the machine: one that is quiet computes a hundred before it has made a connection.
    until = time.monotonic() + 300
    while time.monotonic() < until:
        engine.generate([one], 1)
        engine.reset()
        if external_hits(engine) > before:
            return
    raise AssertionError("nothing is loaded")


def test_two_ranks_load_each_their_own(cluster: Cluster, model: str, reference: Reference) -> None:
    # Three processes of the engine never sleep: on two cores each step of it takes long, and an answer of the cluster's as well.
    patient = {**cluster.extra, "wait_ms": 60_000}
    few, tokens = slice(2, 6), 8
    prompts = reference.prompts[few]
    for is_warm in (False, True):
        with Engine(model, patient, tensor_parallel_size=2) as engine:
            until_both_ranks_serve(engine, prompt(f"first of an engine that is warm: {is_warm}", 100))
            before = external_hits(engine)
            # One after the other: an engine that ends waits two seconds for what it still stores, and no longer.
            answers = [engine.generate([one], tokens)[0] for one in prompts]
            reference.agrees(answers, tokens, few)
            if is_warm:
                assert [answer["cached"] for answer in answers] == full(prompts)
            else:
                assert external_hits(engine) == before, "blocks of one rank are not those of two"


def test_a_cluster_that_is_killed_while_it_is_loaded_from_costs_no_answer(
    doomed: Cluster, model: str, reference: Reference
) -> None:
    with Engine(model, {**doomed.extra, "wait_ms": 500}) as engine:
        reference.agrees(engine.generate(reference.prompts, TOKENS))
        engine.reset()
        assert external_hits(engine) == 0
        # At the kill requests that are not over have been promised some of it.
        engine.hold(reference.prompts, TOKENS, after="load")
        doomed.kill()
        reference.agrees(engine.go_on())
        loaded = external_hits(engine)
        assert loaded > 0
        engine.reset()
        reference.agrees(engine.generate(reference.prompts, TOKENS))
        assert external_hits(engine) == loaded, "nobody is there to load from"


def test_a_cluster_that_is_killed_while_it_is_asked_costs_no_answer(
    doomed: Cluster, model: str, reference: Reference
) -> None:
    with Engine(model, {**doomed.extra, "wait_ms": 500}) as engine:
        reference.agrees(engine.generate(reference.prompts, TOKENS))
        engine.reset()
        reference.agrees(engine.generate(reference.prompts, TOKENS))
        loaded = external_hits(engine)
        assert loaded > 0, "it would have answered"
        engine.reset()
        # At the kill every question is in the air.
        doomed.stop()
        engine.hold(reference.prompts, TOKENS, after="step")
        doomed.kill()
        reference.agrees(engine.go_on())
        assert external_hits(engine) == loaded


def test_a_full_cluster_costs_no_answer(model: str, reference: Reference) -> None:
    layout, frame = kvhive.Layout.opaque(256 << 10, BLOCK), 256 << 10
    with kvhive.EmbeddedNode(memory=8 * frame, block_bytes=frame, mode="bulk") as node, node.client(hold=20.0) as client:
        held = client.namespace("held", layout).keys(range(8 * BLOCK))
        assert client.store_from(held, bytes(8 * frame)).acknowledged == 8
        is_over = threading.Event()
        covered: list[int] = []

        def hold() -> None:
            # Of none of its frames a block may leave, as long as the engine lives.
            while not covered or not is_over.wait(5):
                covered.append(client.match(held).covered)

        holds = threading.Thread(target=hold)
        holds.start()
        try:
            extra = {"coordinators": ",".join(node.coordinators), "token": node.token.decode(), "wait_ms": 500}
            with Engine(model, extra) as engine:
                for _ in range(2):
                    reference.agrees(engine.generate(reference.prompts, TOKENS))
                    engine.reset()
                assert external_hits(engine) == 0
        finally:
            is_over.set()
            holds.join()
        assert set(covered) == {8} and client.match(held).covered == 8


def tiered(extra: dict[str, Any]) -> dict[str, Any]:
    """vLLM's offloading in tiers, with a pool that holds little and kvhive behind it."""
    tier = {"type": "KvHiveTier", "module_path": "kvhive.vllm.tier", **extra}
    spec = {"spec_name": "CpuTieringSpec", "spec_module_path": "vllm_cpu_tiering"}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {**spec, "cpu_bytes_to_use": 16 << 20, "secondary_tiers": [tier]},
    }


def test_a_tier_behind_vllms_own_offloading_is_shared(doomed: Cluster, model: str, reference: Reference) -> None:
    transfer = tiered(doomed.extra)
    with Engine(model, kv_transfer_config=transfer) as first:
        reference.agrees([first.generate([one], TOKENS)[0] for one in reference.prompts])
    with Engine(model, kv_transfer_config=transfer) as second:
        answers = [second.generate([one], TOKENS)[0] for one in reference.prompts]
        reference.agrees(answers)
        assert [answer["cached"] for answer in answers] == full(reference.prompts)
        assert external_hits(second) >= full(reference.prompts[:1])[0]
        second.reset()
        second.hold(reference.prompts, TOKENS, after="load")
        doomed.kill()
        reference.agrees(second.go_on())
        second.reset()
        reference.agrees(second.generate(reference.prompts, TOKENS))


class Pool:
    """The memory of vLLM's primary tier, of 8 chunks, with a tier of ours behind it. What a spec says is written down by hand."""

    def __init__(self, cluster: Cluster) -> None:
        self.chunks = np.zeros((8, 4096), np.uint8)
        sizes = {"tp_size": 1, "pp_size": 1, "pcp_size": 1, "dcp_size": 1, "world_size": 1}
        config = SimpleNamespace(
            parallel=SimpleNamespace(**sizes, is_parallelism_agnostic=True),
            model=SimpleNamespace(name="a pool", dtype="float32"),
            cache=SimpleNamespace(tokens_per_hash=BLOCK, blocks_per_chunk=1),
            groups=[],
            worker_kv_bytes_per_block=4096,
            kv_cache_layout="NHD",
            canonical_layout=None,
            replicated_layout=None,
        )
        view = self.chunks.data
        self.tier = KvHiveTier(SimpleNamespace(config=config), view, "KvHiveTier", None, **cluster.extra)

    def submit(self, job: int, names: list[bytes], chunks: list[int], is_promotion: bool) -> None:
        keys = [OffloadKey(name) for name in names]
        told = TransferJob(job, keys, np.array(chunks), is_promotion, ReqContext("a request"))
        (self.tier.submit_load if is_promotion else self.tier.submit_store)(told)

    def results(self) -> dict[int, tuple[bool, Any]]:
        self.tier.drain_jobs()
        return {result.job_id: (result.success, result.successful_keys) for result in self.tier.get_finished_jobs()}


def test_a_job_of_a_tier_that_cannot_be_begun_has_failed_and_raises_nothing(cluster: Cluster) -> None:
    pool = Pool(cluster)
    try:
        pool.chunks[1], pool.chunks[2] = 10, 20
        names = [b"one", b"two"]
        pool.submit(1, names, [1, 2], False)
        assert pool.results() == {1: (True, None)}
        # Chunks outside of the pool: the last one, and all.
        pool.submit(2, names, [1, 8], False)
        pool.submit(3, names, [7, 800], True)
        pool.submit(4, names, [-1, 3], True)
        pool.submit(5, names, [3, 4], True)
        assert pool.tier.has_pending_work()
        assert pool.results() == {2: (False, None), 3: (False, None), 4: (False, None), 5: (True, None)}
        assert not pool.tier.has_pending_work() and pool.results() == {}, "each is told once"
        assert pool.chunks[:, 0].tolist() == [0, 10, 20, 10, 20, 0, 0, 0]
    finally:
        pool.tier.shutdown()


def come_to(cluster: Cluster, name: str, expected: dict[str, int]) -> None:
    """Waits until these are the pins whose names begin so, with so many blocks."""
    until = time.monotonic() + 30
    while (pins := {pin: blocks for pin, blocks in cluster.pins().items() if pin.startswith(name)}) != expected:
        assert time.monotonic() < until, pins


def test_what_kv_hints_wish_for_is_done_and_what_is_no_wish_harms_nothing(cluster: Cluster, model: str) -> None:
    asked = prompt("hinted", 5 * BLOCK)
    wrong: list[tuple[str, dict[str, Any]]] = [("kvhive.pin", {"seconds": 1}), ("nvidia.prefetch", {"any": "thing"})]
    with Engine(model, cluster.extra) as engine:
        pin = ("kvhive.pin", {"name": "kept", "seconds": 600, "tokens": 3 * BLOCK + 1})
        first = engine.generate([asked], hints=[*wrong, pin])
        # Its workers hear of it with the next step. A server makes one after the last request; this engine when it is asked again.
        engine.generate([prompt("next", 40)])
        come_to(cluster, "kept", {"kept.0.0": 3})
        engine.reset()
        again = engine.generate([asked], hints=[("kvhive.session", {"over": True}), ("kvhive.unpin", {"name": "kept"})])
        engine.generate([prompt("next", 40)])
        come_to(cluster, "kept", {})
        assert again[0]["tokens"] == first[0]["tokens"]


def test_what_kv_hints_wish_for_is_done_behind_vllms_own_offloading(cluster: Cluster, model: str) -> None:
    asked = prompt("hinted behind", 5 * BLOCK + 1)
    wrong: list[tuple[str, dict[str, Any]]] = [("kvhive.pin", {"seconds": 1}), ("nvidia.prefetch", {"any": "thing"})]
    with Engine(model, kv_transfer_config=tiered(cluster.extra)) as engine:
        engine.generate([asked], hints=[*wrong, ("kvhive.pin", {"name": "behind", "tokens": 3 * BLOCK + 1})])
        engine.generate([prompt("next", 40)])
        come_to(cluster, "behind", {"behind.tier": 3})
        # Of a request whose chunks are in vLLM's own pool, too.
        engine.generate([asked], hints=[("kvhive.session", {"over": True}), ("kvhive.pin", {"name": "behind"})])
        engine.generate([prompt("next", 40)])
        come_to(cluster, "behind", {"behind.tier": 5})
        engine.generate([asked], hints=[("kvhive.unpin", {"name": "behind"})])
        engine.generate([prompt("next", 40)])
        come_to(cluster, "behind", {})
