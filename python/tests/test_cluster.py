"""Against a cluster of processes that speak TLS: what is local is found, and an embedded node is one more member."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import kvhive
import numpy as np
import pytest
from conftest import LAYOUT, STORY, ask, small_engine

from kvhive.engine import AutoScaler, UltraAdaptiveKVCacheEngine

SIZE = LAYOUT.block_bytes
KVHIVE = os.environ.get("KVHIVE_BIN")

pytestmark = pytest.mark.skipif(KVHIVE is None, reason="KVHIVE_BIN does not say where the command is")


def command(folder: Path, *words: str) -> str:
    done = subprocess.run([str(KVHIVE), *words, "--dir", folder], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running cluster of one coordinator and one node."""
    folder = tmp_path_factory.mktemp("cluster")
    shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--tls"]
    command(folder, "up", "--detach", *shape, "--device-memory", "8MiB", "--host-memory", "0B", "--block-size", "4KiB")
    try:
        yield folder
    finally:
        command(folder, "down")


def member(folder: Path) -> kvhive.Tls:
    return kvhive.Tls(folder / "tls" / "member.pem", folder / "tls" / "member.key", folder / "tls" / "authority.pem")


def test_a_local_cluster_is_found_with_its_certificates(folder: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (4, SIZE), dtype=np.uint8)
    with kvhive.Client.local(folder) as client:
        prefix = client.namespace("local", LAYOUT).keys(range(64))
        assert client.store_from(prefix, stored).acknowledged == 4
        fetched = np.zeros_like(stored)
        assert client.fetch_into(prefix, fetched).delivered == 4
        assert (fetched == stored).all()
    with pytest.raises(kvhive.MisuseError, match="no local cluster runs in"):
        kvhive.Client.local(folder / "nowhere")


def test_who_speaks_without_tls_is_told(folder: Path) -> None:
    running = json.loads((folder / "running.json").read_text())
    token = (folder / "token").read_text()
    with pytest.raises(kvhive.KvHiveError, match="TLS") as refused:
        kvhive.Client(running["coordinators"], token, request_timeout=2)
    assert isinstance(refused.value, kvhive.TlsError)


def test_an_embedded_node_is_one_more_member(folder: Path) -> None:
    running = json.loads((folder / "running.json").read_text())
    joins = kvhive.EmbeddedNode(
        memory=8 << 20,
        block_bytes=SIZE,
        name="inside",
        coordinators=running["coordinators"],
        token=(folder / "token").read_text(),
        tls=member(folder),
        labels={"zone": "python"},
    )
    with joins as node, node.client() as client:
        names = [one["name"] for one in json.loads(command(folder, "status", "--json"))["nodes"]]
        assert sorted(names) == ["inside", "node-1"]
        blocks = client.namespace("member", LAYOUT)
        stored: list[tuple[int, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]] = []
        deadline = time.monotonic() + 60
        # Slots come to it one by one.
        while node.stats()["device"]["blocks"] < 40:
            assert time.monotonic() < deadline, node.stats()
            user = len(stored)
            if user == 300:
                # As much as surely fits before any has come: what is there comes with its slot.
                time.sleep(0.02)
                continue
            stored.append((user, np.random.default_rng(user).integers(0, 256, (4, SIZE), dtype=np.uint8)))
            assert client.store_from(blocks.keys([user] * 64), stored[-1][1], ack="all").acknowledged == 4
        with kvhive.Client.local(folder) as other:
            names_there = other.namespace("member", LAYOUT)
            for user, memory in stored[-100:]:
                fetched = np.zeros_like(memory)
                assert other.fetch_into(names_there.keys([user] * 64), fetched).delivered == 4
                assert (fetched == memory).all()


def test_an_engine_joins_with_the_certificates_that_are_said(folder: Path) -> None:
    running = json.loads((folder / "running.json").read_text())
    config = small_engine(
        enable_distributed=True,
        cluster_address=",".join(running["coordinators"]),
        token_file=folder / "token",
        admin_address=running["admin_urls"][0].removeprefix("https://"),
        use_compression=False,
        tls=member(folder),
    )
    with UltraAdaptiveKVCacheEngine(config) as engine:
        assert not ask(engine, STORY)["cache_hit"]
        engine.flush()
        assert ask(engine, STORY)["cache_hit"] and engine.get_stats()["cache_failures"] == 0
        assert AutoScaler(engine).get_recommended_scaling()["current"] == 2
