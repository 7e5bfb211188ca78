"""Measures level two adapters of LMCache by its own bench (`lmcache bench l2`), in turn: kvhive's two, its own for files, and its own
for Redis where there is a redis-server. Prints a table. Run by hand in the environment of `scripts/test lmcache`; `--node` is what it starts
itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kvhive

OBJECT = 4 << 20
KEYS, IN_FLIGHT, ROUNDS, TURNS = 8, 4, 3, 3
LMCACHE = [sys.executable, "-W", "ignore", "-m", "lmcache.cli.main"]
ENVIRONMENT = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "ERROR"}
PATIENCE_SECONDS = 120.0


def node() -> None:
    """Is a node in a process of its own, until told to end."""
    room = 2 * TURNS * (ROUNDS + 1) * KEYS * IN_FLIGHT * OBJECT
    with kvhive.EmbeddedNode(memory=room + room // 4, block_bytes=OBJECT, pin_memory=False) as one:
        print(json.dumps({"coordinators": list(one.coordinators), "token": one.token.decode()}), flush=True)
        signal.sigwait([signal.SIGTERM])


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def redis(folder: Path) -> Iterator[dict[str, Any]]:
    """Runs a server of Redis that keeps everything in memory."""
    port = 16_379
    quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(folder), "--port", str(port)]
    with running(["redis-server", *quiet]) as process:
        assert process.stdout is not None
        until = time.monotonic() + PATIENCE_SECONDS
        while "Ready to accept connections" not in process.stdout.readline():
            assert time.monotonic() < until and process.poll() is None
        yield {"type": "resp", "host": "127.0.0.1", "port": port, "num_workers": 4}


def bench(adapter: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Returns what the bench says of each operation."""
    shape = ["--num-keys", str(KEYS), "--in-flight", str(IN_FLIGHT), "--data-size-kb", str(OBJECT >> 10), "--rounds", str(ROUNDS)]
    words = ["bench", "l2", "--l2-adapter", json.dumps(adapter), *shape, "--format", "json", "--output", str(out), "-q"]
    subprocess.run([*LMCACHE, *words], check=True, env=ENVIRONMENT, timeout=600, capture_output=True)
    metrics = json.loads(out.read_text())["metrics"]
    said = {one["operation"]: one for name, one in metrics.items() if name.startswith("op_")}
    for verb in ("Store", "Load"):
        assert said[verb]["total_success"] == said[verb]["total_keys"], (adapter, said[verb])
    return said


def main() -> None:
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        process = held.enter_context(running([sys.executable, "-W", "ignore", __file__, "--node"]))
        assert process.stdout is not None
        cluster = json.loads(process.stdout.readline())

        def ours(way: str, module: str, name: str, turn: int) -> dict[str, Any]:
            # Each turn stores what is not there yet.
            told = {**cluster, "facts": {"turn": turn}}
            return {"type": way, "module_path": module, "class_name": name, "adapter_params": told}

        def files(way: str, turn: int, **more: Any) -> dict[str, Any]:
            place = folder / f"{way}-{turn}"
            place.mkdir()
            return {"type": way, "base_path": str(place), **more}

        ways: dict[str, Callable[[int], dict[str, Any]]] = {
            "`KvHiveAdapter`": lambda turn: ours("plugin", "kvhive.lmcache.adapter", "KvHiveAdapter", turn),
            "`KvHiveL2`": lambda turn: ours("native_plugin", "kvhive.lmcache", "KvHiveL2", turn),
            "`fs`": lambda turn: files("fs", turn),
            "`fs_native`, 4 workers": lambda turn: files("fs_native", turn, num_workers=4),
        }
        server = contextmanager(redis)
        came: dict[str, list[dict[str, dict[str, Any]]]] = {name: [] for name in [*ways, "`resp`, 4 workers, redis-server"]}
        for turn in range(TURNS):
            for name, way in ways.items():
                came[name].append(bench(way(turn), folder / "out.json"))
                for place in folder.glob("fs*"):
                    shutil.rmtree(place)
            if shutil.which("redis-server"):
                with server(folder) as adapter:
                    came["`resp`, 4 workers, redis-server"].append(bench(adapter, folder / "out.json"))
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, load {os.getloadavg()[1]:.1f}, LMCache, {TURNS} turns of {ROUNDS} rounds")
    print(f"| adapter | store of {KEYS * IN_FLIGHT * OBJECT >> 20} MiB, ms | load, ms | lookup of {KEYS * IN_FLIGHT}, ms | MB/s stored | MB/s loaded |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, turns in came.items():
        if turns:
            ms = {verb: statistics.median(one[verb]["duration_p50_ms"] for one in turns) for verb in ("Store", "Load", "Lookup")}
            speed = {verb: KEYS * IN_FLIGHT * OBJECT / ms[verb] / 1000 for verb in ("Store", "Load")}
            print(f"| {name} | {ms['Store']:.0f} | {ms['Load']:.0f} | {ms['Lookup']:.2f} | {speed['Store']:.0f} | {speed['Load']:.0f} |")


if __name__ == "__main__":
    node() if sys.argv[1:] == ["--node"] else main()
