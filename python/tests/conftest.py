"""What the tests share: a cluster of one embedded node, a client of it, and blocks of a small layout."""

import socket
from collections.abc import Iterator

import kvhive
import pytest

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
