"""What SGLang lacks to have its HiCache without a GPU: nothing that kvhive touches. SGLang finds it as a plug-in where this folder is in
PYTHONPATH; tests of its pools call `install` themselves."""

from __future__ import annotations

import sys
import types
from typing import Any


def install() -> None:
    # Imported where there is no GPU, and never called there.
    if "vllm" not in sys.modules:
        package, operations = types.ModuleType("vllm"), types.ModuleType("vllm._custom_ops")
        package.__path__ = []
        operations.rotary_embedding = not_here  # type: ignore[attr-defined]
        package._custom_ops = operations  # type: ignore[attr-defined]
        sys.modules |= {"vllm": package, "vllm._custom_ops": operations}
    from sglang.srt.mem_cache.pool_host import common, mha

    # Memory is not pinned, as there is no driver to do it.
    common._cuda_host_register = nothing
    mha._cuda_host_unregister = nothing
    # Copies between the device's pool and the host's, which are kernels otherwise.
    mha.transfer_kv_direct = copy_layers
    mha.transfer_kv_all_layer_direct_lf_pf = layers_to_pages
    mha.transfer_kv_per_layer_direct_pf_lf = pages_to_layer
    of_pool = mha.MHATokenToKVPoolHost.get_dummy_flat_data_page

    def unpinned(self: Any) -> Any:
        self.pin_memory = False
        return of_pool(self)

    mha.MHATokenToKVPoolHost.get_dummy_flat_data_page = unpinned


def nothing(*given: Any, **named: Any) -> None:
    return None


def not_here(*given: Any, **named: Any) -> None:
    raise NotImplementedError("not without a GPU")


# Named as SGLang calls them.


def copy_layers(src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.long()] = source[src_indices.long()]


def layers_to_pages(src_ptrs: Any, dst_ptrs: Any, src_indices: Any, dst_indices: Any, page_size: int) -> None:
    source, target = src_indices.long(), dst_indices.long()
    layers = len(src_ptrs) // len(dst_ptrs)
    for half, pages in enumerate(dst_ptrs):
        for layer in range(layers):
            pages[target // page_size, layer, target % page_size] = src_ptrs[half * layers + layer][source]


def pages_to_layer(
    src_ptrs: Any, dst_ptrs: Any, src_indices: Any, dst_indices: Any, layer_id: int, page_size: int
) -> None:
    source, target = src_indices.long(), dst_indices.long()
    for pages, layer in zip(src_ptrs, dst_ptrs, strict=True):
        layer[target] = pages[source // page_size, layer_id, source % page_size]
