"""SGLang's pools in the host's memory, as pages of bytes: read and written where they are, where a page is in few pieces, and copied
where it is in many."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["Pool"]

# A page in more pieces than this is copied into one: so small ones would travel badly.
MOST_PIECES = 4

# What a pool may say of its pages.
SHAPE = (
    *("layout", "dtype", "page_size", "layer_num", "start_layer", "end_layer", "head_num", "head_dim", "v_head_dim"),
    *("kv_cache_dim", "kv_lora_rank", "qk_rope_head_dim", "storage_format_tag"),
    *("num_mamba_layers", "temporal_state_shape", "temporal_dtype", "conv_state_shapes", "conv_dtype"),
)


class Pool:
    """One pool. Every page of it is in pieces of the same sizes: `pieces` says their bytes."""

    def __init__(self, pool: Any, is_direct: bool) -> None:
        self.page_tokens = int(getattr(pool, "page_size", 1) or 1)
        self._pool = pool
        self._memory = Memory(pool)
        first = torch.arange(self.page_tokens, dtype=torch.int64)
        self.is_direct = is_direct and self._are_few(first)
        if self.is_direct:
            self.pieces = [int(size) for size in pool.get_page_buffer_meta(first)[1]]
        else:
            page = pool.get_data_page(0, flat=True)
            self._dtype = page.dtype
            self.pieces = [page.numel() * page.element_size()]

    def fits(self, keys: list[str], indices: Any) -> bool:
        """Says whether these are the indices of as many pages."""
        return indices is not None and len(indices) == len(keys) * self.page_tokens

    def rows(self, indices: torch.Tensor) -> list[list[memoryview]]:
        """Returns the memory of each page, piece by piece."""
        starts, sizes = self._pool.get_page_buffer_meta(indices)
        each, pages = len(self.pieces), len(indices) // self.page_tokens
        if list(sizes) != self.pieces * pages:
            raise ValueError(f"pieces of {sizes[:each]} bytes, not {self.pieces}")
        views = [self._memory.view(start, size) for start, size in zip(starts, sizes, strict=True)]
        return [views[at : at + each] for at in range(0, len(views), each)]

    def pages(self, indices: torch.Tensor) -> Iterator[int]:
        """Returns where each page begins."""
        return (int(index) for index in indices[:: self.page_tokens])

    def copied(self, index: int) -> memoryview:
        """Returns a page's bytes, which may be a copy."""
        return memory_of(self._pool.get_data_page(index, flat=True))

    def put(self, index: int, page: torch.Tensor) -> None:
        """Copies bytes into a page."""
        self._pool.set_from_flat_data_page(index, page.view(self._dtype))

    def facts(self) -> dict[str, Any]:
        """Says what changes the bytes of its pages."""
        shape = {name: str(getattr(self._pool, name, None)) for name in SHAPE}
        return {**shape, "kind": type(self._pool).__name__, "pieces": self.pieces, "direct": self.is_direct}

    def _are_few(self, first: torch.Tensor) -> bool:
        try:
            starts, sizes = self._pool.get_page_buffer_meta(first)
            pieces = list(zip(starts, sizes, strict=True))
            if not 0 < len(pieces) <= MOST_PIECES or not all(sizes):
                return False
            for start, size in pieces:
                self._memory.view(start, size)
        except (AttributeError, LookupError, NotImplementedError, ValueError):
            return False
        return True


class Memory:
    """The memory that a pool's tensors are in."""

    def __init__(self, pool: Any) -> None:
        found: dict[int, memoryview] = {}
        for value in vars(pool).values():
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    if storage.nbytes() and storage.data_ptr() not in found:
                        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                        found[storage.data_ptr()] = memory_of(whole)
        self._starts = sorted(found)
        self._views = [found[start] for start in self._starts]

    def view(self, start: int, size: int) -> memoryview:
        """Returns so many bytes from an address on; it must be in the pool's memory."""
        at = bisect_right(self._starts, start) - 1
        begin = start - self._starts[at] if at >= 0 else -1
        if begin < 0 or begin + size > len(self._views[at]):
            raise LookupError(f"{size} bytes at {start:#x} are not in the pool's memory")
        return self._views[at][begin : begin + size]


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns a tensor's bytes."""
    return memoryview(tensor.contiguous().view(torch.uint8).flatten().numpy())
