"""What tests of whole engines share: a cluster of processes, an engine's process, a tiny model, prompts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

KVHIVE = os.environ.get("KVHIVE_BIN")
ANSWER = "ANSWER "


def command(folder: Path, *words: str, variables: dict[str, str] | None = None) -> str:
    given = [str(KVHIVE), *words, "--dir", str(folder)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=240, env={**os.environ, **(variables or {})})
    assert done.returncode == 0, done.stderr
    return done.stdout


class Cluster:
    """A cluster of its own; `extra` is what an engine's adapter is told of it. `variables` are of its processes."""

    def __init__(self, folder: Path, variables: dict[str, str] | None = None) -> None:
        self._folder = folder
        self.extra: dict[str, Any] = {"directory": str(folder), "wait_ms": 5000}
        shape = ["--coordinators", "1", "--nodes", "2", "--devices", "1", "--block-size", "256KiB"]
        sizes = ["--device-memory", "256MiB", "--host-memory", "0B"]
        command(folder, "up", "--detach", *shape, *sizes, variables=variables)

    def down(self) -> None:
        command(self._folder, "down")

    def json(self, *words: str) -> Any:
        """Runs the command on it, and returns its JSON."""
        return json.loads(command(self._folder, *words, "--json"))

    def ask(self, path: str, body: Any) -> Any:
        """Asks its coordinator's admin API."""
        url = json.loads((self._folder / "running.json").read_text())["admin_urls"][0]
        token = (self._folder / "token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        asked = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=60) as answered:
            return json.load(answered)

    def blocks(self) -> int:
        """How many blocks it holds."""
        return sum(int(device["blocks"]) for device in self.json("nodes")["devices"])

    def pins(self) -> dict[str, int]:
        """Names of what is pinned, and how many blocks each names."""
        return {str(pin["name"]): int(pin["keys"]) for pin in self.json("pin", "list")["pins"]}

    def kill(self) -> None:
        """Ends every process of it without a word."""
        self._signal(signal.SIGKILL)

    def sweep(self) -> None:
        """Ends what is left of it, if anything is."""
        for one in self._processes():
            os.kill(one, signal.SIGKILL)

    def stop(self) -> None:
        """Has every process of it stand still: what is asked of it is taken and not answered."""
        self._signal(signal.SIGSTOP)

    def _signal(self, what: signal.Signals) -> None:
        processes = self._processes()
        assert len(processes) > 2, "its nodes and its coordinator at least"
        for one in processes:
            os.kill(one, what)

    def _processes(self) -> list[int]:
        # Of any width: some packages tell programs how wide a terminal is.
        listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        # What the command starts names its own file, whatever link it was called by.
        of_it = [str(KVHIVE), os.path.realpath(str(KVHIVE))]
        lines = [line for line in listed.splitlines() if str(self._folder) in line and any(one in line for one in of_it)]
        return [int(line.split()[0]) for line in lines]


class Process:
    """A script of this folder in a process of its own, told what to do line by line, and answering so."""

    def __init__(self, script: str, told: Any, environment: dict[str, str], log: Path | None = None) -> None:
        with contextlib.ExitStack() as opened:
            self._process = subprocess.Popen(
                [sys.executable, script, json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sys.stderr if log is None else opened.enter_context(log.open("w")),
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._read()

    def end(self) -> None:
        """Ends it as an operator would: what is being saved is saved."""
        if self._process.poll() is None:
            self._write({"end": True})
            self._process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            if kind is None:
                self.end()
        finally:
            # With what it has started: an engine's scheduler may be a process of its own.
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()

    def _write(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(f"it has ended with {self._process.wait()}")


def answer(what: Any) -> None:
    """Answers who has started this process, whatever else it prints."""
    print(ANSWER + json.dumps(what), flush=True)


def tiny_llama(folder: Path, hidden_size: int = 256, intermediate_size: int = 512) -> str:
    """Writes a Llama whose weights are the same wherever they are made. A wider one computes more for each byte of its cache."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1234)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    sizes: dict[str, Any] = {"vocab_size": 2000, "hidden_size": hidden_size, "intermediate_size": intermediate_size}
    sizes["num_hidden_layers"] = 4
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=4096, tie_word_embeddings=False, initializer_range=0.2)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def prompt(name: str, tokens: int) -> list[int]:
    drawn = random.Random(name)
    return [drawn.randrange(3, 2000) for _ in range(tokens)]


def in_full(prompts: list[list[int]], block: int) -> list[int]:
    """How many tokens of each are in full blocks, without the last token, which is always computed."""
    return [(len(prompt) - 1) // block * block for prompt in prompts]
