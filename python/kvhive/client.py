"""The client of a cluster whose calls wait. Other threads of the interpreter run meanwhile, and one client serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack

from kvhive._native import Connection, FetchReport, Layout, Match, Namespace, Prefix, StoreReport
from kvhive.access import Options, Pin, StrPath, Tls, connect, local
from kvhive.errors import ClosedError

if TYPE_CHECKING:
    from kvhive.access import Buffers

__all__ = ["Ack", "Client", "Codec", "Hint", "Tls"]

Ack = Literal["primary", "quorum", "all"]
Codec = Literal["raw", "lossless", "fp8", "int8", "int4"]
Hint = Literal["none", "over", "pending", "returns"]


class Calls:
    """What clients have in common that waits for nobody."""

    _connection: Connection | None

    def _open(self) -> Connection:
        if self._connection is None:
            raise ClosedError("the client has been closed")
        return self._connection

    def namespace(self, model: str, layout: Layout, *, tenant: str = "default", rank: int = 0) -> Namespace:
        """Opens a namespace: blocks of one tenant, model, layout and rank. Blocks of two namespaces never match."""
        return self._open().namespace(tenant, model, layout, rank)

    def stats(self) -> dict[str, int]:
        """Returns what this client has done: requests, bytes, corrupt blocks that it refused, hedged reads, …"""
        return dict(self._open().stats())


class Client(Calls):
    """A client of one cluster.

    `coordinators` are the control-plane addresses (`host:port`, several in a list or separated by commas), `token` is the
    cluster's. See `Options` for the rest. A context manager, which closes it.
    """

    def __init__(
        self, coordinators: str | Sequence[str], token: str | bytes, **options: Unpack[Options]
    ) -> None:
        self._connection = None
        self._connection = connect(coordinators, token, **options).wait()

    @classmethod
    def local(cls, directory: StrPath | None = None, **options: Unpack[Options]) -> Self:
        """Connects to the cluster that `kvhive up` runs on this machine."""
        coordinators, token, tls = local(directory)
        options.setdefault("tls", tls)
        return cls(coordinators, token, **options)

    def match(self, prefix: Prefix, *, timeout: float | None = None) -> Match:
        """Says how far the cluster covers `prefix`. What cannot be asked within `timeout` seconds counts as not covered."""
        return self._open().match_prefix(prefix, timeout).wait()

    def fetch_into(
        self, prefix: Prefix, targets: Buffers, start: int = 0, *, timeout: float | None = None
    ) -> FetchReport:
        """Fetches the blocks of `prefix` from `start` on into `targets`, as many as there is memory for.

        Each block is checked in that memory against its key, layout, tenant and digest; one that does not match is a miss. Until
        this returns, no other call may use the memory.
        """
        return self._open().fetch_into(prefix, targets, start, timeout).wait()

    def store_from(
        self,
        prefix: Prefix,
        sources: Buffers,
        start: int = 0,
        *,
        ack: Ack | None = None,
        codec: Codec | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        hint: Hint = "none",
        returns_after: int | None = None,
        timeout: float | None = None,
    ) -> StoreReport:
        """Stores `sources` as the blocks of `prefix` from `start` on. What is there already is not sent.

        `ack` says how many replicas must hold a block, `codec` how it is stored; without them the cluster's and the tenant's
        rules do. The others say what is known of the request: they decide what is worth keeping, nothing else.
        """
        about = (input_tokens, output_tokens, hint, returns_after)
        return self._open().store_from(prefix, sources, start, ack, codec, about, timeout).wait()

    def release(
        self, prefix: Prefix, hint: Hint, *, returns_after: int | None = None, timeout: float | None = None
    ) -> int:
        """Tells the cluster what is expected of a prefix's session; returns the copies of its blocks that have been told."""
        return self._open().release(prefix, hint, returns_after, timeout).wait()

    def pin(self, prefix: Prefix, name: str, *, lasts: float | None = None, reason: str = "") -> None:
        """Pins a prefix under a name (lower-case letters, digits, `-`, `_`, `.`); a pin of this name becomes this one.

        Its blocks do not leave to make room for others, and are repaired first: for `lasts` seconds, or until it is unpinned. What
        is not stored yet is pinned when it comes. Nodes go by it within a heartbeat.
        """
        self._open().pin(prefix, name, lasts, reason).wait()

    def unpin(self, name: str) -> None:
        """Ends a pin: its blocks stay where they are until others take their place."""
        self._open().unpin(name).wait()

    def pins(self) -> list[Pin]:
        """Lists what is pinned in the cluster."""
        return [Pin(*pin) for pin in self._open().pins().wait()]

    def clear(self, tenant: str = "default") -> int:
        """Ends a tenant's era; returns the one that has begun. When this returns, nobody serves the tenant's older blocks."""
        return self._open().clear(tenant).wait()

    def create_tenant(self, name: str) -> None:
        """Creates a tenant without rules of its own."""
        self._open().create_tenant(name).wait()

    def ensure_tenant(self, name: str, *, shares_with: str | None = None) -> None:
        """Has a tenant be there. Where it is not it is made: by itself, or as another name for one whose blocks it shares."""
        self._open().ensure_tenant(name, shares_with).wait()

    def set_strategy(self, strategy: str | None, *, tenant: str = "default") -> None:
        """Has another strategy decide which of a tenant's blocks leave, without losing one; None: each node's own."""
        self._open().set_strategy(tenant, strategy).wait()

    def refresh(self) -> int:
        """Fetches the cluster's map anew, for tenants that others have made; returns its epoch."""
        return self._open().refresh().wait()

    def close(self) -> None:
        """Ends the client. Calls of other threads that are under way end as they would have."""
        self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()
