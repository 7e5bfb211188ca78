"""kvhive behind SGLang's HiCache: pages that any engine of a fleet has computed are loaded by the others.

`--hicache-storage-backend dynamic` names `kvhive.sglang` and `KvHiveStorage`. The page `docs/integrate/sglang.md` shows it at work.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvhive.sglang.storage import KvHiveStorage

__all__ = ["KvHiveStorage"]


def __getattr__(name: str) -> Any:
    # Not before somebody asks: it takes SGLang.
    if name == "KvHiveStorage":
        from kvhive.sglang.storage import KvHiveStorage

        return KvHiveStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
