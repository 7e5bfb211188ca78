"""A storage plugin's native half: objects of any length, in batches that nobody waits for."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvhive
import numpy as np
import pytest
from kvhive._native import EngineObjects

PATIENCE_SECONDS = 20.0


class Plugin:
    """An engine's side of it."""

    def __init__(self, coordinators: list[str], token: bytes, model: str, wait: float = 5.0) -> None:
        told: dict[str, Any] = {"tls": None, "tenant": "default", "wait": wait, "load": wait}
        self.objects = EngineObjects(coordinators=coordinators, token=token, model=model, **told)

    def over(self, batch: int) -> tuple[bool, list[bool]]:
        """Waits as LMCache does: for the descriptor, then for what it announces."""
        poll = select.poll()
        poll.register(self.objects.event_fd(), select.POLLIN)
        assert poll.poll(PATIENCE_SECONDS * 1000), "every batch ends"
        [(number, is_ok, why, done)] = self.objects.drain_completions()
        assert number == batch and is_ok == (not why)
        assert not poll.poll(0), "what was taken is not announced again"
        return is_ok, done


@pytest.fixture
def plugin(node: kvhive.EmbeddedNode, request: pytest.FixtureRequest) -> Callable[[], Plugin]:
    return lambda: Plugin(node.coordinators, node.token, request.node.nodeid)


def numbers(length: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


def test_objects_of_any_length_go_from_one_plugin_to_another(plugin: Callable[[], Plugin]) -> None:
    one, other = plugin(), plugin()
    names = ["short", "long", "längst"]
    stored = [numbers(length, length) for length in (1, 70_000, 1 << 20)]
    assert one.over(one.objects.submit_batch_set(names, stored)) == (True, [True] * 3)
    assert other.over(other.objects.submit_batch_exists(["long", "none", "short"])) == (True, [True, False, True])
    into = [np.zeros(len(one), np.uint8) for one in stored]
    assert other.over(other.objects.submit_batch_get(names, into)) == (True, [True] * 3)
    assert all(np.array_equal(came, was) for came, was in zip(into, stored, strict=True))


def test_an_object_of_another_length_is_a_miss_and_its_memory_is_as_it_was(plugin: Callable[[], Plugin]) -> None:
    one = plugin()
    one.over(one.objects.submit_batch_set(["a", "b"], [numbers(5000, 1), numbers(5000, 2)]))
    into = [np.zeros(length, np.uint8) for length in (4999, 5000, 5001)]
    assert one.over(one.objects.submit_batch_get(["a", "b", "a"], into)) == (True, [False, True, False])
    assert not into[0].any() and not into[2].any()


def test_several_batches_are_announced_once(plugin: Callable[[], Plugin]) -> None:
    objects = plugin().objects
    batches = {objects.submit_batch_exists([name]) for name in "abcdef"} | {objects.submit_batch_exists([])}
    poll = select.poll()
    poll.register(objects.event_fd(), select.POLLIN)
    over: set[int] = set()
    until = time.monotonic() + PATIENCE_SECONDS
    while over != batches:
        assert poll.poll((until - time.monotonic()) * 1000)
        taken = objects.drain_completions()
        assert taken, "it is announced when there is something"
        over |= {number for number, *_ in taken}
    assert not poll.poll(0) and not objects.drain_completions()


def test_memory_that_cannot_be_used_is_a_miss_and_never_raises(plugin: Callable[[], Plugin]) -> None:
    one = plugin()
    spoilt: list[tuple[Callable[..., int], list[Any], str]] = [
        (one.objects.submit_batch_set, [numbers(10, 1), numbers(0, 1)], "buffer 1 is empty"),
        (one.objects.submit_batch_get, [bytearray(4), b"1234"], "read-only"),
        (one.objects.submit_batch_set, [numbers(10, 1), np.zeros((256 << 20) + 1, np.uint8)], "268435457 bytes, at most"),
    ]
    for submit, memory, why in spoilt:
        assert one.over(submit(["a", "b"], memory)) == (False, [False, False])
        assert why in str(one.objects.troubles())
    # The cluster has nothing to do with it: it is asked as before.
    assert one.over(one.objects.submit_batch_exists(["a"])) == (True, [False])
    with pytest.raises(kvhive.MisuseError, match="1 buffers for 2 objects"):
        one.objects.submit_batch_set(["a", "b"], [numbers(10, 1)])


def test_a_silent_cluster_costs_a_bounded_wait_and_then_none(silent_address: str) -> None:
    plugin = Plugin([silent_address], b"x" * 32, "silent", wait=0.1)
    memory = np.zeros(100, np.uint8)
    for name in "abc":
        assert plugin.over(plugin.objects.submit_batch_exists([name])) == (False, [False])
        assert plugin.over(plugin.objects.submit_batch_get([name], [memory])) == (False, [False])
    assert plugin.objects.troubles()
    # Left alone: a store would wait for longer than anybody here does.
    until = time.monotonic() + PATIENCE_SECONDS
    assert plugin.over(plugin.objects.submit_batch_set(["d"], [memory])) == (False, [False])
    assert time.monotonic() < until


NODE = """
import json, signal, kvhive
# Before there are threads: they inherit it, and leave the signal to who waits for it.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with kvhive.EmbeddedNode(memory=4 << 20, block_bytes=64 << 10) as node:
    print(json.dumps([list(node.coordinators), node.token.decode()]), flush=True)
    signal.sigwait([signal.SIGTERM])
"""


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], list[str], bytes]]:
    """Runs a cluster in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        coordinators, token = json.loads(process.stdout.readline())
        yield process, coordinators, token.encode()
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, "it has ended by itself, and leaves nothing"


def stop(process: subprocess.Popen[str]) -> None:
    """Has a process stand still, and waits until each of its threads does."""
    os.kill(process.pid, signal.SIGSTOP)
    until = time.monotonic() + PATIENCE_SECONDS
    threads = list(Path(f"/proc/{process.pid}/task").iterdir())
    while any(") T " not in (thread / "stat").read_text() for thread in threads):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_cluster_that_stands_still_is_a_miss_until_it_goes_on() -> None:
    with another_process() as (process, coordinators, token):
        one = Plugin(coordinators, token, "still", wait=1.0)
        memory, stored = np.zeros(5000, np.uint8), numbers(5000, 3)
        assert one.over(one.objects.submit_batch_set(["a"], [stored])) == (True, [True])
        stop(process)
        assert one.over(one.objects.submit_batch_exists(["a"])) == (False, [False])
        assert one.over(one.objects.submit_batch_get(["a"], [memory])) == (False, [False])
        assert not memory.any()
        os.kill(process.pid, signal.SIGCONT)
        until = time.monotonic() + PATIENCE_SECONDS
        while one.over(one.objects.submit_batch_get(["a"], [memory])) != (True, [True]):
            assert time.monotonic() < until, one.objects.troubles()
            time.sleep(0.05)
        assert np.array_equal(memory, stored)


def test_memory_is_free_when_a_plugin_has_closed(silent_address: str) -> None:
    plugin = Plugin([silent_address], b"x" * 32, "closed", wait=60.0)
    memory = bytearray(100)
    plugin.objects.submit_batch_get(["a"], [memory])
    with pytest.raises(BufferError):
        memory.extend(b"x")
    plugin.objects.close(0.05)
    memory.extend(b"x")
    [(_, is_ok, _, done)] = plugin.objects.drain_completions()
    assert (is_ok, done) == (False, [False])
    assert plugin.over(plugin.objects.submit_batch_exists(["a"])) == (False, [False]), "at once"
