"""The node and the client that an engine's blocks lie behind, and how both outlive the process."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvhive import Client, ClosedError, EmbeddedNode, KvHiveError, Layout, MisuseError, Namespace, WrongTypeError
from kvhive._native import Connection
from kvhive.access import StrPath
from kvhive.codec import stored_bytes
from kvhive.worker import Use

from . import admin
from .config import CacheStrategy, KVCacheConfig
from .folder import Copy, current, is_there, replace
from .shared import Shared

_DEFAULT_TENANT = "default"
#: How long a node that is taken away may take to give its blocks to others, and how often that is looked at, in seconds.
_LEAVE_LIMIT = 60.0
_LOOKS_EVERY = 0.05
#: What backends are to a node.
_USES: dict[str, Use] = {"nccl": "auto", "nccl-unencrypted": "unencrypted", "tcp": "off"}
#: Where a node counts blocks of a snapshot that it has, or that another node or one with more memory would have.
_OF_USE = ("blocks", "already", "elsewhere", "no_room")


class Backing:
    """An embedded node and its client: alone, or joined to a cluster.

    Node and client are replaced by :meth:`load` and end with :meth:`close`. Both take ``lock``, which is who uses them for longer
    than a call has.

    :param frames: bytes of the frames, growing, each with its share of the memory.
    :param folder: where it persists unless the configuration or a call says so.
    """

    def __init__(self, config: KVCacheConfig, frames: Mapping[int, int], folder: str) -> None:
        self._config = config
        self._frames = dict(frames)
        self._folder = Path(config.persistence_path or folder)
        # Always taken in this order. A node that leaves takes its time, and keeps nobody from using the others.
        self.lock = threading.RLock()
        self._scaling = threading.RLock()
        self._life = Shared()
        self._is_closed = False
        self._namespaces: dict[str, Namespace] = {}
        #: Tenants besides the default one that came with what was loaded.
        self.tenants: list[str] = []
        # Without leave to round, what would be rounded is compressed.
        rounds = config.strategy is CacheStrategy.QUANTIZED and not config.use_quantization
        self.strategy = CacheStrategy.COMPRESSED.value if rounds else config.strategy.value
        self.prefetch_blocks = config.prefetch_size if config.enable_prefetch else 0
        #: Nodes that were added to the first one.
        self._more: list[EmbeddedNode] = []
        self.node = self._start(None)
        self.client: Client = self.node.client()
        if config.enable_distributed:
            self._warn_of_frames(stacklevel=4)
        self._recalled: dict[str, int] = {}
        if config.enable_persistence and is_there(self._folder):
            try:
                self._recalled = self.load(None, stacklevel=5)
            except OSError as error:
                warnings.warn(f"begins empty: {error}", RuntimeWarning, stacklevel=4)

    def _warn_of_frames(self, stacklevel: int) -> None:
        """Says so, where not all devices of the cluster have frames for the blocks: they are stored nowhere else, and nothing fails."""
        try:
            room = self.connection.frame_room().wait()
        except KvHiveError:
            return
        largest = max(self._frames)
        if room is not None and room[0] < largest:
            warnings.warn(
                f"blocks of {largest} bytes are not stored on devices whose largest frame has {room[0]}: give the cluster's nodes frames "
                "of a block's size (kvhive up --block-size), or take a smaller block_size",
                RuntimeWarning,
                stacklevel=stacklevel + 1,
            )

    def recall(self) -> dict[str, int]:
        """Returns the notes that were persisted with what this one began with."""
        return self._recalled

    def _start(self, backup: bytes | None, *, join: bool = False) -> EmbeddedNode:
        """Starts a node: alone, maybe with what a backup remembers, or joined to the first one or to the configuration's cluster."""
        config = self._config
        coordinators: list[str] | None = None
        token: str | bytes | None = None
        if join:
            coordinators, token = self.node.coordinators, self.node.token
        elif config.enable_distributed:
            coordinators = config.coordinators
            token = Path(config.token_file).read_text() if config.token_file is not None else ""
        memory, below = self._tiers()
        return EmbeddedNode(
            memory=memory,
            gpu=config.gpu,
            # Those of one engine that is alone are all on one GPU.
            nccl=_USES[config.distributed_backend] if config.enable_distributed else "off",
            host_memory=below,
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
            listen=config.listens,
            advertise=config.advertise_address or "",
            restore=backup,
            # Of an engine that is alone, always the same: then what it restores is its own.
            name=None if config.enable_distributed or join else "engine",
        )

    def _tiers(self) -> tuple[int, int]:
        """Returns the bytes of the upper and of the lower tier: where there is prefetching, there is somewhere to bring blocks up from."""
        whole = self._config.memory_bytes
        return (whole - whole // 2, whole // 2) if self._config.enable_prefetch else (whole, 0)

    @property
    def connection(self) -> Connection:
        """The client's native half."""
        return self.client._open()

    def namespace(self, model: str, layout: Layout) -> Namespace:
        """Opens the default tenant's namespace."""
        known = self._namespaces.get(model)
        if known is None:
            known = self._namespaces[model] = self.client.namespace(model, layout)
        return known

    def frames(self) -> dict[int, int]:
        """Returns how many frames there are, by the bytes of one."""
        whole = sum(self._frames.values())
        count = {size: 0 for size in self._frames}
        for tier in self._tiers():
            for size, part in self._frames.items():
                count[size] += tier * part // whole // size
        return count

    def check_alone(self, what: str, whole_cluster: bool) -> None:
        """Refuses what would be done to others in a cluster, unless it is said that this is meant."""
        if self._config.enable_distributed and not whole_cluster:
            raise MisuseError(
                f"whole_cluster is False: {what} in the whole cluster for the tenants that were used here, whoever else "
                "uses them; allowed is whole_cluster=True, which says that this is meant"
            )

    def clear(self, *, whole_cluster: bool = False) -> None:
        """Ends the default tenant's era.

        :raises kvhive.MisuseError: in a cluster, unless ``whole_cluster`` says that it is meant.
        """
        self.check_alone("this would forget what is stored", whole_cluster)
        self.client.clear(_DEFAULT_TENANT)

    def _where(self, path: StrPath | None) -> Path:
        if path is None:
            return self._folder
        if not isinstance(path, (str, os.PathLike)):
            raise WrongTypeError(f"path is {path!r}: a path or None is allowed")
        return Path(path)

    def gather(self) -> None:
        """Has what nodes that were added hold come to the first one, as far as there is room, and ends them.

        :raises IOError: when it cannot be done.
        """
        try:
            with self._scaling:
                if self._more:
                    self.scale(-len(self._more), len(self._more) + 1)
        except KvHiveError as error:
            raise OSError(f"cannot bring together what is to be persisted: {error}") from error

    def persist(self, path: StrPath | None, notes: dict[str, int]) -> bool:
        """Writes blocks, what their keys mean, and notes into a folder; what was there stays until all of it is written.

        What nodes that were added hold is gathered before.

        :raises IOError: when it cannot be written.
        """
        where = self._where(path)

        def write(copy: Copy) -> None:
            self.node.persist(copy.blocks)
            copy.write(None if self._config.enable_distributed else self._admin("/v1/backup"), notes)

        with self.lock, self._scaling:
            self._check_open()
            self.gather()
            try:
                replace(where, write)
            except KvHiveError as error:
                raise OSError(f"cannot persist into {where}: {error}") from error
        return True

    def load(self, path: StrPath | None, *, stacklevel: int = 3) -> dict[str, int]:
        """Takes in what was persisted; returns the notes. One that is alone takes its tenants from there too: what it held is gone.
        What :meth:`_try` refuses leaves it as it was. What fails after that leaves it empty: there is not the memory for both.

        Blocks that are damaged or missing are left out, with a warning that says how many.

        :raises FileNotFoundError: when nothing was persisted there.
        :raises IOError: when it cannot be read, or is another cluster's or shape's.
        """
        where = self._where(path)
        with self.lock, self._scaling:
            self._check_open()
            copy = current(where)
            try:
                notes = copy.notes()
                if not self._config.enable_distributed:
                    backup = copy.cluster()
                    self._try(copy, backup, where)
                    self._begin_again(backup)
                damaged = _damaged(self.node.load(copy.blocks), where)
            except (KvHiveError, ValueError) as error:
                raise OSError(f"cannot load from {where}: {error}") from error
        if damaged:
            said = f"{damaged} blocks in {where} are damaged or missing: the rest was taken in"
            warnings.warn(said, RuntimeWarning, stacklevel=stacklevel)
        return notes

    def _try(self, copy: Copy, backup: bytes, where: Path) -> None:
        """Has a small node start with what was persisted, and ends it: what fails there fails where nothing is lost.

        That node restores the tenants, and reads what each block is: of how many bytes, and whose. The bytes themselves it does not read,
        because the slots are still another node's. Bytes that are damaged are found when the engine's own node takes them in.

        :raises kvhive.KvHiveError: when the backup or the manifest cannot be read, or the blocks are of another shape.
        :raises IOError: when there is no block that can be read.
        """
        whole = sum(self._frames.values())
        # Room for one frame of each size, and what rounding takes.
        memory = 2 * max(size * whole // part for size, part in self._frames.items())
        # Under the name that it was written by it would wait until that one's lease is over, and have its blocks.
        with EmbeddedNode(
            memory=memory, block_bytes=list(self._frames), block_shares=list(self._frames.values()), restore=backup, name="trial"
        ) as node:
            _damaged(node.load(copy.blocks), where)

    def _begin_again(self, backup: bytes) -> None:
        with self._life.replaced():
            self._stop()
            self._namespaces = {}
            self.tenants = []
            try:
                self.node = self._start(backup)
            except KvHiveError:
                # The engine goes on, empty.
                self.node = self._start(None)
                self.client = self.node.client()
                raise
            self.client = self.node.client()
            listed = self.ask("GET", "/v1/tenants")["tenants"]
            self.tenants = [name for one in listed if (name := str(one["name"])) != _DEFAULT_TENANT]
            # Rules of then may name another strategy.
            self.client.set_strategy(self.strategy, tenant=_DEFAULT_TENANT)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Asks the coordinator's admin API, and returns what it answers.

        :raises kvhive.RefusedError: when it says no.
        :raises kvhive.UnreachableError: when it does not answer.
        """
        with self._life.used():
            return json.loads(self._admin(path, method, body))

    def _admin(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> bytes:
        tls = self._config.tls if self._config.enable_distributed else None
        return admin.ask(self.node.admin_address or self._config.admin_address, self.node.token, tls, path, method, body)

    def scale(self, by: int, most: int) -> int:
        """Adds nodes, or takes as many away; returns how many there are, or in a cluster how many are asked for.

        :raises kvhive.MisuseError: when that would be none, or more than ``most``.
        """
        with self._scaling:
            self._check_open()
            is_alone = not self._config.enable_distributed
            size = 1 + len(self._more) if is_alone else int(self.ask("GET", "/v1/scaling")["target"])
            if size + by < 1:
                raise MisuseError(f"there are {size - 1} nodes to take away, not {-by}: the first one stays")
            if size + by > most:
                raise MisuseError(f"{size + by} nodes are more than {most}, which are the most")
            if not is_alone:
                return int(self.ask("POST", "/v1/scaling", {"size": size + by})["target"])
            for _ in range(by):
                self._more.append(self._start(None, join=True))
            for _ in range(-by):
                self._leave(self._more[-1])
                self._more.pop()
            return 1 + len(self._more)

    def _leave(self, node: EmbeddedNode) -> None:
        """Has a node give its blocks to the others, and ends it."""
        # It goes whether the others have room or not.
        patch = {"drains": True, "may_lose": True, "reason": "taken away by the engine"}
        self.ask("PATCH", f"/v1/members/{node.name}", patch)
        end = time.monotonic() + _LEAVE_LIMIT
        while self._slots_of(node) and time.monotonic() < end:
            time.sleep(_LOOKS_EVERY)
        node.stop()

    def _slots_of(self, node: EmbeddedNode) -> int:
        devices = self.ask("GET", "/v1/cluster")["devices"]
        return sum(int(device["slots"]) for device in devices if device["node"] == node.name)

    def stats(self) -> dict[str, Any]:
        """Returns the node's figures."""
        with self._life.used():
            return self.node.stats()

    def adjust_strategy(self) -> list[dict[str, Any]]:
        """Has strategies that choose among ways to rank choose now; returns how all of them do."""
        with self._life.used():
            return self.node.adjust_strategy()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("this has been closed")

    def close(self, notes: dict[str, int]) -> None:
        """Persists, where that is wanted, and ends node and client. Again, it does nothing."""
        with self.lock, self._scaling:
            if self._is_closed:
                return
            try:
                if self._config.enable_persistence:
                    self.persist(None, notes)
            finally:
                self.end()

    def end(self) -> None:
        """Ends node and client."""
        self._is_closed = True
        with self._life.replaced():
            self._stop()

    def _stop(self) -> None:
        self.client.close()
        for node in self._more:
            node.stop()
        self._more.clear()
        self.node.stop()


def _damaged(report: dict[str, Any], where: Path) -> int:
    """Returns how many blocks were damaged or missing, as a node reports of what it has taken in.

    :raises IOError: when no other was of use.
    """
    damaged = int(report["damaged"])
    if damaged and not any(report[use] for use in _OF_USE):
        raise OSError(f"cannot load from {where}: {damaged} blocks are damaged or missing, and no other is of use")
    return damaged


def frames_of(config: KVCacheConfig, layout: Layout) -> dict[int, int]:
    """Returns the bytes of frames for an engine's blocks, growing, each with its share of the memory."""
    whole = config.block_bytes
    if config.stored_bits is not None:
        # All blocks are of one size then.
        return {stored_bytes(config.codec, layout) or whole: 1}
    may_shrink = config.codec != "raw" or config.strategy in (CacheStrategy.COMPRESSED, CacheStrategy.QUANTIZED)
    # Most blocks of 16 bits an element compress to less than three quarters.
    return {whole * 3 // 4: 3, whole: 1} if may_shrink else {whole: 1}


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
