"""The client for asyncio: the loop goes on, errors arrive, and a cancelled call has let go of its memory."""

import asyncio
import time

import kvhive
import numpy as np
import pytest
from conftest import LAYOUT

SIZE = LAYOUT.block_bytes


def test_calls_are_under_way_together(node: kvhive.EmbeddedNode) -> None:
    async def story() -> None:
        async with await node.async_client() as client:
            blocks = client.namespace("together", LAYOUT)
            prefixes = [blocks.keys([user] * 64) for user in range(16)]
            stored = [np.full((4, SIZE), user, np.uint8) for user in range(16)]
            reports = await asyncio.gather(*map(client.store_from, prefixes, stored))
            assert [report.acknowledged for report in reports] == [4] * 16
            assert [match.covered for match in await asyncio.gather(*map(client.match, prefixes))] == [4] * 16
            fetched = [np.zeros_like(one) for one in stored]
            await asyncio.gather(*map(client.fetch_into, prefixes, fetched))
            assert all((one == other).all() for one, other in zip(stored, fetched, strict=True))
            assert await client.release(prefixes[0], "pending") == 4
            assert client.stats()["bytes_fetched"] == 16 * 4 * SIZE

    asyncio.run(story())


def test_tenants_are_made_and_cleared(node: kvhive.EmbeddedNode) -> None:
    async def story() -> None:
        client = await node.async_client()
        await client.create_tenant("asynchronous")
        blocks = client.namespace("model", LAYOUT, tenant="asynchronous")
        prefix = blocks.keys(range(64))
        await client.store_from(prefix, bytes(4 * SIZE))
        await client.pin(prefix, "awaited", lasts=60)
        assert [pin.tenant for pin in await client.pins()] == ["asynchronous"]
        await client.unpin("awaited")
        await client.clear("asynchronous")
        assert (await client.match(prefix)).covered == 0
        assert await client.refresh() > 0
        with pytest.raises(kvhive.UnknownTenantError):
            await client.clear("nobody")
        await client.close()
        with pytest.raises(kvhive.ClosedError):
            await client.match(prefix)

    asyncio.run(story())


def test_a_call_that_waits_holds_up_nobody(silent_address: str, node: kvhive.EmbeddedNode) -> None:
    async def story() -> int:
        waiting = asyncio.create_task(
            kvhive.AsyncClient.connect(silent_address, node.token, connect_timeout=0.5, request_timeout=0.5)
        )
        turns = 0
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0.005)
        with pytest.raises(kvhive.UnreachableError):
            await waiting
        return turns

    assert asyncio.run(story()) > 5


def test_a_cancelled_call_has_let_go_of_its_memory(node: kvhive.EmbeddedNode) -> None:
    async def story() -> None:
        client = await node.async_client()
        blocks = client.namespace("cancelled", kvhive.Layout.opaque(1 << 20, 16))
        prefix = blocks.keys(range(16 * 8))
        memory = np.ones((8, 1 << 20), np.uint8)
        assert (await client.store_from(prefix, memory)).acknowledged == 8
        for _ in range(20):
            fetch = asyncio.create_task(client.fetch_into(prefix, memory))
            await asyncio.sleep(0)
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            # Memory that is still lent would be refused.
            assert (await client.fetch_into(prefix, memory)).delivered == 8

    asyncio.run(story())


def test_timeouts_of_asyncio_work(silent_address: str, node: kvhive.EmbeddedNode) -> None:
    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await kvhive.AsyncClient.connect(silent_address, node.token, connect_timeout=60, request_timeout=60)

    asyncio.run(story())


def test_a_loop_that_ends_first_is_no_trouble(silent_address: str, node: kvhive.EmbeddedNode) -> None:
    loop = asyncio.new_event_loop()
    connect = kvhive.AsyncClient.connect(silent_address, node.token, connect_timeout=0.2, request_timeout=0.2)
    task = loop.create_task(connect)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    time.sleep(0.4)
    assert not task.done()
    with node.client() as client:
        assert client.refresh() > 0
