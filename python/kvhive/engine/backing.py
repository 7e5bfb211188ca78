"""The node and the client that an engine's blocks lie behind, and how both outlive the process."""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvhive import Client, EmbeddedNode, KvHiveError, Layout, Namespace, RefusedError
from kvhive.access import StrPath

from .config import KVCacheConfig

#: What the coordinator remembers: tenants, their secrets, where slots are.
_CLUSTER = "cluster.backup"
#: The node's snapshot.
_BLOCKS = "blocks"
#: What whoever uses the node wants to know again.
_NOTES = "notes.json"
#: Where persistence_path says nothing.
_FOLDER = "kvhive-cache"
_DEFAULT_TENANT = "default"
#: How long a node that is taken away may take to give its blocks to others, and how often that is looked at, in seconds.
_LEAVE_LIMIT = 60.0
_LOOKS_EVERY = 0.05


class Backing:
    """An embedded node and its client: alone, or joined to a cluster.

    :param frames: bytes of the frames, growing, each with its share of the memory.
    """

    def __init__(self, config: KVCacheConfig, frames: Mapping[int, int]) -> None:
        self._config = config
        self._frames = dict(frames)
        self._is_closed = False
        self._namespaces: dict[tuple[str, str], Namespace] = {}
        self._tenants = {_DEFAULT_TENANT}
        self.strategy = config.strategy.value
        self.prefetch_blocks = config.prefetch_size if config.enable_prefetch else 0
        if config.enable_distributed and config.distributed_backend == "nccl":
            warnings.warn("no device here moves blocks by NCCL: they come over TCP", RuntimeWarning, stacklevel=4)
        #: Nodes that were added to the first one.
        self._more: list[EmbeddedNode] = []
        self.node = self._start(None)
        self.client: Client = self.node.client()
        self._recalled: dict[str, int] = {}
        if config.enable_persistence and (self._folder / _BLOCKS).exists():
            self._recalled = self.load(None)

    def recall(self) -> dict[str, int]:
        """Returns the notes that were persisted with what this one began with."""
        return self._recalled

    @property
    def _folder(self) -> Path:
        return Path(self._config.persistence_path or _FOLDER)

    def _start(self, backup: bytes | None, *, join: bool = False) -> EmbeddedNode:
        """Starts a node: alone, maybe with what a backup remembers, or joined to the first one or to the configuration's cluster."""
        config = self._config
        coordinators: str | list[str] | None = None
        token: str | bytes | None = None
        if join:
            coordinators, token = self.node.coordinators, self.node.token
        elif config.enable_distributed:
            coordinators = config.cluster_address
            token = Path(config.token_file).read_text() if config.token_file is not None else ""
        return EmbeddedNode(
            memory=config.memory_bytes,
            block_bytes=list(self._frames),
            block_shares=list(self._frames.values()),
            mode=config.mode.value,
            strategy=self.strategy,
            prefetch_blocks=self.prefetch_blocks,
            gc_threshold=config.gc_threshold if config.enable_gc else None,
            pin_memory=config.pin_memory,
            coordinators=coordinators,
            token=token,
            tls=config.tls if config.enable_distributed else None,
            restore=backup,
            # Of an engine that is alone, always the same: then what it restores is its own.
            name=None if config.enable_distributed or join else "engine",
        )

    def namespace(self, model: str, layout: Layout, tenant: str | None) -> Namespace:
        """Opens a tenant's namespace, and makes the tenant where there is none."""
        name = tenant or _DEFAULT_TENANT
        known = self._namespaces.get((name, model))
        if known is None:
            self._ensure(name)
            known = self.client.namespace(model, layout, tenant=name)
            self._namespaces[name, model] = known
        return known

    def _ensure(self, name: str) -> None:
        if name in self._tenants:
            return
        # Tenants that are not kept apart share one's blocks.
        shares_with = None if self._config.tenant_isolation else _DEFAULT_TENANT
        self.client.ensure_tenant(name, shares_with=shares_with)
        self._tenants.add(name)

    def frames(self) -> dict[int, int]:
        """Returns how many frames there are, by the bytes of one."""
        whole = sum(self._frames.values())
        return {size: self._config.memory_bytes * part // whole // size for size, part in self._frames.items()}

    def clear(self) -> None:
        """Ends the era of every tenant that has been opened here."""
        owners = self._tenants if self._config.tenant_isolation else {_DEFAULT_TENANT}
        for name in sorted(owners):
            self.client.clear(name)

    def set_strategy(self, strategy: str) -> None:
        """Has another strategy decide, for every tenant opened here; no block is lost by it."""
        for name in sorted(self._tenants if self._config.tenant_isolation else {_DEFAULT_TENANT}):
            self.client.set_strategy(strategy, tenant=name)
        self.strategy = strategy

    def persist(self, path: StrPath | None, notes: dict[str, int]) -> bool:
        """Writes blocks, what their keys mean, and notes into a folder.

        :raises IOError: when it cannot be written.
        """
        folder = Path(path) if path is not None else self._folder
        # What others hold for it comes along.
        if self._more:
            self.scale(-len(self._more))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.node.persist(folder / _BLOCKS)
            if not self._config.enable_distributed:
                _write_whole(folder / _CLUSTER, self._admin("/v1/backup"))
            _write_whole(folder / _NOTES, json.dumps(notes).encode())
        except KvHiveError as error:
            raise OSError(f"cannot persist into {folder}: {error}") from error
        return True

    def load(self, path: StrPath | None) -> dict[str, int]:
        """Takes in what was persisted; returns the notes. One that is alone takes its tenants from there too: what it held is gone.

        :raises FileNotFoundError: when nothing was persisted there.
        :raises IOError: when it cannot be read, or is another cluster's.
        """
        folder = Path(path) if path is not None else self._folder
        blocks = folder / _BLOCKS
        if not blocks.exists():
            raise FileNotFoundError(f"nothing was persisted in {folder}: {blocks} is missing")
        try:
            notes = {str(name): int(note) for name, note in json.loads((folder / _NOTES).read_bytes()).items()}
            if not self._config.enable_distributed:
                self._begin_again((folder / _CLUSTER).read_bytes())
            self.node.load(blocks)
        except (KvHiveError, ValueError, AttributeError) as error:
            raise OSError(f"cannot load from {folder}: {error}") from error
        return notes

    def _begin_again(self, backup: bytes) -> None:
        self._stop()
        self._namespaces.clear()
        self._tenants = {_DEFAULT_TENANT}
        try:
            self.node = self._start(backup)
        except KvHiveError:
            # The engine goes on, empty.
            self.node = self._start(None)
            self.client = self.node.client()
            raise
        self.client = self.node.client()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Asks the coordinator's admin API, and returns what it answers.

        :raises kvhive.RefusedError: when it says no, or cannot be reached.
        """
        return json.loads(self._admin(path, method, body))

    def _admin(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> bytes:
        address = self.node.admin_address or self._config.admin_address
        if address is None:
            raise RefusedError("the cluster's admin API is unknown: say admin_address in the configuration")
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{address}{path}", content, method=method)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self.node.token.decode()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{method} {path} at {address}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise RefusedError(f"{method} {path} at {address}: {error}") from error

    def scale(self, by: int) -> int:
        """Adds nodes, or takes as many away; returns how many there are, or in a cluster how many are asked for."""
        if self._config.enable_distributed:
            size = int(self.ask("GET", "/v1/scaling")["target"]) + by
            return int(self.ask("POST", "/v1/scaling", {"size": size})["target"])
        if len(self._more) + by < 0:
            raise ValueError(f"there are {len(self._more)} nodes to take away, not {-by}: the first one stays")
        for _ in range(by):
            self._more.append(self._start(None, join=True))
        for _ in range(-by):
            self._leave(self._more[-1])
            self._more.pop()
        return 1 + len(self._more)

    def _leave(self, node: EmbeddedNode) -> None:
        """Has a node give its blocks to the others, and ends it."""
        self.ask("PATCH", f"/v1/members/{node.name}", {"drains": True, "reason": "taken away by the engine"})
        end = time.monotonic() + _LEAVE_LIMIT
        while self._slots_of(node) and time.monotonic() < end:
            time.sleep(_LOOKS_EVERY)
        node.stop()

    def _slots_of(self, node: EmbeddedNode) -> int:
        devices = self.ask("GET", "/v1/cluster")["devices"]
        return sum(int(device["slots"]) for device in devices if device["node"] == node.name)

    def stats(self) -> dict[str, Any]:
        """Returns the node's figures."""
        return self.node.stats()

    def close(self, notes: dict[str, int]) -> None:
        """Persists, where that is wanted, and ends node and client. Again, it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._config.enable_persistence:
                self.persist(None, notes)
        finally:
            self._stop()

    def _stop(self) -> None:
        self.client.close()
        for node in self._more:
            node.stop()
        self._more.clear()
        self.node.stop()


def memory_used(stats: dict[str, Any]) -> int:
    """Returns the bytes of frames in use in memory."""
    return int(stats["device"]["used_bytes"]) + int(stats["host"]["used_bytes"])


def ranker(stats: dict[str, Any]) -> str:
    """Returns what ranks in most parts of a node: a strategy, or where `adaptive` leaves it to a simple one, that."""
    names: list[str] = []
    for one in stats["strategies"]:
        choice = one["choice"]
        names.append(one["strategy"] if choice is None or choice["in_charge"] == "learnt" else choice["in_charge"])
    return max(names, key=names.count) if names else "adaptive"


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, or leaves the one before."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
