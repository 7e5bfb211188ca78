"""Time to first token of vLLM or SGLang with and without what another engine has computed. `scripts/test` runs it; by hand, with KVHIVE_BIN set:

    ENVIRONMENT/bin/python python/tests/measure_engine.py vllm|sglang [--model FOLDER | --wide] [--at-most SHARE]

Three engines after each other: alone without kvhive, cold on an empty cluster, warm on what that one has saved. Each prompt is asked for
alone. Prints one line of JSON, and fails where the warm engine takes more than a share of the time that the one without kvhive takes, or says
something else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import Cluster, prompt, tiny_llama

PROMPTS = 9
PREFIX = 2000
BLOCK = 32
# Of what an engine does once, on its first prompts.
UNMEASURED = 3
WIDE = {"hidden_size": 512, "intermediate_size": 4096}


def of_vllm(model: str, extra: dict[str, Any] | None, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Returns what vLLM answers of the prompts that are measured."""
    from vllm_engine import Engine

    with Engine(model, extra) as engine:
        # vLLM itself says when the first token came.
        return [engine.generate([one], 4)[0] for one in prompts][UNMEASURED:]


def of_sglang(model: str, extra: dict[str, Any] | None, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Returns what SGLang answers of the prompts that are measured."""
    from sglang_engine import Engine

    with Engine(model, extra, max_total_tokens=32768) as engine:
        answers = [engine.generate([one], 1)[0] for one in prompts][UNMEASURED:]
        if extra is not None:
            # It hands over what it has saved, and waits for it.
            assert engine.detach()[0]
        # With one token an answer takes as long as its first token.
        return [{**answer, "ttft": answer["took"]} for answer in answers]


ENGINES = {"vllm": of_vllm, "sglang": of_sglang}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to first token of an engine with and without kvhive")
    parser.add_argument("engine", choices=ENGINES)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER", help="its folder; a Llama of 3.4 million weights without")
    which.add_argument("--wide", action="store_true", help="a Llama that computes more for each byte of its cache, as larger models do")
    parser.add_argument("--at-most", type=float, metavar="SHARE", help="fail where warm / alone is more")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvhive-measure-") as folder:
        model = asked.model or tiny_llama(Path(folder) / "model", **(WIDE if asked.wide else {}))
        prompts = [prompt(f"measured {at}", PREFIX + 40) for at in range(PROMPTS)]
        cluster = Cluster(Path(folder) / "cluster")
        try:
            rows = {}
            for name, extra in (("alone", None), ("cold", cluster.extra), ("warm", cluster.extra)):
                first = [prompt(f"unmeasured {name} {at}", PREFIX + 40) for at in range(UNMEASURED)]
                answers = ENGINES[asked.engine](model, extra, first + prompts)
                rows[name] = {
                    "ttft_ms": round(statistics.median(answer["ttft"] for answer in answers) * 1000, 1),
                    "worst_ms": round(max(answer["ttft"] for answer in answers) * 1000, 1),
                    "cached": statistics.median(answer["cached"] for answer in answers),
                    "tokens": [answer["tokens"] for answer in answers],
                }
            said = [row.pop("tokens") for row in rows.values()]
            is_same = said[0] == said[1] == said[2]
            shares = {f"warm / {name}": round(rows["warm"]["ttft_ms"] / rows[name]["ttft_ms"], 3) for name in ("alone", "cold")}
            print(json.dumps({**rows, "same": is_same, **shares}))
            if rows["warm"]["cached"] < PREFIX // BLOCK * BLOCK:
                sys.exit("the warm engine has not found what the cold one saved")
            if not is_same:
                sys.exit("the engines have not said the same")
            if asked.at_most is not None and shares["warm / alone"] > asked.at_most:
                sys.exit(f"warm / alone is more than {asked.at_most}")
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
