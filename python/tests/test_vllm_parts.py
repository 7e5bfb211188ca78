"""What the connector for vLLM is made of, without vLLM: its settings, and both native halves against a cluster."""

import json
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kvhive
import numpy as np
import pytest
from kvhive._native import EngineCourier, EnginePlanner, EngineTier, engine_fingerprint
from kvhive.vllm.events import follow
from kvhive.vllm.settings import Settings

BLOCK = 4096
TOKENS = 16
PATIENCE_SECONDS = 30


class Worker:
    """A worker of an engine whose blocks are rows of one array."""

    def __init__(self, coordinators: list[str], token: bytes, model: str, **more: Any) -> None:
        settings: dict[str, Any] = {"tls": None, "tenant": "default", "rank": 0, "groups": [(TOKENS, None)]}
        settings |= {"hash_tokens": TOKENS, "block_bytes": [BLOCK], "wait": 5.0, "asks": 4, "memory": 1 << 20}
        settings |= {"allocate": lambda size: np.empty(size, np.uint8)}
        self.courier = EngineCourier(coordinators=coordinators, token=token, model=model, **(settings | more))
        self.blocks = np.zeros((32, BLOCK), np.uint8)

    def step(self, planner: EnginePlanner, computed: dict[int, int] | None = None) -> None:
        """One step of an engine, whose forward pass fills some blocks with a number each."""
        self.courier.told(planner.orders())
        for number, [(memory, row, blocks)] in self.courier.loads():
            self.blocks[blocks] = memory.reshape(-1, BLOCK)[row : row + len(blocks)]
            self.courier.loaded(number)
        for block, value in (computed or {}).items():
            self.blocks[block] = value
        for number, _, blocks in self.courier.saves():
            self.courier.store(number, self.blocks[blocks])
        if reports := self.courier.reports():
            planner.heard(reports)


def planner_of(**more: Any) -> EnginePlanner:
    settings: dict[str, Any] = {"groups": [(TOKENS, None)], "hash_tokens": TOKENS, "ranks": 1, "wait": 5.0, "asks": 4}
    settings |= {"least_tokens": 1, "loads": True, "saves": True, "known": 60.0}
    return EnginePlanner(**(settings | more))


def hashes(of: str, count: int) -> list[bytes]:
    return [f"{of}{at}".encode() for at in range(count)]


def matched(planner: EnginePlanner, worker: Worker, request: str, tokens: int, names: list[bytes], local: int = 0) -> int:
    """Asks as vLLM's scheduler does, step after step."""
    until = time.monotonic() + PATIENCE_SECONDS
    while (found := planner.matched(request, local, tokens, names)) is None:
        assert time.monotonic() < until, "every question is answered"
        worker.step(planner)
    return found


