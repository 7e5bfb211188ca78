"""What the tests share: a cluster of one embedded node, a client of it, blocks of a small layout, and a small engine to ask. Tests of whole
serving engines share a cluster of processes, and a tiny model."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kvhive
import pytest
from fleet import Cluster, tiny_llama
from kvhive.engine import Answer, KVCacheConfig, UltraAdaptiveKVCacheEngine

# No tests: what an engine loads, and what is run by hand.
collect_ignore = ["lmcache_storage.py", "sglang_cpu", "vllm_cpu_tiering.py", "measure_lmcache.py", "measure_engine.py"]

LAYOUT = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="float16")


@pytest.fixture(scope="session")
def node() -> Iterator[kvhive.EmbeddedNode]:
    with kvhive.EmbeddedNode(memory=32 << 20, block_bytes=[LAYOUT.block_bytes, 64 << 10, 1 << 20]) as node:
        yield node


@pytest.fixture
def client(node: kvhive.EmbeddedNode) -> Iterator[kvhive.Client]:
    with node.client() as client:
        yield client


@pytest.fixture
def blocks(client: kvhive.Client, request: pytest.FixtureRequest) -> kvhive.Namespace:
    """A namespace of the test's own."""
    return client.namespace(request.node.nodeid, LAYOUT)


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Where connections are taken and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that its test kills."""
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.sweep()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))


STORY = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. "


def small_engine(**given: Any) -> KVCacheConfig:
    """The configuration of an engine that is quick to make and to ask."""
    shape = {"num_heads": 2, "head_dim": 16, "num_layers": 2, "block_size": 16, "max_tokens": 512, "max_memory_mb": 16}
    return KVCacheConfig(**{**shape, **given})


def ask(engine: UltraAdaptiveKVCacheEngine, text: str, **more: Any) -> Answer:
    return asyncio.run(engine.process_request({"text": text, **more}))  # type: ignore[typeddict-item]
