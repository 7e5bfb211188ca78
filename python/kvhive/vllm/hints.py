"""What an orchestrator wishes for a request's blocks: `kv_hints`, as vLLM carries them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["pass_on"]

# Of one request.
MOST_ACTIONS = 16


def pass_on(hints: Any, logger: Any, wish: Callable[[str, str, str], object]) -> None:
    """Has `wish` do each action: by its type, its version, its payload in JSON. What cannot be read is told and harms nothing."""
    for action in hints.actions[:MOST_ACTIONS] if hints is not None else ():
        try:
            wish(action.action_type, action.action_version, json.dumps(action.payload))
        except Exception as why:
            logger.warning("kvhive: the action %s of kv_hints is not done: %s", action.action_id, why)