@pytest.fixture
def worker(node: kvhive.EmbeddedNode, request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = Worker(node.coordinators, node.token, request.node.nodeid)
    yield worker
    assert worker.courier.flush(PATIENCE_SECONDS)


def computes(worker: Worker, request: str, names: list[bytes]) -> EnginePlanner:
    """An engine that computes a request's blocks, each full of a number, and saves them."""
    planner = planner_of()
    assert matched(planner, worker, request, len(names) * TOKENS + 1, names) == 0
    planner.allocated(request, [list(range(1, len(names) + 2))], 0)
    planner.scheduled(request, [list(range(1, len(names) + 2))], True, len(names) * TOKENS + 1, names)
    worker.step(planner, {block: block * 10 for block in range(1, len(names) + 1)})
    assert worker.courier.flush(PATIENCE_SECONDS)
    worker.step(planner)
    planner.finished(request)
    return planner


def test_one_engine_loads_what_another_has_computed(node: kvhive.EmbeddedNode, worker: Worker) -> None:
    names = hashes("a", 6)
    computes(worker, "r", names)
    other, planner = Worker(node.coordinators, node.token, worker.courier.model), planner_of()
    assert matched(planner, other, "s", 6 * TOKENS + 5, names, local=TOKENS) == 5 * TOKENS
    planner.allocated("s", [[20, 21, 22, 23, 24, 25, 26]], 5 * TOKENS)
    other.step(planner)
    assert other.blocks[20:27, 0].tolist() == [0, 20, 30, 40, 50, 60, 0]
    assert (other.blocks[25] == 60).all()
    figures = dict(other.courier.figures())
    assert (figures["asks"], figures["tokens_loaded"], figures["blocks_saved"]) == (1, 5 * TOKENS, 0)
    assert dict(worker.courier.figures())["blocks_saved"] == 6


def test_what_is_saved_already_is_not_sent_again(worker: Worker) -> None:
    names = hashes("b", 4)
    planner = computes(worker, "r", names)
    planner.scheduled("s", None, False, 0, names)
    assert matched(planner, worker, "s", 4 * TOKENS + 1, names, local=4 * TOKENS) == 0
    planner.scheduled("s", [[1, 2, 3, 4, 9]], True, 4 * TOKENS + 1, names)
    worker.step(planner)
    assert dict(worker.courier.figures())["blocks_saved"] == 4


def test_another_model_rank_or_shape_finds_nothing(node: kvhive.EmbeddedNode, worker: Worker) -> None:
    names = hashes("c", 3)
    computes(worker, "r", names)
    model = worker.courier.model
    for more in ({"model": "other"}, {"rank": 1}, {"block_bytes": [BLOCK * 2]}):
        given: dict[str, Any] = {"model": model, **more}
        other = Worker(node.coordinators, node.token, **given)
        assert matched(planner_of(), other, "s", 3 * TOKENS + 1, names) == 0
    same = Worker(node.coordinators, node.token, model)
    assert matched(planner_of(), same, "s", 3 * TOKENS + 1, names) == 3 * TOKENS


def test_a_cluster_that_is_gone_costs_a_bounded_wait() -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=BLOCK) as node:
        worker = Worker(node.coordinators, node.token, "gone", wait=0.2)
        names = hashes("d", 3)
        computes(worker, "r", names)
        kept, planner = dict(worker.courier.figures()), planner_of()
        assert matched(planner, worker, "s", 3 * TOKENS + 1, names) == 3 * TOKENS
    # What was promised is held here, and nobody is needed any more.
    planner.allocated("s", [[11, 12, 13, 14]], 3 * TOKENS)
    worker.step(planner)
    assert worker.blocks[11:14, 0].tolist() == [10, 20, 30]
    for at in range(6):
        assert matched(planner, worker, f"t{at}", 3 * TOKENS + 1, hashes(f"t{at}", 3)) == 0
    figures = dict(worker.courier.figures())
    assert figures["late"] >= 1 and figures["unasked"] >= 1
    assert figures["blocks_saved"] == kept["blocks_saved"] == 3
    assert worker.courier.troubles()
    assert worker.courier.troubles() == []


def test_a_cluster_that_never_answered_stops_nobody(silent_address: str) -> None:
    worker, planner = Worker([silent_address], b"token", "silent", wait=0.2), planner_of()
    assert matched(planner, worker, "r", 4 * TOKENS, hashes("e", 3)) == 0
    planner.scheduled("r", [[1, 2, 3]], True, 3 * TOKENS, hashes("e", 3))
    worker.step(planner, {1: 1, 2: 2, 3: 3})
    # An engine that ends now says what it does not wait for.
    assert not worker.courier.flush(0.01)
    # And what went wrong before is not hidden by it.
    *before, last = worker.courier.troubles()
    assert before and last == "3 blocks are still being saved after 10ms"
    assert worker.courier.flush(PATIENCE_SECONDS)
    assert dict(worker.courier.figures())["blocks_lost"] == 3
    assert worker.courier.troubles(), "that they are lost is told too"


def test_blocks_for_which_memory_has_no_room_are_told_of(node: kvhive.EmbeddedNode) -> None:
    worker, planner = Worker(node.coordinators, node.token, "small memory", memory=2 * BLOCK), planner_of(loads=False)
    names = hashes("n", 5)
    planner.matched("r", 0, 5 * TOKENS + 1, names)
    planner.scheduled("r", [[1, 2, 3, 4, 5, 6]], True, 3 * TOKENS, names)
    worker.step(planner, {1: 1, 2: 2, 3: 3})
    assert worker.courier.troubles() == [
        "blocks are not saved: memory for blocks on their way has no room for them (memory_mb, gpu_memory_mb)"
    ]
    planner.scheduled("r", None, False, 5 * TOKENS, names)
    worker.step(planner, {4: 4, 5: 5})
    assert worker.courier.flush(PATIENCE_SECONDS) and worker.courier.troubles() == []
    figures = dict(worker.courier.figures())
    assert (figures["blocks_saved"], figures["blocks_lost"], figures["no_memory"]) == (2, 3, 1)


