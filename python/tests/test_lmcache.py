"""The real LMCache on a machine without a GPU: its storage managers, in processes of their own and in this one, share a cluster.

`scripts/test lmcache` runs this; it takes gigabytes of packages.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import kvhive
import pytest

pytest.importorskip("lmcache")

import torch  # noqa: E402
from kvhive.lmcache.native import facts  # noqa: E402
from kvhive.lmcache.settings import Settings  # noqa: E402
from lmcache.v1.distributed.api import MemoryLayoutDesc  # noqa: E402
from lmcache_storage import keys, load, storage_manager, store  # noqa: E402

HERE = Path(__file__).parent
LMCACHE = [sys.executable, "-W", "ignore", "-m", "lmcache.cli.main"]
ENVIRONMENT = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
PATIENCE_SECONDS = 120.0
SHAPE = [2, 2, 256, 32]
LAYOUT = MemoryLayoutDesc([torch.Size(SHAPE)], [torch.bfloat16])
WAYS = {
    "plugin": {"module_path": "kvhive.lmcache.adapter", "class_name": "KvHiveAdapter"},
    "native_plugin": {"module_path": "kvhive.lmcache", "class_name": "KvHiveL2"},
}


def adapter(way: str, node: kvhive.EmbeddedNode, **more: Any) -> dict[str, Any]:
    """Returns what `--l2-adapter` is given."""
    told = {"coordinators": list(node.coordinators), "token": node.token.decode(), "wait_ms": 5000, **more}
    return {"type": way, **WAYS[way], "adapter_params": told}


@contextmanager
def manager(told: dict[str, Any]) -> Iterator[Any]:
    manager = storage_manager(told)
    try:
        yield manager
    finally:
        manager.close()


def loaded(told: dict[str, Any], *named: Any, layout: MemoryLayoutDesc = LAYOUT, **more: Any) -> tuple[int, int]:
    """Returns how many objects a server that has just begun finds, and how many of them are what was stored."""
    with manager(told) as one:
        came = load(one, keys(*named, **more), layout)
    assert came["hits"] == came["from the cluster"]
    return came["hits"], came["equal"]


def in_a_process(verb: str, told: dict[str, Any], chunks: int) -> Any:
    more = {"model": "m", "ranks": 2, "salt": "", "shape": SHAPE, "dtype": "bfloat16", "chunks": chunks}
    given = json.dumps({"verb": verb, "adapter": told, **more})
    program = [sys.executable, "-W", "ignore", str(HERE / "lmcache_storage.py")]
    done = subprocess.run(program, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", WAYS)
def test_what_one_server_has_stored_another_loads(way: str, node: kvhive.EmbeddedNode) -> None:
    told = adapter(way, node)
    stored = in_a_process("store", told, 5)
    assert (stored["kept"], stored["lost"]) == (10, 0)
    came = in_a_process("load", told, 8)
    assert (came["hits"], came["from the cluster"], came["equal"]) == (10, 10, 10), "5 chunks of each of 2 ranks, and no more"


def test_the_two_ways_share_nothing(node: kvhive.EmbeddedNode) -> None:
    with manager(adapter("plugin", node)) as one:
        store(one, keys("ways", 2), LAYOUT)
    assert loaded(adapter("native_plugin", node), "ways", 2) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_differs_is_a_miss(way: str, node: kvhive.EmbeddedNode) -> None:
    told = adapter(way, node)
    with manager(told) as one:
        store(one, keys("misses", 2), LAYOUT)
    assert loaded(told, "misses", 2) == (2, 2)
    assert loaded(told, "other", 2) == (0, 0), "another model"
    assert loaded(told, "misses", 2, ranks=2) == (0, 0), "another world"
    assert loaded(told, "misses", 2, salt="u") == (0, 0), "another user"
    shorter = MemoryLayoutDesc([torch.Size([2, 2, 128, 32])], [torch.bfloat16])
    assert loaded(told, "misses", 2, layout=shorter) == (0, 0), "smaller chunks"
    assert loaded(adapter(way, node, facts={"weights": "2"}), "misses", 2) == (0, 0), "other weights"


def test_an_object_that_is_laid_out_otherwise_is_a_miss(node: kvhive.EmbeddedNode) -> None:
    told = adapter("plugin", node)
    with manager(told) as one:
        store(one, keys("layouts", 2), LAYOUT)
    as_long = [
        MemoryLayoutDesc([torch.Size(SHAPE)], [torch.float16]),
        MemoryLayoutDesc([torch.Size([2, 256, 2, 32])], [torch.bfloat16]),
        MemoryLayoutDesc([torch.Size([1, 2, 256, 32])] * 2, [torch.bfloat16] * 2),
    ]
    for layout in as_long:
        assert loaded(told, "layouts", 2, layout=layout) == (0, 0)
    # It does not stand in the others' way either.
    with manager(told) as one:
        assert store(one, keys("layouts", 2), as_long[0])["kept"] == 2
    assert loaded(told, "layouts", 2, layout=as_long[0]) == loaded(told, "layouts", 2) == (2, 2)


def test_objects_that_are_encoded_on_their_way_take_the_native_connector(node: kvhive.EmbeddedNode) -> None:
    for way, found in [("native_plugin", 2), ("plugin", 0)]:
        told = {**adapter(way, node), "serde": {"type": "fp8", "fp8_dtype": "float8_e4m3fn"}}
        with manager(told) as one:
            assert store(one, keys("encoded", 2), LAYOUT)["kept"] == 2
        assert loaded(told, "encoded", 2)[0] == found


def test_a_cluster_that_is_gone_costs_a_bounded_wait() -> None:
    with kvhive.EmbeddedNode(memory=4 << 20, block_bytes=64 << 10) as node:
        told = adapter("plugin", node, wait_ms=200, load_ms=200)
        running = storage_manager(told)
        assert store(running, keys("before", 2), LAYOUT)["kept"] == 2
    try:
        assert store(running, keys("after", 1), LAYOUT)["lost"] == 1
        for text in range(5):
            assert load(running, keys(f"text {text}", 3), LAYOUT)["hits"] == 0
        # What this server has itself it goes on to have.
        came = load(running, keys("before", 2), LAYOUT)
        assert (came["hits"], came["from the cluster"], came["equal"]) == (2, 0, 2)
    finally:
        running.close()


def test_a_silent_cluster_costs_a_bounded_wait(silent_address: str) -> None:
    told = {"coordinators": silent_address, "token": "x" * 32, "wait_ms": 100}
    with manager({"type": "plugin", **WAYS["plugin"], "adapter_params": told}) as one:
        for text in range(5):
            assert load(one, keys(f"text {text}", 3), LAYOUT)["hits"] == 0


def test_what_a_cluster_has_no_room_for_is_lost_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=16 << 10) as node, manager(adapter("plugin", node)) as one:
        assert store(one, keys("large", 3), LAYOUT)["lost"] == 3
        assert load(one, keys("larger", 3), LAYOUT)["hits"] == 0
    assert "65536 bytes are not stored: no frame is large enough for it" in caplog.text


def lmcache(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*LMCACHE, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("way", WAYS)
def test_the_bench_of_lmcache_verifies_what_comes_back(way: str, node: kvhive.EmbeddedNode) -> None:
    told = json.dumps(adapter(way, node))
    shape = ["--num-keys", "4", "--in-flight", "2", "--data-size-kb", "64", "--rounds", "2", "--no-skip-verify"]
    done = lmcache("bench", "l2", "--l2-adapter", told, *shape)
    assert "success_keys=8/8" in done.stdout and "loaded=8/8" in done.stdout
    assert "data verified OK" in done.stdout and "MISMATCH" not in done.stdout, done.stdout


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        listeners = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


@contextmanager
def server(told: dict[str, Any], log: Path) -> Iterator[list[str]]:
    """Runs a whole server of LMCache, and says how its bench is pointed at it."""
    rpc, http, metrics = free_ports(3)
    ports = ["--port", str(rpc), "--http-port", str(http), "--prometheus-port", str(metrics)]
    hosts = ["--host", "127.0.0.1", "--http-host", "127.0.0.1"]
    memory = ["--chunk-size", "64", "--l1-size-gb", "0.25", "--no-l1-use-lazy", "--eviction-policy", "LRU"]
    words = ["server", *hosts, *ports, *memory, "--supported-transfer-mode", "auto", "--l2-adapter", json.dumps(told)]
    with log.open("w") as said:
        process = subprocess.Popen([*LMCACHE, *words], stdout=said, stderr=said, env=ENVIRONMENT)
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while not is_healthy(http):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield ["--rpc-url", f"tcp://127.0.0.1:{rpc}", "--url", f"http://127.0.0.1:{http}"]
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return json.load(answer)["is_healthy"] is True
    except OSError:
        return False


def test_whole_servers_share_what_an_engine_has_stored(tmp_path: Path) -> None:
    engine = ["--mode", "cpu", "--kvcache-shape-spec", "(2,256,16,2,64):bfloat16:4"]
    requests = ["--num-tokens", "512", "--start", "0", "--end", "3", "--interval", "0"]
    said = []
    with kvhive.EmbeddedNode(memory=16 << 20, block_bytes=128 << 10) as node:
        for one in ("first", "second"):
            with server(adapter("plugin", node), tmp_path / one) as where:
                said.append(lmcache("bench", "server", *where, *engine, *requests).stdout)
    assert re.findall(r"cold\] LOOKUP: (\S+)", said[0]) == ["0/8"] * 3
    assert re.findall(r"cold\] LOOKUP: (\S+)", said[1]) == ["8/8"] * 3
    checked = [dict(re.findall(r"\[seq (\d)/warm\] CHECKSUM: (\w+)", one)) for one in said]
    assert checked[0] == checked[1] and sorted(checked[0]) == ["0", "1", "2"], said


def test_settings_that_cannot_be_are_refused(node: kvhive.EmbeddedNode) -> None:
    told = adapter("plugin", node)["adapter_params"]
    spoilt: list[tuple[dict[str, Any], str]] = [
        ({"wait_ms": 0}, "adapter_params wait_ms=0: allowed is 1 to"),
        ({"load_ms": "5"}, "adapter_params load_ms='5'"),
        ({"tenant": ""}, "adapter_params tenant=''"),
        ({"facts": "bf16"}, "adapter_params facts='bf16'"),
        ({"weights": "x"}, "adapter_params weights: allowed is coordinators, directory, facts"),
        ({"token_file": "/x"}, "one of them goes with coordinators"),
    ]
    for more, why in spoilt:
        with pytest.raises(kvhive.MisuseError, match=why):
            Settings.of({**told, **more})
    settings = Settings.of({**told, "facts": {"b": 1, "a": "x"}})
    assert facts(settings, "n") == [("line", "0.5"), ("names", "n"), ("said b", "1"), ("said a", '"x"')]
