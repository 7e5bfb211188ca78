"""Blocks of an engine's memory as rows of bytes, and the copies between them and memory of the host, or of the device.

One block of a group is the pages of its layers, one after the other. On a device, copies follow what its stream does already: what a
step writes is read after it, and what is loaded is there before the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["Pages", "Placement"]


class Placement(NamedTuple):
    """Where one layer's pages are in its allocation, in bytes."""

    layer: str
    offset: int
    stride: int
    """From one block's page to the next one's."""
    page: int
    parts: int = 1
    """How many such pages a block has, each for all blocks."""


class Pages:
    """The memory of one worker: of each group the pages of its layers."""

    def __init__(
        self,
        caches: Mapping[str, torch.Tensor],
        blocks: int,
        groups: Sequence[Sequence[Placement]],
        *,
        stays: bool = False,
    ) -> None:
        self.device = next(iter(caches.values())).device
        self._stays = stays and self.device.type == "cuda"
        self._rows = [[row for place in group for row in rows(caches[place.layer], blocks, place)] for group in groups]
        self.widths = [[row.shape[1] for row in group] for group in self._rows]
        self.block_bytes = [sum(group) for group in self.widths]
        # Elements as wide as every page is made of: a copy of bytes one by one is slow.
        self._element = [
            torch.int64 if all(is_wide(row) for row in group) else torch.uint8 for group in self._rows
        ]
        self._views = [
            [row.view(element) for row in group] for group, element in zip(self._rows, self._element, strict=True)
        ]

    def memory(self, nbytes: int) -> torch.Tensor:
        """Makes memory that blocks are copied to and from: of the device where they stay there, else of the host, pinned."""
        if self._stays:
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def load(self, group: int, memory: torch.Tensor, row: int, blocks: Sequence[int]) -> None:
        """Copies rows of `memory`, from `row` on, into these blocks of a group."""
        if not blocks:
            return
        element, width = self._element[group], self.block_bytes[group]
        given = memory.view(-1, width)[row : row + len(blocks)].view(element)
        given = given.to(self.device, non_blocking=True)
        at = self._numbers(blocks)
        begin = 0
        for view in self._views[group]:
            view.index_copy_(0, at, given[:, begin : begin + view.shape[1]])
            begin += view.shape[1]

    def save(self, group: int, blocks: Sequence[int]) -> torch.Tensor:
        """Returns memory that these blocks of a group are copied to."""
        at = self._numbers(blocks)
        views = self._views[group]
        width = sum(view.shape[1] for view in views)
        taken = torch.empty((len(blocks), width), dtype=self._element[group], device=self.device)
        begin = 0
        for view in views:
            taken[:, begin : begin + view.shape[1]] = view.index_select(0, at)
            begin += view.shape[1]
        given = taken.view(torch.uint8).flatten()
        if self.device.type != "cuda" or self._stays:
            return given
        return self.memory(given.numel()).copy_(given, non_blocking=True)

    def _numbers(self, blocks: Sequence[int]) -> torch.Tensor:
        # From pinned memory: a copy from any other waits for all that the stream does.
        at = torch.tensor(blocks, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return at.to(self.device, non_blocking=True)

    def begun(self) -> Any:
        """Returns an event that comes when the copies begun so far are over; None where they are over already."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event


def rows(cache: torch.Tensor, blocks: int, place: Placement) -> list[torch.Tensor]:
    """Returns a layer's pages as rows of bytes, one a block."""
    storage = cache.untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(storage)
    ends = [place.offset + part * blocks * place.stride for part in range(place.parts)]
    last = ends[-1] + (blocks - 1) * place.stride + place.page
    if last > storage.nbytes():
        raise ValueError(f"pages of {place.layer} end at byte {last} of {storage.nbytes()}")
    return [torch.as_strided(raw, (blocks, place.page), (place.stride, 1), end) for end in ends]


def is_wide(row: torch.Tensor) -> bool:
    """Says whether a page can be copied in elements of 8 bytes."""
    return not any(size % 8 for size in (row.shape[1], row.stride(0), row.storage_offset(), row.data_ptr()))
