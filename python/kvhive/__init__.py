"""A cluster-wide KV cache for LLM serving, from Python.

`Client` and `AsyncClient` name blocks, say how far a cluster covers a prompt, fetch blocks into memory that numpy or torch own, and
store from there, without a copy in between. `EmbeddedNode` is a whole cache server inside this process.

>>> import kvhive, numpy
>>> layout = kvhive.Layout(layers=4, kv_heads=2, head_dim=64, tokens=16, dtype="float16")
>>> with kvhive.EmbeddedNode(memory=64 << 20, block_bytes=layout.block_bytes) as node, node.client() as client:
...     prompt = client.namespace("tiny@1", layout).keys(range(100))
...     computed = numpy.random.default_rng(1).random((len(prompt), layout.block_bytes // 4), dtype=numpy.float32)
...     stored = client.store_from(prompt, computed)
...     fetched = numpy.zeros_like(computed)
...     covered = client.match(prompt).covered
...     delivered = client.fetch_into(prompt, fetched).delivered
>>> len(prompt), stored.acknowledged, covered, delivered, bool((fetched == computed).all())
(6, 6, 6, 6, True)
"""

import atexit

from kvhive._native import FetchReport, Layout, Match, Namespace, Prefix, StoreReport, __version__, interpreter_ends
from kvhive.access import Options, Pin, Tls
from kvhive.aio import AsyncClient
from kvhive.client import Client
from kvhive.errors import (
    BadBufferError,
    BufferInUseError,
    BusyError,
    ClosedError,
    GpuError,
    KvHiveError,
    MisuseError,
    NodeError,
    NodeSetupError,
    OutOfRangeError,
    PersistError,
    RefusedError,
    TlsError,
    UnauthorizedError,
    UnknownTenantError,
    UnreachableError,
    WrongTypeError,
)
from kvhive.node import EmbeddedNode

__all__ = [
    "AsyncClient",
    "BadBufferError",
    "BufferInUseError",
    "BusyError",
    "Client",
    "ClosedError",
    "EmbeddedNode",
    "FetchReport",
    "GpuError",
    "KvHiveError",
    "Layout",
    "Match",
    "MisuseError",
    "Namespace",
    "NodeError",
    "NodeSetupError",
    "Options",
    "OutOfRangeError",
    "PersistError",
    "Pin",
    "Prefix",
    "RefusedError",
    "StoreReport",
    "Tls",
    "TlsError",
    "UnauthorizedError",
    "UnknownTenantError",
    "UnreachableError",
    "WrongTypeError",
    "__version__",
]

atexit.register(interpreter_ends)
