"""Block events of the real vLLM and of kvhive, read by vLLM's own classes: both speak of the same blocks by the same hashes.

`scripts/test vllm` runs this.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import KVHIVE, Cluster, prompt

pytest.importorskip("vllm")
if KVHIVE is None:
    pytest.skip("KVHIVE_BIN does not say where the command is", allow_module_level=True)

import msgspec  # noqa: E402
import zmq  # noqa: E402
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher  # noqa: E402
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash  # noqa: E402
from vllm_engine import Engine  # noqa: E402

BLOCK = 32
PATIENCE_SECONDS = 60
TOPIC = b"kv@kvhive@tiny"
LOGS = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
WHOLE = {"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0", **LOGS}


def free_ports(count: int) -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        both = [first, second][:count]
        for one in both:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in both]


def come_to(what: Callable[[], Any], expected: Any) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while (found := what()) != expected:
        assert time.monotonic() < until, found
        time.sleep(0.1)


class Reader:
    """Who follows a publisher as vLLM's are followed: live, and all that was before."""

    def __init__(self, events: str, replay: str, topic: bytes) -> None:
        context = zmq.Context.instance()
        self._live, self._asker = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        self._live.setsockopt(zmq.SUBSCRIBE, topic)
        self._live.connect(events)
        self._asker.connect(replay)
        self._topic = topic
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)

    def all(self) -> list[Any]:
        """Returns every event since the first, as they are repeated."""
        self._asker.send_multipart((b"", (0).to_bytes(8, "big")))
        events: list[Any] = []
        for number in range(1 << 30):
            assert self._asker.poll(1000 * PATIENCE_SECONDS)
            _, topic, given, payload = self._asker.recv_multipart()
            if given == ZmqEventPublisher.END_SEQ:
                return events
            assert (topic, int.from_bytes(given, "big")) == (self._topic, number)
            events += self._decoder.decode(payload).events
        raise AssertionError("it has no end")

    def live(self) -> list[Any]:
        """Returns the events of the next message."""
        assert self._live.poll(1000 * PATIENCE_SECONDS)
        topic, _, payload = self._live.recv_multipart()
        assert topic == self._topic
        events: list[Any] = self._decoder.decode(payload).events
        return events


def told(events: list[Any]) -> dict[Any, tuple[Any, list[int]]]:
    """Of each block that is there and has tokens: the block before it, and its tokens."""
    there: dict[Any, tuple[Any, list[int]]] = {}
    for event in events:
        if isinstance(event, AllBlocksCleared):
            there.clear()
        elif isinstance(event, BlockRemoved):
            for one in event.block_hashes:
                there.pop(one, None)
        elif event.token_ids:
            before, size = event.parent_block_hash, event.block_size
            for at, one in enumerate(event.block_hashes):
                there[one] = (before, event.token_ids[at * size : (at + 1) * size])
                before = one
    return there


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Cluster]:
    named = "KVHIVE_COORDINATOR__COORD_1__BLOCK_EVENTS"
    events, replay = (f"127.0.0.1:{port}" for port in ports)
    variables = {named: events, f"{named}_REPLAY": replay, f"{named}_TOPIC": TOPIC.decode()}
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), variables)
    try:
        yield cluster
    finally:
        cluster.down()


def publishes(name: str) -> tuple[dict[str, Any], list[str]]:
    """What an engine is told, so that it publishes; and where that is."""
    events, replay = free_ports(2)
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": f"kv@{name}@tiny"}
    config |= {"endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"}
    return config, [f"tcp://127.0.0.1:{port}" for port in (events, replay)]


def follow(cluster: Cluster, name: str, log: Path, folder: str) -> None:
    """Does what the engine's log says, word by word."""
    [said] = re.findall(r"coordinators follow this engine by: kvhive (.*)", log.read_text())
    command = f"{KVHIVE} {said} --dir {folder}".replace("NAME", name).replace("HOST", "127.0.0.1")
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    come_to(lambda: heard(cluster, name), True)


def heard(cluster: Cluster, name: str) -> bool:
    known = [one["known"] for one in cluster.json("engines")["engines"] if one["name"] == name]
    return [one["connected"] for one in known] == [True]


def hive_tokens(cluster: Cluster, name: str, file: Path) -> int:
    """How many of a prompt's tokens kvhive has, as a route by tokens is told."""
    [first] = cluster.json("route", "--tokens-file", str(file), "--candidates", name)["ranked"]
    return sum(term["amount"] for term in first["terms"] if term["part"].startswith("hive_"))


def test_kvhives_events_speak_of_what_the_connector_has_stored_as_vllms_own_do(
    cluster: Cluster, ports: list[int], model: str, tmp_path: Path
) -> None:
    asked, log = prompt("told of", 5 * BLOCK + 7), tmp_path / "log"
    file = tmp_path / "prompt.json"
    file.write_text(str(asked))
    config, [events, replay] = publishes("first")
    kvhive = Reader(f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}", TOPIC)
    with Engine(model, cluster.extra, WHOLE, log, kv_events_config=config) as engine:
        follow(cluster, "first", log, cluster.extra["directory"])
        engine.generate([asked])
        own = told(Reader(events, replay, config["topic"].encode()).all())
        hashes = list(own)
        assert [len(one) for one in hashes] == [32] * 5
        assert list(own.values()) == [
            (hashes[at - 1] if at else None, asked[at * BLOCK : (at + 1) * BLOCK]) for at in range(5)
        ]
        # As a router asks that knows them by their numbers: what vLLM makes of a hash unless it is told otherwise.
        cut = [maybe_convert_block_hash(one) for one in hashes]
        assert all(isinstance(one, int) for one in cut)
        come_to(lambda: cluster.ask("/check_blocks", {"block_hashes": cut}), {"ranges": [[0, 5]]})
        come_to(lambda: told(kvhive.all()), own)
        live: list[Any] = []
        while told(live) != own:
            live += kvhive.live()
        stored = [event for event in live if isinstance(event, BlockStored) and event.token_ids]
        assert {(event.medium, event.locality, event.lora_name) for event in stored} == {("CPU", "REMOTE", None)}
        # The engine itself has them first. When it has forgotten them, kvhive has.
        come_to(lambda: hive_tokens(cluster, "first", file), 0)
        engine.reset()
        engine.generate([prompt("next", 40)])
        come_to(lambda: hive_tokens(cluster, "first", file), 5 * BLOCK)
    # Another engine of the same weights that has never heard of the prompt.
    config, _ = publishes("second")
    with Engine(model, cluster.extra, WHOLE, log, kv_events_config=config):
        follow(cluster, "second", log, cluster.extra["directory"])
        assert hive_tokens(cluster, "second", file) == 5 * BLOCK


def test_an_engine_whose_events_cut_its_hashes_says_so(cluster: Cluster, model: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    config, _ = publishes("cut")
    with Engine(model, cluster.extra, LOGS, log, kv_events_config=config):
        pass
    assert log.read_text().count("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0") == 1
