"""The Python side of `kvhive bench python`: does what each line on its input says, and answers how many seconds it took."""

import asyncio
import itertools
import json
import sys
import time

import kvhive

setup = json.loads(sys.stdin.readline())
BATCH, BLOCK = setup["batch"], setup["block_bytes"]
memory = bytearray(BATCH * BLOCK)
layout = kvhive.Layout.opaque(BLOCK, tokens=16)
options = {"connections_per_member": 1}
numbers = itertools.count()


def names(client):
    return client.namespace("bench", layout)


def fetched(client):
    return names(client).keys_of_hashes([at.to_bytes(8, "little") for at in range(BATCH)])


def new(client):
    return names(client).keys_of_hashes([b"python" + next(numbers).to_bytes(8, "little") for _ in range(BATCH)])


def check(done, what):
    if done != BATCH:
        sys.exit(f"{done} of {BATCH} blocks were {what}")


def fetch(batches):
    prefix = fetched(client)
    for _ in range(batches):
        check(client.fetch_into(prefix, memory).delivered, "fetched")


def store(batches):
    for _ in range(batches):
        check(client.store_from(new(client), memory).acknowledged, "stored")


async def fetch_awaited(batches):
    async with await kvhive.AsyncClient.connect(setup["coordinators"], setup["token"], **options) as client:
        prefix = fetched(client)
        check((await client.fetch_into(prefix, memory)).delivered, "fetched")
        begun = time.perf_counter()
        for _ in range(batches):
            check((await client.fetch_into(prefix, memory)).delivered, "fetched")
        return time.perf_counter() - begun


client = kvhive.Client(setup["coordinators"], setup["token"], **options)
print("ready", flush=True)
for line in sys.stdin:
    verb, batches = line.split()
    if verb == "fetch-awaited":
        took = asyncio.run(fetch_awaited(int(batches)))
    else:
        begun = time.perf_counter()
        {"fetch": fetch, "store": store}[verb](int(batches))
        took = time.perf_counter() - begun
    print(took, flush=True)
