"""How a block is stored: codecs by themselves, for one block at a time (docs/codecs.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvhive import _native
from kvhive._native import Layout
from kvhive.client import Codec

if TYPE_CHECKING:
    from kvhive.access import Memory

__all__ = ["Codec", "decode", "encode", "stored_bytes"]


def encode(codec: Codec, layout: Layout, raw: Memory) -> bytes:
    """Returns the bytes that `codec` makes of one block of `layout`."""
    return _native.encode(codec, layout, raw)


def decode(codec: Codec, layout: Layout, stored: bytes, raw: Memory) -> None:
    """Writes the block that `codec` made `stored` of into the memory `raw`."""
    _native.decode(codec, layout, stored, raw)


def stored_bytes(codec: Codec, layout: Layout) -> int | None:
    """Returns how many bytes `codec` makes of any block of `layout`; None where that depends on the block."""
    return _native.stored_bytes(codec, layout)
