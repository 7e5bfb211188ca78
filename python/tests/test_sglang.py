"""The real SGLang on its CPU backend, with a tiny seeded model: engines that share a cluster say what an engine without one says.

`scripts/test sglang` runs this; it takes gigabytes of packages and minutes.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from fleet import KVHIVE, Cluster, in_full, prompt

pytest.importorskip("sglang")
if KVHIVE is None:
    pytest.skip("KVHIVE_BIN does not say where the command is", allow_module_level=True)

from sglang_engine import PAGE, Engine  # noqa: E402

TOKENS = 40
PATIENCE_SECONDS = 60
# A page is stored in two pieces: its keys and its values.
PIECES = 2


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    shared = prompt("shared", 600)
    tails = [shared + prompt(f"tail {at}", 20 + 8 * at) for at in range(3)]
    return tails + [prompt(f"own {at}", 260 + 40 * at) for at in range(4)]


@pytest.fixture(scope="module")
def reference(model: str, prompts: list[list[int]]) -> list[Any]:
    """What an engine without kvhive says."""
    with Engine(model) as engine:
        return tokens(alone(engine, prompts))


def alone(engine: Engine, prompts: list[list[int]]) -> list[dict[str, Any]]:
    return [engine.generate([one], TOKENS)[0] for one in prompts]


def tokens(answers: list[dict[str, Any]]) -> list[Any]:
    assert {answer["finish"] for answer in answers} == {"length"}
    return [answer["tokens"] for answer in answers]


def full(prompts: list[list[int]]) -> list[int]:
    return in_full(prompts, PAGE)


def saved(cluster: Cluster, prompts: list[list[int]]) -> None:
    """Waits until every full page of the prompts is in the cluster: an engine saves beside its answers."""
    pages = {tuple(prompt[: at + PAGE]) for prompt in prompts for at in range(0, len(prompt) - PAGE + 1, PAGE)}
    until = time.monotonic() + PATIENCE_SECONDS
    while cluster.blocks() < PIECES * len(pages):
        assert time.monotonic() < until, f"{cluster.blocks()} blocks of {PIECES * len(pages)}"
        time.sleep(0.1)


def test_a_second_engine_has_every_full_page_of_the_first(
    cluster: Cluster, model: str, prompts: list[list[int]], reference: list[Any]
) -> None:
    # However busy the host is: what does not come in time is a miss, and a miss is what this looks for.
    extra = {**cluster.extra, "wait_ms": 8000, "fetch_ms": 8000, "store_ms": 8000}
    with Engine(model, extra) as first:
        assert tokens(alone(first, prompts)) == reference
        saved(cluster, prompts)
    with Engine(model, extra) as second:
        answers = alone(second, prompts)
        assert tokens(answers) == reference
        assert [answer["cached"] for answer in answers] == full(prompts)
        # What the first prompts have in common it has itself from then on.
        expected = full(prompts)
        expected[1:3] = [cached - 600 // PAGE * PAGE for cached in expected[1:3]]
        assert [answer["storage"] for answer in answers] == expected
        # All at once, after it forgot them.
        second.reset()
        together = second.generate(prompts, TOKENS)
        assert tokens(together) == reference
        assert sum(answer["storage"] for answer in together) >= expected[0] + sum(expected[3:])
        # Pages of another tenant's salt are others.
        assert second.generate(prompts[:1], TOKENS, salt="other")[0]["cached"] == 0

        # Detached and attached again while it runs.
        second.reset()
        assert second.detach()[0], "it is detached"
        answers = alone(second, prompts)
        assert tokens(answers) == reference and {answer["storage"] for answer in answers} == {0}
        assert second.attach({**extra, "weights": "others"})[0]
        second.reset()
        answers = alone(second, prompts[:1])
        assert answers[0]["cached"] == 0, "other weights are a miss"
        assert second.detach()[0], "it is detached"
        done, said = second.attach({**extra, "nonsense": 1})
        assert not done and "nonsense: allowed is" in said
        assert second.attach(extra)[0]
        second.reset()
        answers = alone(second, prompts)
        assert tokens(answers) == reference and [answer["storage"] for answer in answers] == expected
    with Engine(model, extra, page_size=16) as other:
        assert alone(other, prompts[:1])[0]["cached"] == 0, "other pages are misses"


def test_a_cluster_that_is_killed_costs_no_answer(
    doomed: Cluster, model: str, prompts: list[list[int]], reference: list[Any]
) -> None:
    extra = {**doomed.extra, "wait_ms": 500, "fetch_ms": 500, "store_ms": 500}
    with Engine(model, extra, hicache_mem_layout="layer_first") as engine:
        assert tokens(alone(engine, prompts)) == reference
        saved(doomed, prompts[:1])
        engine.reset()
        engine.generate(prompts, TOKENS, wait=False)
        doomed.kill()
        assert tokens(engine.answers()) == reference
        engine.reset()
        answers = alone(engine, prompts)
        assert tokens(answers) == reference and {answer["storage"] for answer in answers} == {0}
        assert engine.detach()[0], "it is detached"
        assert tokens(alone(engine, prompts)) == reference
