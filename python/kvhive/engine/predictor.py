"""What load to expect."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

from kvhive import MisuseError
from kvhive._native import Predictor

from .engine import UltraAdaptiveKVCacheEngine, backing_of


class WorkloadPredictor:
    """What load to expect: requests, growth of the working set, and reuse, learnt by the hour of the day and the day of the week.

    The coordinator's own predictor, with a history of its own. It learns in steps of ``step_seconds``. Of an ``engine`` it is a handle on
    the forecast of that one's cluster instead, or of its own coordinator where it is alone: that learns by itself, from what all nodes
    report, and is not told anything here.

    >>> predictor = WorkloadPredictor()
    >>> for hour in range(48):
    ...     news = predictor.update_pattern(asked=1000 + 500 * (hour % 24 > 8), covered=600, new_bytes=1 << 20, at=hour * 3600)
    >>> forecast = predictor.predict_next_workload()
    >>> sorted(forecast), forecast["reuse"]["low"] <= forecast["reuse"]["value"] <= forecast["reuse"]["high"]
    (['growth', 'rate', 'reuse'], True)

    :param engine: whose cluster's forecast it is to be.
    """

    def __init__(self, engine: UltraAdaptiveKVCacheEngine | None = None) -> None:
        self._predictor = Predictor()
        self._backing = None if engine is None else backing_of(engine)
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
        :raises ValueError: when a number is below 0, or more are covered than asked; or where the forecast is a cluster's.
        """
        self._check_own()
        for name, value in (("asked", asked), ("covered", covered), ("new_bytes", new_bytes)):
            if value < 0:
                raise MisuseError(f"{name} is {value}: 0 and more is allowed")
        if covered > asked:
            raise MisuseError(f"covered is {covered}: at most asked, which is {asked}, is allowed")
        return self._predictor.update_pattern(int(time.time() if at is None else at), asked, covered, new_bytes)

    def observe(self, engine: UltraAdaptiveKVCacheEngine) -> bool:
        """Learns from what an engine has served since it was last observed here.

        :raises ValueError: where the forecast is a cluster's.
        """
        backing_of(engine)
        self._check_own()
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

        A cluster tells its forecast for the next step, an hour and a day (1, 12 and 288 steps), with ``coverage``, the share of such
        intervals that held. It leaves out what is not known yet: ``low`` and ``high`` before enough has come of what it foresaw, ``mase``
        and ``coverage`` before anything has.

        :raises ValueError: when ``steps`` is below 1, or the cluster tells none so far ahead.
        :raises kvhive.UnreachableError: when the cluster does not answer.
        """
        if steps < 1:
            raise MisuseError(f"steps is {steps}: 1 and more is allowed")
        if self._backing is None:
            return self._predictor.forecast(steps)
        told: list[dict[str, Any]] = self._backing.ask("GET", "/v1/scaling")["forecast"]
        ahead = sorted({int(one["ahead_s"]) // self.step_seconds for one in told})
        if told and steps not in ahead:
            raise MisuseError(f"steps is {steps}: the cluster foresees {', '.join(map(str, ahead))}")
        wanted = [one for one in told if one["ahead_s"] == steps * self.step_seconds]
        return {str(one["figure"]): _figures(one) for one in wanted}

    def _check_own(self) -> None:
        if self._backing is not None:
            raise MisuseError("the forecast is the cluster's, which learns by itself: a WorkloadPredictor without an engine has a history of its own")


def _figures(told: dict[str, Any]) -> dict[str, float]:
    """Returns what a cluster tells of one figure, as far as it is known."""
    named = {"value": "value", "low": "low", "high": "high", "mase": "mase", "coverage": "coverage", "season_s": "season_seconds"}
    return {name: float(told[at]) for at, name in named.items() if told[at] is not None}
