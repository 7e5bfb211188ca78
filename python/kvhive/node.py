"""A cache server inside this process."""

from __future__ import annotations

import json
import os
import secrets
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from kvhive import addresses, worker
from kvhive._native import Node
from kvhive.access import Options, StrPath, Tls, secret, whole
from kvhive.aio import AsyncClient
from kvhive.client import Client, Codec
from kvhive.errors import ClosedError, NodeSetupError, WrongTypeError

__all__ = ["EmbeddedNode", "Mode"]

Mode = Literal["training", "inference", "bulk", "streaming", "interactive"]

_MOST, _MOST_BYTES = (1 << 32) - 1, (1 << 63) - 1

LAST_STOP = 5.0
"""The longest, in seconds, that a node takes to end that nobody has stopped."""


class EmbeddedNode:
    """A node with its device actors inside this process. A context manager, which stops it.

    With `coordinators` and `token` it joins that cluster as one more node, and others fetch from it. Without, it is a cluster of
    its own with a coordinator beside it, reached from this host only. Returns when the node serves.

    `name` is nobody else's in its cluster: while another node is up under it this one waits, and raises `RefusedError` after
    `start_timeout`. Without one a name is drawn, and taken off the list of members again when the node stops.

    `listen` is where it serves, as usual this host alone, which does only where the coordinators are on it too; `advertise` is how
    others reach it, where that is another address.

    Sizes are in bytes, times in seconds. `memory`, `host_memory` (a tier over it) and `disk` (one under it, in `disk_folder`) are
    each device's; with `gpu` the `memory` is that GPU's of this process (as CUDA numbers them), of several devices the first's, and
    the next ones' the GPUs' after it. These GPUs give blocks to other nodes' GPUs by NCCL where both have it, and
    the cluster does not speak TLS: NCCL encrypts nothing. `nccl="unencrypted"` has them do so in any case, `"off"` never; once
    `nccl_after` bytes went to another within a minute, and with `nccl_guest_memory` of each GPU taken beside `memory`. NCCL is called
    by a process of its own for each GPU, this interpreter anew (`sys.executable`) with nothing imported but kvhive's native module;
    the library is the one that `KVHIVE_NCCL` names, else what torch or another package has brought, else the system's. `block_bytes`
    is the largest block, or several sizes, growing, among which the memory is parted equally, or as `block_shares` say. `mode` turns the knobs that are not named here. With `pin_memory` none of it is swapped out, where the
    process may lock so much (`stats()["pinned_bytes"]`). `restore` is a backup of a node's that was alone (`/v1/backup` of its
    `admin_address`): tenants and keys mean what they meant, and a snapshot of then can be loaded.
    """

    def __init__(
        self,
        memory: int,
        block_bytes: int | Sequence[int],
        *,
        block_shares: Sequence[int] | None = None,
        devices: int = 1,
        gpu: int | None = None,
        nccl: worker.Use = "auto",
        nccl_after: int = 64 << 20,
        nccl_guest_memory: int = 32 << 20,
        host_memory: int = 0,
        disk: int = 0,
        disk_folder: StrPath | None = None,
        mode: Mode = "inference",
        strategy: str = "lru",
        codec: Codec = "raw",
        prefetch_blocks: int = 64,
        gc_threshold: float | None = None,
        pin_memory: bool = False,
        persist_folder: StrPath | None = None,
        persist_every: float | None = None,
        coordinators: str | Sequence[str] | None = None,
        token: str | bytes | None = None,
        tls: Tls | None = None,
        restore: bytes | None = None,
        name: str | None = None,
        listen: str = "127.0.0.1:0",
        advertise: str = "",
        labels: Mapping[str, str] | None = None,
        io_threads: int = 2,
        start_timeout: float = 20.0,
    ) -> None:
        self.name = name or f"embedded-{os.getpid()}-{secrets.token_hex(4)}"
        self._tls = tls
        self._is_stopped = False
        if isinstance(coordinators, str):
            coordinators = [address.strip() for address in coordinators.split(",")]
        if coordinators is None and advertise:
            raise NodeSetupError(f"advertise {advertise!r}: it goes with coordinators, a node alone is reached from this host only")
        if coordinators is not None and (wrong := addresses.unreachable(coordinators, listen, advertise)):
            field, why = wrong
            raise NodeSetupError(f"{field} {(advertise if field == 'advertise' else listen)!r}: {why}")
        if coordinators is not None and token:
            # Whoever is not let in, or reaches nobody, is told so at once: a node would go on trying.
            Client(coordinators, token, tls=tls, request_timeout=min(start_timeout, 5.0)).close()
        self._node = Node.start(
            {
                "name": self.name,
                "passing": not name,
                "memory": _whole("memory", memory, 1, _MOST_BYTES),
                "host_memory": _whole("host_memory", host_memory, 0, _MOST_BYTES),
                "disk": _whole("disk", disk, 0, _MOST_BYTES),
                "disk_folder": disk_folder,
                "devices": _whole("devices", devices, 1, _MOST),
                "gpu": None if gpu is None else _whole("gpu", gpu, 0, _MOST),
                "nccl": worker.setup(
                    "off" if gpu is None and worker.is_on(nccl, False) else nccl,
                    tls is not None,
                    _whole("nccl_after", nccl_after, 1, _MOST_BYTES),
                    _whole("nccl_guest_memory", nccl_guest_memory, 0, _MOST_BYTES),
                ),
                "block_bytes": _all("block_bytes", [block_bytes] if isinstance(block_bytes, int) else block_bytes, _MOST_BYTES),
                "block_shares": None if block_shares is None else _all("block_shares", block_shares, _MOST),
                "pin_memory": pin_memory,
                "restore": restore,
                "mode": mode,
                "strategy": strategy,
                "codec": codec,
                "prefetch_blocks": _whole("prefetch_blocks", prefetch_blocks, 0, _MOST),
                "gc_threshold": gc_threshold,
                "persist_folder": persist_folder,
                "persist_every": persist_every,
                "coordinators": coordinators,
                "token": None if token is None else secret(token),
                "tls": tls,
                "listen": listen,
                "advertise": advertise,
                "labels": _labels(labels),
                "io_threads": _whole("io_threads", io_threads, 1, _MOST),
            },
            start_timeout,
        )
        # Also where nobody stops it: when it is collected, and when the interpreter ends.
        weakref.finalize(self, self._node.stop, LAST_STOP)

    @property
    def coordinators(self) -> list[str]:
        """The control-plane addresses of its cluster."""
        return self._node.coordinators

    @property
    def token(self) -> bytes:
        """The token of its cluster."""
        return self._node.token

    @property
    def data_address(self) -> str:
        """Where its data plane listens."""
        return self._node.data_address

    @property
    def metrics_address(self) -> str:
        """Where its metrics are served."""
        return self._node.metrics_address

    @property
    def admin_address(self) -> str | None:
        """Where the coordinator beside it has its admin API; None where it joined a cluster."""
        return self._node.admin_address

    @property
    def is_serving(self) -> bool:
        """Whether it holds a lease and serves; one that was stopped does not."""
        return not self._is_stopped and self._node.is_serving

    def client(self, **options: Unpack[Options]) -> Client:
        """Connects a client to its cluster.

        :raises kvhive.ClosedError: when the node has been stopped.
        """
        self._check_open()
        options.setdefault("tls", self._tls)
        return Client(self.coordinators, self.token, **options)

    async def async_client(self, **options: Unpack[Options]) -> AsyncClient:
        """Connects a client for asyncio to its cluster.

        :raises kvhive.ClosedError: when the node has been stopped.
        """
        self._check_open()
        options.setdefault("tls", self._tls)
        return await AsyncClient.connect(self.coordinators, self.token, **options)

    def stats(self) -> dict[str, Any]:
        """Returns its figures since it started: requests, hits, latencies, tiers, evictions, codecs, …"""
        return dict(json.loads(self._node.stats()))

    def adjust_strategy(self) -> list[dict[str, Any]]:
        """Has strategies that choose among ways to rank choose now; returns how all of them do, and why."""
        return list(json.loads(self._node.adjust_strategy()))

    def persist(self, path: StrPath) -> dict[str, Any]:
        """Writes what it holds to a snapshot, the folder `path`; returns what was written."""
        return dict(json.loads(self._node.persist(path)))

    def load(self, path: StrPath) -> dict[str, Any]:
        """Takes the snapshot at `path` in, as far as there are free frames; returns what was taken."""
        return dict(json.loads(self._node.load(path)))

    def stop(self, limit: float = 10.0) -> None:
        """Leaves the cluster, ends requests that are under way and then all threads, within `limit`. Later calls do nothing."""
        self._node.stop(limit)
        self._is_stopped = True

    def _check_open(self) -> None:
        # Nobody is there any more who would answer: a client would find that out only when its time is over.
        if self._is_stopped:
            raise ClosedError("the node has been stopped")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.stop()


def _whole(field: str, value: object, least: int, most: int) -> int:
    """Refuses what is no whole number, or none that is allowed."""
    number = whole(value)
    if number is None:
        raise WrongTypeError(f"{field} {value!r}: allowed is a whole number from {least} to {most}")
    if not least <= number <= most:
        raise NodeSetupError(f"{field} {number}: allowed is a whole number from {least} to {most}")
    return number


def _labels(given: Mapping[str, str] | None) -> dict[str, str]:
    """Refuses what are no labels."""
    if given is not None and not isinstance(given, Mapping):
        raise WrongTypeError(f"labels {given!r}: allowed are names and values, as in {{'rack': 'r1'}}")
    for name, value in (given or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise WrongTypeError(f"labels {name!r}: {value!r}: allowed is text for both")
    return dict(given or {})


def _all(field: str, values: Iterable[int], most: int) -> list[int]:
    """The same for each of several."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise WrongTypeError(f"{field} {values!r}: allowed is a whole number, or several in a sequence")
    return [_whole(field, value, 0, most) for value in values]
