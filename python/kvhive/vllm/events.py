"""How an engine's block events and kvhive's own speak of the same blocks: by vLLM's whole hashes, which are what the connector names blocks by."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

__all__ = ["CUT", "follow"]

CUT = (
    "kvhive: the block events of this engine cut its hashes to 64 bits, by which its blocks in kvhive are not found: "
    "routers and kvhive's own events need VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0 in its environment"
)


def follow(
    model: str,
    groups: Sequence[tuple[int, int | None]],
    block_bytes: Sequence[int],
    *,
    rank: int,
    tenant: str,
    events: str,
    replay: str | None,
) -> str | None:
    """Returns the command, for bash, that has coordinators follow an engine; what it does not know stands in it as NAME and HOST. None where the
    engine's first group of layers keeps only a part of a prompt: its events name no whole prompts then."""
    tokens, window = groups[0]
    if window is not None:
        return None
    layout = {"layers": 1, "kv_heads": 1, "head_dim": block_bytes[0], "tokens": tokens, "dtype": "u8", "order": "packed"}
    blocks = json.dumps({"layout": layout, "rank": rank, "named_by": "hashes"})
    words = ["kvhive", "engines", "follow", "NAME", "--model", f"{model}/0", "--block-tokens", str(tokens)]
    for flag, address in (("--events", events), ("--replay", replay)):
        if address is not None:
            words += [flag, address.replace("*", "HOST")]
    if tenant != "default":
        words += ["--tenant", tenant]
    return f"{shlex.join(words)} --blocks-file <(echo {shlex.quote(blocks)})"
