"""Time to first token of vLLM with and without what another engine has computed. Run by hand, with KVHIVE_BIN set:

    ENVIRONMENT/bin/python python/tests/measure_vllm.py [MODEL-FOLDER]

Three engines after each other: alone without kvhive, cold on an empty cluster, warm on what that one has saved. Each prompt is asked for
alone. Prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from fleet import Cluster, prompt, tiny_llama
from vllm_engine import Engine

PROMPTS = 9
PREFIX = 2000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kvhive-measure-") as folder:
        model = sys.argv[1] if len(sys.argv) > 1 else tiny_llama(Path(folder) / "model")
        prompts = [prompt(f"measured {at}", PREFIX + 40) for at in range(PROMPTS)]
        cluster = Cluster(Path(folder) / "cluster")
        try:
            rows = {}
            for name, extra in (("alone", None), ("cold", cluster.extra), ("warm", cluster.extra)):
                with Engine(model, extra) as engine:
                    # What an engine does once, it does now.
                    engine.generate([prompt(f"unmeasured {name}", PREFIX + 40)], 4)
                    answers = [engine.generate([one], 4)[0] for one in prompts]
                rows[name] = {
                    "ttft_ms": round(statistics.median(answer["ttft"] for answer in answers) * 1000, 1),
                    "worst_ms": round(max(answer["ttft"] for answer in answers) * 1000, 1),
                    "cached": statistics.median(answer["cached"] for answer in answers),
                    "tokens": [answer["tokens"] for answer in answers],
                }
            said = [row.pop("tokens") for row in rows.values()]
            shares = {f"warm / {name}": round(rows["warm"]["ttft_ms"] / rows[name]["ttft_ms"], 3) for name in ("alone", "cold")}
            print(json.dumps({**rows, "same": said[0] == said[1] == said[2], **shares}))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
