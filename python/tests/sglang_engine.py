"""One SGLang engine in a process of its own, told what to do line by line: what `test_sglang.py` drives."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import Process, answer

HERE = Path(__file__).parent
PAGE = 32
IDLE_SECONDS = 60


def backend(extra: dict[str, Any]) -> dict[str, Any]:
    """Returns what an operator gives SGLang as its backend's configuration."""
    named = {"backend_name": "kvhive", "module_path": "kvhive.sglang", "class_name": "KvHiveStorage", "interface_v1": 1}
    return {**named, "prefetch_threshold": PAGE, **extra}


class Engine(Process):
    """A process that has one model loaded. `extra` is what its storage backend is told; without, it has no hierarchical cache."""

    def __init__(self, model: str, extra: dict[str, Any] | None = None, **options: Any) -> None:
        cache: dict[str, Any] = {}
        if extra is not None:
            cache = {
                "enable_hierarchical_cache": True,
                "hicache_io_backend": "direct",
                "hicache_mem_layout": "page_first_direct",
                "hicache_size": 1,
                "hicache_write_policy": "write_through",
                "hicache_storage_prefetch_policy": "wait_complete",
                "hicache_storage_backend": "dynamic",
                "hicache_storage_backend_extra_config": json.dumps(backend(extra)),
            }
        # Plug-ins are found by Python's path, and compilers beside Python.
        path = os.pathsep.join([str(HERE / "sglang_cpu"), os.environ.get("PYTHONPATH", "")])
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {"PYTHONPATH": path, "PATH": tools, "HF_HUB_OFFLINE": "1"}
        super().__init__(__file__, {"model_path": model, **cache, **options}, environment)

    def generate(
        self, prompts: list[list[int]], tokens: int = 16, salt: str | None = None, wait: bool = True
    ) -> list[dict[str, Any]]:
        """Has all prompts answered at once: `tokens`, how many of a prompt came from the `device`, the `host` and the `storage`, and what all of
        them `took`."""
        self._write({"prompts": prompts, "tokens": tokens, "salt": salt})
        return self.answers() if wait else []

    def answers(self) -> list[dict[str, Any]]:
        """Waits for what was asked without waiting."""
        answers: list[dict[str, Any]] = self._read()
        return answers

    def reset(self) -> None:
        """Has the engine forget what it has cached itself."""
        self._write({"reset": True})
        assert self._read() is True, "the engine's own cache was reset"

    def attach(self, extra: dict[str, Any]) -> tuple[bool, str]:
        """Attaches a storage backend; says whether that was done, and what SGLang says."""
        self._write({"attach": json.dumps(backend(extra))})
        done, said = self._read()
        return done, said

    def detach(self) -> tuple[bool, str]:
        """Detaches the storage backend."""
        self._write({"detach": True})
        done, said = self._read()
        return done, said


def main() -> None:
    import sglang

    options: dict[str, Any] = {
        "device": "cpu",
        "attention_backend": "torch_native",
        "dtype": "float32",
        "page_size": PAGE,
        "skip_tokenizer_init": True,
        "disable_overlap_schedule": True,
        "mem_fraction_static": 0.1,
        "max_total_tokens": 8192,
        "random_seed": 0,
        "log_level": os.environ.get("SGLANG_LOG_LEVEL", "warning"),
    }
    engine = sglang.Engine(**{**options, **json.loads(sys.argv[1])})
    manager = engine.tokenizer_manager

    def attached(call: Any) -> tuple[bool, str]:
        done = engine.loop.run_until_complete(call)
        return done.success, done.message

    answer("ready")
    for line in sys.stdin:
        todo = json.loads(line)
        if "end" in todo:
            break
        if "reset" in todo:
            answer(when_idle(lambda: (engine.flush_cache().success, "not idle"))[0])
        elif "attach" in todo:
            answer(when_idle(lambda: attached(manager.attach_hicache_storage("dynamic", todo["attach"], "wait_complete"))))
        elif "detach" in todo:
            answer(when_idle(lambda: attached(manager.detach_hicache_storage())))
        else:
            sampling = {"temperature": 0, "max_new_tokens": todo["tokens"], "ignore_eos": True}
            begun = time.monotonic()
            outputs = engine.generate(input_ids=todo["prompts"], sampling_params=sampling, cache_salt=todo["salt"])
            took = time.monotonic() - begun
            answer([{**said(output), "took": took} for output in outputs])
    engine.shutdown()


def when_idle(call: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    """Calls until SGLang is idle: its scheduler is so a little after the last answer."""
    until = time.monotonic() + IDLE_SECONDS
    while True:
        done, said = call()
        if done or "not idle" not in said or time.monotonic() > until:
            return done, said
        time.sleep(0.1)


def said(output: dict[str, Any]) -> dict[str, Any]:
    about = output["meta_info"]
    parts = about["cached_tokens_details"] or {}
    return {
        "tokens": output["output_ids"],
        "cached": about["cached_tokens"],
        "finish": about["finish_reason"]["type"],
        **{part: parts.get(part, 0) for part in ("device", "host", "storage")},
    }


if __name__ == "__main__":
    main()
