"""An embedded node: alone, beside others in one cluster, and its setup."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, get_args

import kvhive
import numpy as np
import pytest
from kvhive import worker
from conftest import LAYOUT

SIZE = LAYOUT.block_bytes


def test_a_second_node_joins_and_blocks_are_spread(tmp_path: Path) -> None:
    with kvhive.EmbeddedNode(memory=8 << 20, block_bytes=SIZE, name="first") as first:
        joins = kvhive.EmbeddedNode(
            memory=8 << 20, block_bytes=SIZE, name="second", coordinators=first.coordinators, token=first.token
        )
        with joins as second, second.client() as client:
            assert first.is_serving and second.is_serving and first.data_address != second.data_address
            blocks = client.namespace("spread", LAYOUT)
            prefixes = [blocks.keys([user] * 64) for user in range(64)]
            for prefix in prefixes:
                assert client.store_from(prefix, bytes(4 * SIZE)).acknowledged == 4
            held = [node.stats()["device"]["blocks"] for node in (first, second)]
            assert sum(held) >= 256, "slots that moved meanwhile may be on both"
            assert all(client.match(prefix).covered == 4 for prefix in prefixes)


def test_its_figures_count_what_was_asked() -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE, strategy="adaptive", devices=2) as node, node.client() as client:
        prefix = client.namespace("figures", LAYOUT).keys(range(64))
        client.store_from(prefix, bytes(4 * SIZE))
        client.fetch_into(prefix, bytearray(4 * SIZE))
        stats = node.stats()
        assert (stats["hits"], stats["misses"], stats["hit_rate"]) == (4, 0, 1.0)
        assert stats["device"]["capacity_bytes"] == 2 << 20
        assert any(one["strategy"] == "adaptive" for one in node.adjust_strategy())


def test_a_snapshot_warms_the_next_node(tmp_path: Path) -> None:
    stored = np.random.default_rng(3).integers(0, 256, (4, SIZE), dtype=np.uint8)
    snapshot = tmp_path / "snapshot"
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE) as node, node.client() as client:
        prefix = client.namespace("snapshot", LAYOUT).keys(range(64))
        client.store_from(prefix, stored)
        assert node.persist(snapshot)["blocks"] == 4
        assert node.load(snapshot)["blocks"] == 0, "all of it is there"
        with pytest.raises(kvhive.PersistError, match="nowhere"):
            node.load(tmp_path / "nowhere")


def test_a_stopped_node_says_so() -> None:
    node = kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE)
    node.stop()
    node.stop()
    assert not node.is_serving
    for call in (node.stats, node.client, lambda: asyncio.run(node.async_client())):
        with pytest.raises(kvhive.ClosedError, match="the node has been stopped"):
            call()


def test_a_cluster_that_is_gone_makes_misses() -> None:
    node = kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE)
    client = node.client(request_timeout=0.3)
    prefix = client.namespace("gone", LAYOUT).keys(range(64))
    assert client.store_from(prefix, bytes(4 * SIZE)).acknowledged == 4
    node.stop()
    assert client.match(prefix).covered == 0
    report = client.fetch_into(prefix, bytearray(4 * SIZE))
    assert report.delivered == 0
    assert report.missed == dict.fromkeys(range(4), "its device could not be reached in time")
    with pytest.raises(kvhive.UnreachableError):
        client.refresh()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"block_bytes": 0}, "block_bytes"),
    ({"block_bytes": [8192, 4096]}, "name sizes above 0, growing"),
    ({"memory": 10}, "holds no frame of 4096 bytes"),
    ({"devices": 0}, "devices 0: allowed is a whole number from 1"),
    ({"memory": -1}, "memory -1: allowed is a whole number from 1"),
    ({"gpu": -1}, "gpu -1: allowed is a whole number from 0"),
    ({"nccl": True}, "nccl True: allowed is 'auto', 'off', 'unencrypted'"),
    ({"nccl_after": 0}, "nccl_after 0: allowed is a whole number from 1"),
    ({"nccl_guest_memory": -1}, "nccl_guest_memory -1: allowed is a whole number from 0"),
    ({"block_bytes": [4096, -1]}, "block_bytes -1: allowed is a whole number from 0"),
    ({"strategy": "best"}, 'strategy "best": allowed is'),
    ({"gc_threshold": 2.0}, "gc_threshold 2: allowed is 0.001 to 1"),
    ({"disk": 1 << 20}, "disk_folder is not set"),
    ({"persist_every": 5.0}, "needs a persist_folder"),
    ({"listen": "here"}, 'listen "here"'),
    ({"coordinators": "10.0.0.9:1", "token": b"x"}, "listen '127.0.0.1:0': 10.0.0.9:1 is another host, which would dial itself"),
    ({"coordinators": "127.0.0.1:1", "token": b"x", "listen": "0.0.0.0:1"}, "listen '0.0.0.0:1': others cannot dial every address"),
    ({"coordinators": "127.0.0.1:1"}, "coordinators and token go together"),
    ({"io_threads": 0}, "io_threads"),
    ({"advertise": "10.0.0.5:7810"}, "advertise '10.0.0.5:7810': it goes with coordinators"),
    ({"tls": kvhive.Tls("a", "b", "c")}, "a node alone"),
]


@pytest.mark.parametrize(("setup", "why"), WRONG)
def test_a_wrong_setup_is_named(setup: dict[str, Any], why: str) -> None:
    with pytest.raises(kvhive.NodeSetupError, match=why) as raised:
        kvhive.EmbeddedNode(**({"memory": 1 << 20, "block_bytes": SIZE} | setup))
    assert isinstance(raised.value, ValueError)


def test_a_setup_of_a_wrong_type_is_named() -> None:
    for given, why in (({"memory": "64MiB"}, "memory '64MiB': allowed is a whole number"), ({"block_bytes": "4KiB"}, "block_bytes '4KiB'"),
        ({"labels": "rack"}, "labels 'rack': allowed are names and values"), ({"labels": {"rack": 1}}, "labels 'rack': 1: allowed is text")):
        with pytest.raises(kvhive.WrongTypeError, match=why) as raised:
            kvhive.EmbeddedNode(**({"memory": 1 << 20, "block_bytes": SIZE} | given))
        assert isinstance(raised.value, TypeError) and isinstance(raised.value, kvhive.KvHiveError)


def test_who_cannot_join_a_cluster_learns_why_at_once(node: kvhive.EmbeddedNode) -> None:
    with pytest.raises(kvhive.UnauthorizedError, match="token"):
        kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE, coordinators=node.coordinators, token=b"another")
    with pytest.raises(kvhive.UnreachableError, match="refused"):
        kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE, coordinators="127.0.0.1:1", token=b"another", start_timeout=0.3)


def test_what_coordinators_refuse_is_said_in_their_words() -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE, name="serve-1") as first:
        joins: dict[str, Any] = {"memory": 1 << 20, "block_bytes": SIZE, "coordinators": first.coordinators, "token": first.token}
        with pytest.raises(kvhive.NodeSetupError, match='"A B" is no key of a label'):
            kvhive.EmbeddedNode(**joins, labels={"A B": "x"})
        with pytest.raises(kvhive.RefusedError, match=f"serve-1 is up at {first.data_address}"):
            kvhive.EmbeddedNode(**joins, name="serve-1", start_timeout=0.5)
        assert first.is_serving


def test_who_drew_its_name_is_on_no_list_once_it_has_stopped() -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE) as first:
        joins: dict[str, Any] = {"memory": 1 << 20, "block_bytes": SIZE, "coordinators": first.coordinators, "token": first.token}
        kvhive.EmbeddedNode(**joins).stop()
        kvhive.EmbeddedNode(**joins, name="serve-2").stop()
        asked = urllib.request.Request(
            f"http://{first.admin_address}/v1/cluster", headers={"authorization": f"Bearer {first.token.decode()}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            listed = {one["name"] for one in json.load(answer)["nodes"]}
        assert listed == {first.name, "serve-2"}


def test_a_cluster_that_does_not_answer_ends_the_start(silent_address: str) -> None:
    with pytest.raises(kvhive.UnreachableError, match="no coordinator of .* answered within"):
        kvhive.EmbeddedNode(
            memory=1 << 20, block_bytes=SIZE, coordinators=silent_address, token=b"a token of this test", start_timeout=0.3
        )


def test_disk_and_host_memory_are_tiers(tmp_path: Path) -> None:
    tiers: dict[str, Any] = {"host_memory": 1 << 20, "disk": 4 << 20, "disk_folder": tmp_path}
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=SIZE, codec="lossless", **tiers) as node:
        stats = node.stats()
        assert stats["host"]["capacity_bytes"] == 1 << 20 and stats["disk"]["capacity_bytes"] > 0
    assert any(tmp_path.iterdir())


def test_a_process_that_just_ends_ends(tmp_path: Path) -> None:
    program = f"""
import asyncio, kvhive, threading
node = kvhive.EmbeddedNode(memory=1 << 20, block_bytes={SIZE})
client = node.client()
blocks = client.namespace("ends", kvhive.Layout.opaque({SIZE}, 16))
prefix = blocks.keys(range(64))
client.store_from(prefix, bytes(4 * {SIZE}))
def work():
    while True:
        client.fetch_into(prefix, bytearray(4 * {SIZE}))
threading.Thread(target=work, daemon=True).start()
for _ in range(50):
    client.match(prefix)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_nccl_which_encrypts_nothing_is_on_under_tls_only_where_that_is_said() -> None:
    said = {(use, tls): worker.is_on(use, tls) for use in get_args(worker.Use) for tls in (False, True)}
    assert {one for one, is_on in said.items() if is_on} == {("auto", False), ("unencrypted", False), ("unencrypted", True)}
    assert worker.setup("auto", True, 1, 0) is None
    told = worker.setup("unencrypted", True, 1, 0)
    assert told is not None and (told["after_bytes"], told["guest_bytes"]) == (1, 0)