def test_a_save_that_was_never_sent_is_lost_and_keeps_no_other_from_being_made(node: kvhive.EmbeddedNode) -> None:
    worker, planner = Worker(node.coordinators, node.token, "unsent"), planner_of(loads=False)
    names = hashes("o", 2)
    planner.matched("r", 0, 2 * TOKENS + 1, names)
    planner.scheduled("r", [[1, 2, 3]], True, TOKENS, names)
    worker.courier.told(planner.orders())
    [(number, _, blocks)] = worker.courier.saves()
    assert blocks == [1]
    worker.courier.unsaved(number)
    planner.scheduled("r", None, False, 2 * TOKENS, names)
    worker.step(planner, {2: 2})
    assert worker.courier.flush(PATIENCE_SECONDS)
    figures = dict(worker.courier.figures())
    assert (figures["blocks_saved"], figures["blocks_lost"]) == (1, 1)
    # Who comes with the same block saves it.
    worker.step(planner)
    planner.matched("s", 0, TOKENS + 1, names[:1])
    planner.scheduled("s", [[7, 8]], True, TOKENS + 1, names[:1])
    worker.step(planner, {7: 7})
    assert worker.courier.flush(PATIENCE_SECONDS)
    assert dict(worker.courier.figures())["blocks_saved"] == 2


def test_a_block_that_no_frame_holds_is_told_of(node: kvhive.EmbeddedNode) -> None:
    worker, planner = Worker(node.coordinators, node.token, "large", block_bytes=[2 << 20], memory=8 << 20), planner_of()
    worker.blocks = np.zeros((3, 2 << 20), np.uint8)
    planner.matched("r", 0, TOKENS + 1, hashes("g", 1))
    planner.scheduled("r", [[1, 2]], True, TOKENS + 1, hashes("g", 1))
    worker.step(planner, {1: 1})
    assert worker.courier.flush(PATIENCE_SECONDS)
    assert worker.courier.troubles() == [
        "a block of 2097152 bytes is not stored: no frame is large enough for it: the largest frames have 1048576 bytes (kvhive up --block-size)"
    ]
    assert dict(worker.courier.figures())["blocks_lost"] == 1


def test_a_full_cluster_takes_no_block_and_says_so() -> None:
    layout = kvhive.Layout.opaque(BLOCK, TOKENS)
    with (
        kvhive.EmbeddedNode(memory=8 * BLOCK, block_bytes=BLOCK, mode="bulk") as node,
        node.client(hold=20.0) as client,
        ExitStack() as ends,
    ):
        held = client.namespace("held", layout).keys(range(8 * TOKENS))
        assert client.store_from(held, bytes(8 * BLOCK)).acknowledged == 8
        is_over = threading.Event()

        def hold() -> None:
            # Of none of its frames a block may leave.
            while not is_over.wait(1):
                client.match(held)

        assert client.match(held).covered == 8
        ends.callback(threading.Thread.join, holds := threading.Thread(target=hold))
        ends.callback(is_over.set)
        holds.start()
        worker, planner = Worker(node.coordinators, node.token, "full"), planner_of()
        names = hashes("k", 3)
        assert matched(planner, worker, "r", 3 * TOKENS + 1, names) == 0
        planner.allocated("r", [[1, 2, 3, 4]], 0)
        planner.scheduled("r", [[1, 2, 3, 4]], True, 3 * TOKENS + 1, names)
        worker.step(planner, {1: 10, 2: 20, 3: 30})
        assert worker.courier.flush(PATIENCE_SECONDS)
        worker.step(planner)
        planner.finished("r")
        figures = dict(worker.courier.figures())
        assert (figures["blocks_saved"], figures["blocks_lost"]) == (0, 3)
        assert "every frame of its size is in use or held" in str(worker.courier.troubles())
        # Whoever needs them computes them, and what was there stays.
        other = Worker(node.coordinators, node.token, "full")
        assert matched(planner_of(), other, "s", 3 * TOKENS + 1, names) == 0
        assert client.match(held).covered == 8


