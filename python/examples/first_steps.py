"""The first steps with a cluster: name blocks, see what is covered, fetch it, store the rest.

    scripts/up --detach
    python python/examples/first_steps.py 127.0.0.1:7801 ~/.local/state/kvhive/token
"""

import sys
from pathlib import Path

import kvhive
import numpy as np


def main(coordinators: str, token_file: str) -> None:
    layout = kvhive.Layout(layers=4, kv_heads=2, head_dim=64, tokens=16, dtype="float16")
    with kvhive.Client(coordinators, Path(token_file).read_text()) as client:
        prompt = client.namespace("tiny@1", layout).keys(range(100))
        memory = np.zeros((len(prompt), layout.block_bytes // 2), np.float16)

        covered = client.match(prompt).covered
        loaded = client.fetch_into(prompt, memory[:covered]).delivered
        print(f"{loaded} of {len(prompt)} blocks came from the cluster")

        memory[loaded:] = 7  # What an engine would compute now.
        report = client.store_from(prompt, memory[loaded:], start=loaded)
        print(f"{report.acknowledged} blocks stored; run this again")


if __name__ == "__main__":
    main(*sys.argv[1:])
