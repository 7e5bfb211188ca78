"""The client of a cluster for asyncio. The client's own threads do the work; the event loop is only told when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from kvhive._native import FetchReport, Match, Operation, Prefix, StoreReport
from kvhive.access import Options, Pin, StrPath, connect, local
from kvhive.client import Ack, Calls, Codec, Hint

if TYPE_CHECKING:
    from kvhive._native import Connection
    from kvhive.access import Buffers

__all__ = ["AsyncClient"]

T = TypeVar("T")


async def drive(operation: Operation[T]) -> T:
    """Awaits an operation. Cancelled, it is ended first: when this raises, nothing uses the operation's memory any more."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        loop.call_soon_threadsafe(_settle, done, value, error)

    operation.start(settle)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        operation.cancel()
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                # Whoever insists waits as well: the memory is lent until the operation has ended, which is soon.
                continue
        if not done.cancelled():
            # Looked at, so that asyncio does not warn of an error that nobody has seen.
            done.exception()
        raise


def _settle(done: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)


class AsyncClient(Calls):
    """A client of one cluster for asyncio; made by `AsyncClient.connect`. Its calls are those of `Client`, to be awaited.

    >>> import asyncio, kvhive
    >>> async def story(node):
    ...     async with await node.async_client() as client:
    ...         blocks = client.namespace("tiny@1", kvhive.Layout.opaque(4096, tokens=16))
    ...         prefixes = [blocks.keys([user] * 64) for user in range(3)]
    ...         memory = [bytes([user]) * 4096 * 4 for user in range(3)]
    ...         await asyncio.gather(*map(client.store_from, prefixes, memory))
    ...         return [match.covered for match in await asyncio.gather(*map(client.match, prefixes))]
    >>> with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=4096) as node:
    ...     asyncio.run(story(node))
    [4, 4, 4]
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect(
        cls, coordinators: str | Sequence[str], token: str | bytes, **options: Unpack[Options]
    ) -> Self:
        """Connects to the first coordinator that answers; arguments as of `Client`."""
        return cls(await drive(connect(coordinators, token, **options)))

    @classmethod
    async def local(cls, directory: StrPath | None = None, **options: Unpack[Options]) -> Self:
        """Connects to the cluster that `kvhive up` runs on this machine."""
        coordinators, token, tls = local(directory)
        options.setdefault("tls", tls)
        return await cls.connect(coordinators, token, **options)

    async def match(self, prefix: Prefix, *, timeout: float | None = None) -> Match:
        """As `Client.match`."""
        return await drive(self._open().match_prefix(prefix, timeout))

    async def fetch_into(
        self, prefix: Prefix, targets: Buffers, start: int = 0, *, timeout: float | None = None
    ) -> FetchReport:
        """As `Client.fetch_into`. Cancelled, it writes no more by the time that the cancellation arrives."""
        return await drive(self._open().fetch_into(prefix, targets, start, timeout))

    async def store_from(
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
        """As `Client.store_from`. Cancelled, some of the blocks may have been stored."""
        about = (input_tokens, output_tokens, hint, returns_after)
        return await drive(self._open().store_from(prefix, sources, start, ack, codec, about, timeout))

    async def release(
        self, prefix: Prefix, hint: Hint, *, returns_after: int | None = None, timeout: float | None = None
    ) -> int:
        """As `Client.release`."""
        return await drive(self._open().release(prefix, hint, returns_after, timeout))

    async def pin(self, prefix: Prefix, name: str, *, lasts: float | None = None, reason: str = "") -> None:
        """As `Client.pin`."""
        await drive(self._open().pin(prefix, name, lasts, reason))

    async def unpin(self, name: str) -> None:
        """As `Client.unpin`."""
        await drive(self._open().unpin(name))

    async def pins(self) -> list[Pin]:
        """As `Client.pins`."""
        return [Pin(*pin) for pin in await drive(self._open().pins())]

    async def clear(self, tenant: str = "default") -> int:
        """As `Client.clear`."""
        return await drive(self._open().clear(tenant))

    async def ensure_tenant(self, name: str, *, shares_with: str | None = None) -> None:
        """As `Client.ensure_tenant`."""
        await drive(self._open().ensure_tenant(name, shares_with))

    async def set_strategy(self, strategy: str | None, *, tenant: str = "default") -> None:
        """As `Client.set_strategy`."""
        await drive(self._open().set_strategy(tenant, strategy))

    async def create_tenant(self, name: str) -> None:
        """As `Client.create_tenant`."""
        await drive(self._open().create_tenant(name))

    async def refresh(self) -> int:
        """As `Client.refresh`."""
        return await drive(self._open().refresh())

    async def close(self) -> None:
        """Ends the client. Calls that are under way end as they would have."""
        self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self.close()
