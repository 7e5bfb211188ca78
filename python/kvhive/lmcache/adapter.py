"""An L2 adapter for LMCache: `{"type": "plugin", "module_path": "kvhive.lmcache.adapter", "class_name": "KvHiveAdapter", …}`.

LMCache's keys say nothing of how an object is laid out. Here its shapes and dtypes are part of its name, so that an object that is laid
out otherwise is a miss. LMCache's own adapter for native connectors does the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from lmcache.v1.distributed.l2_adapters.native_connector_l2_adapter import NativeConnectorL2Adapter

from kvhive.lmcache.native import KvHiveL2

__all__ = ["KvHiveAdapter"]


class KvHiveAdapter(NativeConnectorL2Adapter):  # type: ignore[misc]
    """Shares a fleet's objects. Takes what `kvhive.lmcache.settings.Settings` lists."""

    def __init__(self, given: dict[str, Any], l1_memory_desc: Any = None) -> None:
        self._named = Named(**given)
        super().__init__(self._named, type_name="kvhive", extra_status={"model": self._named.model})

    def submit_store_task(self, keys: list[Any], objects: list[Any]) -> int:
        with self._named.laid_out(of_objects(objects)):
            return int(super().submit_store_task(keys, objects))

    def submit_load_task(self, keys: list[Any], objects: list[Any]) -> int:
        with self._named.laid_out(of_objects(objects)):
            return int(super().submit_load_task(keys, objects))

    def submit_lookup_and_lock_task(self, keys: list[Any], group_layout_descs: dict[int, Any]) -> int:
        known = {group: layout(desc.shapes, desc.dtypes) for group, desc in group_layout_descs.items()}
        with self._named.laid_out([known.get(key.object_group_id, "") for key in keys]):
            return int(super().submit_lookup_and_lock_task(keys, group_layout_descs))


class Named(KvHiveL2):
    """A connector that calls each object after how it is laid out, too."""

    names = "LMCache's own, and shapes"
    _layouts: threading.local

    def __new__(cls, **given: Any) -> Self:
        self = super().__new__(cls, **given)
        self._layouts = threading.local()
        return self

    @contextmanager
    def laid_out(self, layouts: list[str]) -> Iterator[None]:
        """Names what this thread submits within it."""
        self._layouts.now = layouts
        try:
            yield
        finally:
            del self._layouts.now

    def submit_batch_set(self, names: Sequence[str], memory: Sequence[object]) -> int:
        return super().submit_batch_set(self._whole(names), memory)

    def submit_batch_get(self, names: Sequence[str], memory: Sequence[object]) -> int:
        return super().submit_batch_get(self._whole(names), memory)

    def submit_batch_exists(self, names: Sequence[str]) -> int:
        return super().submit_batch_exists(self._whole(names))

    def _whole(self, names: Sequence[str]) -> list[str]:
        # No part of LMCache's name has an "@" in it: what follows the last one is ours.
        return [f"{name}@{layout}" for name, layout in zip(names, self._layouts.now, strict=True)]


def of_objects(objects: Iterable[Any]) -> list[str]:
    """Returns how each of these objects is laid out."""
    return [
        layout(meta.shapes or [meta.shape], meta.dtypes or [meta.dtype]) for meta in (one.metadata for one in objects)
    ]


def layout(shapes: Iterable[Any], dtypes: Iterable[Any]) -> str:
    """Returns shapes and dtypes as one text."""
    return ";".join(f"{'x'.join(map(str, shape))}:{dtype}" for shape, dtype in zip(shapes, dtypes, strict=True))
