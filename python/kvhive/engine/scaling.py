"""How many nodes a cache has."""

from __future__ import annotations

from typing import Any

from kvhive import MisuseError

from .backing import Backing
from .engine import UltraAdaptiveKVCacheEngine, backing_of


class AutoScaler:
    """How many nodes the cache should have, and more or fewer of them.

    The recommendation is the coordinator's. An engine that is alone grows by nodes in its own process, each with as much memory as
    the first; in a cluster, the size asked for is given by whoever follows it there (``kvhive scale``), and the policy is the cluster's.

    :param most: nodes that there may be.
    """

    def __init__(self, engine: UltraAdaptiveKVCacheEngine, *, most: int = 8) -> None:
        if not 1 <= most <= 1024:
            raise MisuseError(f"most is {most}: 1 to 1024 is allowed")
        self._backing: Backing = backing_of(engine)
        self._most = most
        # A cluster has a policy of its own, which is its operators'.
        if not engine.config.enable_distributed:
            self._backing.ask("PATCH", "/v1/scaling", {"mode": "advise", "floor": 1, "ceiling": most})

    def get_recommended_scaling(self) -> dict[str, Any]:
        """Returns ``current``, ``recommended`` and ``reason``, ``action`` ("scale_up", "scale_down" or "none"), and all that the coordinator says of
        it under ``details``. Until a stretch of five minutes with load is over, it recommends what there is."""
        details = self._backing.ask("GET", "/v1/scaling")
        recommendation = details["recommendation"]
        current = int(details["members"])
        size = int(recommendation["size"]) if recommendation is not None else current
        reason = str(recommendation["reason"]) if recommendation is not None else "no load has been looked at yet"
        action = "scale_up" if size > current else "scale_down" if size < current else "none"
        return {"current": current, "recommended": size, "action": action, "reason": reason, "details": details}

    def scale_up(self, nodes: int = 1) -> int:
        """Adds nodes; returns how many there are, or in a cluster how many are asked for.

        :raises kvhive.MisuseError: when ``nodes`` is below 1, or there would be more than ``most``.
        """
        return self._backing.scale(_checked(nodes), self._most)

    def scale_down(self, nodes: int = 1) -> int:
        """Takes nodes away, each after its blocks have gone to the others; the first one stays. Returns as :meth:`scale_up`.

        :raises kvhive.MisuseError: when ``nodes`` is below 1, or so many are not there to take.
        """
        return self._backing.scale(-_checked(nodes), self._most)


def _checked(nodes: int) -> int:
    if nodes < 1:
        raise MisuseError(f"nodes is {nodes}: 1 and more is allowed")
    return nodes
