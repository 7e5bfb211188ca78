"""One vLLM engine in a process of its own, told what to do line by line: what `test_vllm.py` and the measurements drive."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fleet import Process, answer

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
}


class Engine(Process):
    """A process that has one model loaded. `extra` is what its connector is told; without, it has none. `environment` is its own, and what it
    logs goes to `log`, if that is named."""

    def __init__(
        self,
        model: str,
        extra: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        **options: Any,
    ) -> None:
        transfer = None
        if extra is not None:
            transfer = {
                "kv_connector": "KvHiveConnector",
                "kv_connector_module_path": "kvhive.vllm.connector",
                "kv_role": options.pop("kv_role", "kv_both"),
                "kv_connector_extra_config": extra,
            }
        if "kv_transfer_config" in options:
            transfer = options.pop("kv_transfer_config")
        told = {"model": model, "kv_transfer_config": transfer, "options": options}
        super().__init__(__file__, told, {**ENVIRONMENT, **(environment or {})}, log)

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int = 16,
        salt: str | None = None,
        hints: list[tuple[str, dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """Has all prompts answered at once: `tokens`, how many of a prompt were `cached`, `ttft` and the time of them all. `hints` are types
        and payloads of the actions that go with each."""
        self._write({"prompts": prompts, "tokens": tokens, "salt": salt, "hold": None, "hints": hints})
        answers: list[dict[str, Any]] = self._read()
        return answers

    def hold(self, prompts: list[list[int]], tokens: int, after: str) -> None:
        """Asks for all prompts at once, and has the engine stand still between two steps: `after` the first one (`step`), or the first
        one that loads something of the cluster's (`load`). That requests are under way then is seen to."""
        self._write({"prompts": prompts, "tokens": tokens, "salt": None, "hold": after})
        assert self._read() == "held", "requests were over before"

    def go_on(self) -> list[dict[str, Any]]:
        """Has an engine that stands still go on, and waits for its answers."""
        self._write({})
        answers: list[dict[str, Any]] = self._read()
        return answers

    def figures(self) -> dict[str, float]:
        """Returns vLLM's own counters."""
        self._write({"figures": True})
        figures: dict[str, float] = self._read()
        return figures

    def reset(self) -> None:
        """Has the engine forget what it has cached itself."""
        self._write({"reset": True})
        assert self._read() is True, "the engine's own cache was reset"


def figures(engine: Any) -> dict[str, float]:
    metrics = [metric for metric in engine.get_metrics() if getattr(metric, "value", None) is not None]
    return {metric.name.removeprefix("vllm:"): metric.value for metric in metrics if len(metric.labels) <= 2}


def loaded(engine: Any) -> float:
    return figures(engine).get("external_prefix_cache_hits", 0)


def hint(engine: Any, hints: list[tuple[str, dict[str, Any]]] | None) -> None:
    """Has `kv_hints` go with each request from now on; vLLM's `LLM` has no word for them."""
    from vllm.v1.kv_hints import KvHintAction, KvHintsEnvelope

    actions = [KvHintAction(str(at), kind, "1", payload) for at, (kind, payload) in enumerate(hints or [])]
    add = type(engine.llm_engine).add_request.__get__(engine.llm_engine)
    engine.llm_engine.add_request = functools.partial(add, kv_hints=KvHintsEnvelope("1", "tests", actions))


def hold(engine: Any, after: str) -> None:
    """Has the engine's step wait once, until a line comes."""
    step, before = engine.llm_engine.step, loaded(engine)

    def held() -> Any:
        outputs = step()
        if engine.llm_engine.has_unfinished_requests() and (after == "step" or loaded(engine) > before):
            engine.llm_engine.step = step
            answer("held")
            sys.stdin.readline()
        return outputs

    engine.llm_engine.step = held


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.config import KVEventsConfig, KVTransferConfig
    from vllm.inputs import TokensPrompt

    told = json.loads(sys.argv[1])
    options: dict[str, Any] = {
        "dtype": "float32",
        "block_size": 32,
        "max_model_len": 4096,
        "seed": 0,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": False,
        **told["options"],
    }
    if told["kv_transfer_config"] is not None:
        options["kv_transfer_config"] = KVTransferConfig(**told["kv_transfer_config"])
    if "kv_events_config" in options:
        options["kv_events_config"] = KVEventsConfig(**options["kv_events_config"])
    engine = LLM(model=told["model"], **options)
    answer("ready")
    for line in sys.stdin:
        todo = json.loads(line)
        if "end" in todo:
            break
        if "reset" in todo:
            answer(engine.reset_prefix_cache())
        elif "figures" in todo:
            answer(figures(engine))
        else:
            sampling = SamplingParams(temperature=0, max_tokens=todo["tokens"], ignore_eos=True, detokenize=False)
            salted = {} if todo["salt"] is None else {"cache_salt": todo["salt"]}
            prompts = [TokensPrompt(prompt_token_ids=prompt, **salted) for prompt in todo["prompts"]]
            hint(engine, todo.get("hints"))
            if todo["hold"] is not None:
                hold(engine, todo["hold"])
            begun = time.monotonic()
            outputs = engine.generate(prompts, sampling, use_tqdm=False)
            took = time.monotonic() - begun
            answer(
                [
                    {
                        "tokens": list(output.outputs[0].token_ids),
                        "cached": output.num_cached_tokens,
                        "finish": output.outputs[0].finish_reason,
                        "ttft": output.metrics.first_token_latency if output.metrics else None,
                        "took": took,
                    }
                    for output in outputs
                ]
            )
    engine.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
