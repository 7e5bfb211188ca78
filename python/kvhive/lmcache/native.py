"""A native connector for LMCache: `{"type": "native_plugin", "module_path": "kvhive.lmcache", "class_name": "KvHiveL2", …}`.

For the versions of LMCache in `kvhive.lmcache.versions`. Everything but the log is done by the package's native half.
"""

from __future__ import annotations

import json
import time
from typing import Any, Self

import lmcache
from lmcache.logging import init_logger

from kvhive._native import EngineObjects, engine_fingerprint
from kvhive.errors import MisuseError
from kvhive.lmcache.settings import Settings
from kvhive.lmcache.versions import line, refusal

__all__ = ["KvHiveL2"]

logger = init_logger("kvhive.lmcache")

AGAIN_SECONDS = 60.0
PATIENCE_SECONDS = 2.0


class KvHiveL2(EngineObjects):
    """Stores and loads LMCache's objects under its own names, straight from and into its memory; nothing waits for the cluster."""

    names = "LMCache's own"
    """What objects are called: connectors that call them otherwise share nothing."""
    _said: dict[str, float]

    def __new__(cls, **given: Any) -> Self:
        if refused := refusal(lmcache.__version__):
            raise MisuseError(refused)
        settings = Settings.of(given)
        self = super().__new__(
            cls,
            **settings.cluster,
            model=engine_fingerprint("lmcache", facts(settings, cls.names)),
            wait=settings.wait_ms / 1000,
            load=settings.load_ms / 1000,
        )
        self._said = {}
        logger.info("kvhive: objects of this server are %s", self.model)
        return self

    def drain_completions(self) -> list[tuple[int, bool, str, list[bool]]]:
        # LMCache reads no reasons: whoever wonders about misses finds them here.
        if troubles := self.troubles():
            now = time.monotonic()
            self._said = {what: at for what, at in self._said.items() if now - at < AGAIN_SECONDS}
            for trouble in troubles:
                if trouble not in self._said:
                    logger.warning("kvhive: %s", trouble)
                    self._said[trouble] = now
        return super().drain_completions()

    def close(self, patience: float = PATIENCE_SECONDS) -> None:
        """Gives what is under way so many seconds; LMCache's memory is not used after it."""
        super().close(patience)


def facts(settings: Settings, names: str) -> list[tuple[str, str]]:
    """Lists what changes an object's bytes and is not in its name. Its model, ranks, object group, salt and tokens are."""
    said = [(f"said {name}", json.dumps(value, sort_keys=True)) for name, value in settings.facts.items()]
    return [("line", line(lmcache.__version__)), ("names", names), *said]