def test_memory_that_cannot_be_had_is_a_miss(node: kvhive.EmbeddedNode, worker: Worker) -> None:
    names = hashes("f", 3)
    computes(worker, "r", names)

    def none(size: int) -> object:
        raise MemoryError(f"no {size} bytes")

    other = Worker(node.coordinators, node.token, worker.courier.model, allocate=none)
    assert matched(planner_of(), other, "s", 3 * TOKENS + 1, names) == 0
    assert other.courier.troubles() == [f"no memory to fetch into: MemoryError: no {3 * BLOCK} bytes"]


def test_what_is_wished_for_a_requests_blocks_is_done_by_its_workers(node: kvhive.EmbeddedNode, worker: Worker) -> None:
    names = hashes("h", 4)

    def ends(request: str, *wishes: tuple[str, str]) -> None:
        planner = planner_of()
        planner.scheduled(request, None, False, 0, names)
        for kind, payload in wishes:
            assert planner.wished(request, kind, "1", payload, names)
        planner.finished(request)
        worker.step(planner)

    def pins() -> dict[str, tuple[int, bool]]:
        with node.client() as client:
            return {pin.name: (pin.blocks, pin.until is None) for pin in client.pins() if pin.name.startswith("wished")}

    def come_to(expected: dict[str, tuple[int, bool]]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while pins() != expected:
            assert time.monotonic() < until, (pins(), worker.courier.troubles())

    # Before the blocks are there: what comes is pinned.
    ends("r", ("kvhive.pin", '{"name": "wished"}'))
    come_to({"wished.0.0": (4, True)})
    computes(worker, "r", names)
    ends("s", ("kvhive.pin", f'{{"name": "wished", "seconds": 600, "tokens": {2 * TOKENS + 3}}}'))
    come_to({"wished.0.0": (2, False)})
    ends("t", ("kvhive.session", '{"returns_after": 30}'), ("kvhive.unpin", '{"name": "wished"}'))
    come_to({})
    assert worker.courier.troubles() == []
    ends("u", ("kvhive.unpin", '{"name": "wished"}'))
    until = time.monotonic() + PATIENCE_SECONDS
    while not (troubles := worker.courier.troubles()):
        assert time.monotonic() < until
    assert "no pin" in str(troubles)
    planner = planner_of()
    assert not planner.wished("r", "nvidia.prefetch", "7", "{}", names), "it is somebody else's"
    with pytest.raises(kvhive.MisuseError, match="kvhive.pin: missing field `name`"):
        planner.wished("r", "kvhive.pin", "1", "{}", names)


def test_a_load_that_was_not_promised_raises(worker: Worker) -> None:
    planner = planner_of()
    with pytest.raises(kvhive.MisuseError, match="request r: 32 tokens are to be loaded, and 0 were promised"):
        planner.allocated("r", [[1, 2]], 32)


def test_a_fingerprint_is_of_all_facts() -> None:
    one = engine_fingerprint("vllm", [("dtype", "float16"), ("tp", "2")])
    assert one == engine_fingerprint("vllm", [("tp", "2"), ("dtype", "float16")])
    assert one != engine_fingerprint("vllm", [("tp", "2"), ("dtype", "bfloat16")])


def test_settings_are_read_and_checked(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    told = {"coordinators": "10.0.0.1:7801, 10.0.0.2:7801", "token_file": str(tmp_path / "token"), "wait_ms": 200}
    settings = Settings.of(told)
    assert settings.coordinators == ("10.0.0.1:7801", "10.0.0.2:7801")
    assert (settings.token, settings.wait_ms, settings.tenant, settings.weights) == ("secret", 200, "default", None)
    spoilt: list[tuple[dict[str, Any], str]] = [
        ({**told, "wiat_ms": 3}, "wiat_ms: allowed is asks, coordinators"),
        ({**told, "wait_ms": 0}, "wait_ms=0: allowed is 1 to 600000"),
        ({**told, "memory_mb": True}, "memory_mb=True"),
        ({**told, "tenant": ""}, "tenant='': allowed is a name"),
        ({**told, "token": "x"}, "one of them goes with coordinators"),
        ({"coordinators": "x:1"}, "one of them goes with coordinators"),
        ({**told, "coordinators": "10.0.0.1:7801, 10.0.0.2"}, "coordinators='10.0.0.2': allowed is host:port"),
        ({"coordinators": "x:1", "token": " "}, "token: it is empty"),
        ({"coordinators": "x:1", "token_file": "/nowhere"}, "token_file='/nowhere': it cannot be read"),
        ({**told, "tls": {"certificate": "a"}}, "tls=.*allowed is"),
        ({"token": "x"}, "they go with coordinators"),
        ({**told, "directory": "/x"}, "directory"),
        ({"directory": str(tmp_path)}, "no local cluster runs in"),
    ]
    for given, why in spoilt:
        with pytest.raises(kvhive.MisuseError, match=why):
            Settings.of(given)


class Pool:
    """A pool of an engine's chunks with a tier behind it."""

    def __init__(self, node: kvhive.EmbeddedNode, model: str, wait: float = 5.0) -> None:
        told: dict[str, Any] = {"coordinators": node.coordinators, "token": node.token, "tls": None, "tenant": "default"}
        self.tier = EngineTier(**told, model=model, block_bytes=BLOCK, wait=wait)
        self.chunks = np.zeros((8, BLOCK), np.uint8)

    def rows(self, chunks: list[int]) -> list[np.ndarray[Any, Any]]:
        return [self.chunks[chunk] for chunk in chunks]

    def found(self, names: list[bytes]) -> list[bool]:
        """Asks as vLLM's scheduler does, step after step."""
        until = time.monotonic() + PATIENCE_SECONDS
        while None in (found := [self.tier.lookup(name) for name in names]):
            assert time.monotonic() < until, "every question is answered"
            self.tier.ask()
        return [bool(one) for one in found]

    def over(self) -> list[tuple[int, bool, list[int]]]:
        self.tier.drain()
        return [(job, success, done) for job, success, done, _, _ in self.tier.finished()]


def test_chunks_go_from_one_pool_to_another(node: kvhive.EmbeddedNode) -> None:
    one, other = Pool(node, "chunks"), Pool(node, "chunks")
    names = hashes("h", 5)
    for chunk in (1, 2, 3):
        one.chunks[chunk] = chunk * 10
    one.tier.store(7, names[1:4], one.rows([1, 2, 3]))
    assert one.over() == [(7, True, [0, 1, 2])]
    assert one.found(names[1:4]) == [True] * 3, "without asking"
    # Whatever is before or behind a chunk says nothing of it.
    assert other.found(names) == [False, True, True, True, False]
    other.tier.load(8, [names[3], names[1]], other.rows([5, 6]))
    assert other.over() == [(8, True, [0, 1])]
    assert other.chunks[:, 0].tolist() == [0, 0, 0, 0, 0, 30, 10, 0]
    other.tier.load(9, [names[0], names[2]], other.rows([0, 7]))
    assert other.over() == [(9, False, [1])]
    assert other.chunks[7, 0] == 20 and not other.tier.is_busy()
    assert Pool(node, "other chunks").found(names[1:4]) == [False] * 3


def test_what_is_wished_for_a_requests_chunks_is_done(node: kvhive.EmbeddedNode) -> None:
    tier = Pool(node, "wished").tier
    chunks = [(name, (at + 1) * TOKENS) for at, name in enumerate(hashes("m", 3))]

    def come_to(expected: dict[str, int]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            with node.client() as client:
                pins = {pin.name: pin.blocks for pin in client.pins() if pin.name.startswith("chunks")}
            if pins == expected:
                return
            assert time.monotonic() < until, (pins, tier.troubles())

    assert tier.wish("kvhive.pin", "1", f'{{"name": "chunks", "tokens": {2 * TOKENS + 1}}}', chunks)
    come_to({"chunks.tier": 2})
    assert tier.wish("kvhive.pin", "1", '{"name": "chunks", "seconds": 600}', chunks)
    come_to({"chunks.tier": 3})
    assert tier.wish("kvhive.session", "1", '{"over": true}', chunks)
    assert tier.wish("kvhive.unpin", "1", '{"name": "chunks"}', [])
    come_to({})
    assert tier.troubles() == []
    assert not tier.wish("nvidia.prefetch", "7", "{}", chunks), "it is somebody else's"
    with pytest.raises(kvhive.MisuseError, match="kvhive.pin: missing field `name`"):
        tier.wish("kvhive.pin", "1", "{}", chunks)


def test_a_tier_without_a_cluster_misses_and_says_so() -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=BLOCK) as node:
        pool = Pool(node, "gone", wait=0.2)
        pool.tier.store(1, hashes("i", 2), pool.rows([1, 2]))
        assert pool.over() == [(1, True, [0, 1])]
        late = Pool(node, "late", wait=0.2)
        late.tier.store(1, hashes("p", 1), late.rows([1]))
        assert late.over() == [(1, True, [0])] and late.tier.troubles() == []
    for job in (2, 3):
        late.tier.store(job, hashes(f"q{job}", 2), late.rows([job, job + 2]))
    pool.tier.load(2, hashes("i", 2), pool.rows([1, 2]))
    assert pool.over() == [(2, False, [])]
    assert pool.found(hashes("i", 2)) == [False, False], "what could not be had is not promised again"
    for at in range(4):
        assert pool.found(hashes(f"j{at}", 3)) == [False] * 3
    assert pool.tier.troubles()
    # Requests wait for nothing any more; none waits for a store, which is made and not taken.
    pool.tier.store(3, hashes("k", 1), pool.rows([3]))
    assert sorted(late.over()) == [(2, False, []), (3, False, [])]
    assert "2 of 2 blocks are not stored: no " in str(late.tier.troubles())
    late.tier.store(4, hashes("r", 1), late.rows([3]))
    assert late.over() == [(4, False, [])]
    # Not sent, or where the machine was so slow that the cluster is asked again, not taken.
    troubles = str(late.tier.troubles())
    assert "blocks are not saved: no node answered the last saves" in troubles or "1 of 1 blocks are not stored" in troubles, troubles
    assert pool.over() == [(3, False, [])]
    assert "1 of 1 blocks are not stored: no " in str(pool.tier.troubles())


def test_rows_that_do_not_fit_are_refused(node: kvhive.EmbeddedNode) -> None:
    pool = Pool(node, "odd")
    with pytest.raises(kvhive.MisuseError, match="1 rows for 2 chunks"):
        pool.tier.store(1, hashes("l", 2), pool.rows([1]))
    with pytest.raises(kvhive.BadBufferError, match="no whole number of blocks"):
        pool.tier.load(1, hashes("l", 1), [np.zeros(BLOCK - 1, np.uint8)])
    assert not pool.tier.is_busy()


def test_the_command_that_follows_an_engine_names_its_blocks_as_it_stores_them() -> None:
    where: dict[str, Any] = {"rank": 0, "tenant": "default", "events": "tcp://*:5557", "replay": None}
    told = follow("vllm#0123", [(16, None), (16, 128)], [BLOCK, 2 * BLOCK], **where)
    assert told is not None
    words, blocks = told.removesuffix(")").split(" <(echo ")
    named = "kvhive engines follow NAME --model 'vllm#0123/0' --block-tokens 16 --events tcp://HOST:5557"
    assert words == f"{named} --blocks-file"
    layout = {"layers": 1, "kv_heads": 1, "head_dim": BLOCK, "tokens": 16, "dtype": "u8", "order": "packed"}
    assert json.loads(shlex.split(blocks)[0]) == {"layout": layout, "rank": 0, "named_by": "hashes"}
    more = follow("vllm#0123", [(16, None)], [BLOCK], **{**where, "tenant": "acme", "replay": "tcp://*:5558"})
    assert more is not None and "--replay tcp://HOST:5558 --tenant acme" in more
    # Events of its first group name no whole prompts.
    assert follow("vllm#0123", [(16, 128), (16, None)], [BLOCK, BLOCK], **where) is None
