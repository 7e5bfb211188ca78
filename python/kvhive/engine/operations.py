"""Handles on what runs a cache: the workload predictor, the prefetcher, the autoscaler and the load balancer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kvhive._native import Predictor

from .backing import Backing
from .engine import UltraAdaptiveKVCacheEngine

#: How often a new node's or a leaving one's state is looked at, in seconds.
_LOOKS_EVERY = 0.05


class WorkloadPredictor:
    """What load to expect: requests, growth of the working set, and reuse, learnt by the hour of the day and the day of the week.

    The coordinator's own predictor, with a history of its own. It learns in steps of ``step_seconds``.

    >>> predictor = WorkloadPredictor()
    >>> for hour in range(48):
    ...     news = predictor.update_pattern(asked=1000 + 500 * (hour % 24 > 8), covered=600, new_bytes=1 << 20, at=hour * 3600)
    >>> forecast = predictor.predict_next_workload()
    >>> sorted(forecast), forecast["reuse"]["low"] <= forecast["reuse"]["value"] <= forecast["reuse"]["high"]
    (['growth', 'rate', 'reuse'], True)
    """

    def __init__(self) -> None:
        self._predictor = Predictor()
        #: Blocks asked, covered and computed by each engine when it was last observed.
        self._seen: WeakKeyDictionary[UltraAdaptiveKVCacheEngine, tuple[int, int, int]] = WeakKeyDictionary()

    @property
    def step_seconds(self) -> int:
        """Seconds of one step: what is told of the same step twice counts once."""
        return self._predictor.step_seconds

    def update_pattern(self, asked: int, covered: int, new_bytes: int, *, at: float | None = None) -> bool:
        """Learns how one step was, and scores what was said of it before.

        :param asked: blocks that requests asked for.
        :param covered: those of them that were there.
        :param new_bytes: bytes of blocks that were stored and new.
        :param at: a time in the step, in seconds since 1970; now where none is given.
        :return: whether it was news: a step that is not after the last one is not looked at.
        :raises ValueError: when a number is below 0, or more are covered than asked.
        """
        for name, value in (("asked", asked), ("covered", covered), ("new_bytes", new_bytes)):
            if value < 0:
                raise ValueError(f"{name} is {value}: 0 and more is allowed")
        if covered > asked:
            raise ValueError(f"covered is {covered}: at most asked, which is {asked}, is allowed")
        return self._predictor.update_pattern(int(time.time() if at is None else at), asked, covered, new_bytes)

    def observe(self, engine: UltraAdaptiveKVCacheEngine) -> bool:
        """Learns from what an engine has served since it was last observed here."""
        stats = engine.get_stats()
        seen = self._seen.get(engine, (0, 0, 0))
        tokens = engine.config.block_size
        now = (stats["prompt_tokens"] // tokens, stats["cached_tokens"] // tokens, stats["computed_tokens"] // tokens)
        self._seen[engine] = now
        asked, covered, new = (after - before for after, before in zip(now, seen, strict=True))
        return self.update_pattern(asked, min(covered, asked), new * engine.config.block_bytes)

    def predict_next_workload(self, steps: int = 1) -> dict[str, dict[str, float]]:
        """Returns what to expect so many steps ahead.

        ``rate`` (blocks asked a second), ``growth`` (new bytes a second) and ``reuse`` (the share of blocks that is covered), each as
        ``value``, what is most likely, with ``low`` and ``high``, between which it is nine of ten times; ``mase``, the mean error of such
        forecasts by that of a naive one, and ``season_seconds``, after which the figure is taken to come back, 0 if it is not.
        Empty before anything was learnt.

        :raises ValueError: when ``steps`` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}: 1 and more is allowed")
        return self._predictor.forecast(steps)


class CachePrefetcher:
    """Brings blocks up that will be asked for soon: from disk or host memory to where they are fetched from fastest.

    A node does that of itself for what follows a match; this is for what only the caller knows.
    """

    def __init__(self, engine: UltraAdaptiveKVCacheEngine) -> None:
        self._engine = engine

    def prefetch(self, keys: Sequence[str], *, tenant: str | None = None) -> int:
        """Has the prompts' blocks be brought up, ``prefetch_size`` of each segment at most; returns how many blocks of them are there.

        :param keys: prompts, as they will be asked.
        """
        covered = 0
        for text in keys:
            prefix = self._engine.prefix_of(text, tenant)
            if len(prefix):
                covered += self._engine.backing.client.match(prefix).covered
        return covered

    def get_prefetch_stats(self) -> dict[str, int]:
        """Returns what became of blocks that were brought up, the node's own choices included: how many were ``asked`` for, ``useful``,
        ``wasted`` (gone before they were used), ``late`` (used before they had come) and ``cancelled`` (for want of room)."""
        return {name: int(count) for name, count in self._engine.backing.stats()["prefetch"].items()}


class AutoScaler:
    """How many nodes the cache should have, and more or fewer of them.

    The recommendation is the coordinator's. An engine that is alone grows by nodes in its own process, each with as much memory as
    the first; in a cluster, the size asked for is given by whoever follows it there (``kvhive scale``).
    """

    def __init__(self, engine: UltraAdaptiveKVCacheEngine, *, most: int = 8) -> None:
        if not 1 <= most <= 1024:
            raise ValueError(f"most is {most}: 1 to 1024 is allowed")
        self._backing: Backing = engine.backing
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

        :raises ValueError: when ``nodes`` is below 1.
        """
        return self._backing.scale(_checked(nodes))

    def scale_down(self, nodes: int = 1) -> int:
        """Takes nodes away, each after its blocks have gone to the others; the first one stays. Returns as :meth:`scale_up`.

        :raises ValueError: when ``nodes`` is below 1, or so many are not there to take.
        """
        return self._backing.scale(-_checked(nodes))


class MultiGPULoadBalancer:
    """How evenly devices are read, and evening that out: slots that are read much get more replicas, or go elsewhere."""

    def __init__(self, engine: UltraAdaptiveKVCacheEngine) -> None:
        self._backing: Backing = engine.backing

    def balance_load(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Has the coordinator spread load now. Returns ``changes``, each with its reason, ``busiest_to_mean`` before and after, whether they
        are ``applied``, and ``because`` where there is nothing to change."""
        return dict(self._backing.ask("POST", "/v1/balance", {"dry_run": dry_run}))

    def get_gpu_stats(self) -> list[dict[str, Any]]:
        """Returns each device's figures as last reported: ``device``, its ``node``, ``kind`` ("host", until it is a GPU), ``capacity_bytes``,
        ``used_bytes``, ``blocks``, ``slots``, ``hit_rate``, ``read_rate`` (bytes a second), ``wait_us`` (how long requests wait for it),
        ``tiers`` and ``traffic``."""
        return [dict(device) for device in self._backing.ask("GET", "/v1/cluster")["devices"]]


def _checked(nodes: int) -> int:
    if nodes < 1:
        raise ValueError(f"nodes is {nodes}: 1 and more is allowed")
    return nodes
