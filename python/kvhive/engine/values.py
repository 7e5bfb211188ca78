"""Tensors of any library as arrays, and back; and how one is stored as bytes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvhive import Layout, WrongTypeError
from kvhive.codec import Codec, decode, encode

from .config import KVCacheConfig

#: What can be compressed as numbers, and rounded to fewer bits. All else is bytes.
_NUMBERS: dict[str, np.dtype[Any]] = {"float16": np.dtype("float16"), "float32": np.dtype("float32"), "bfloat16": np.dtype("uint16")}
#: Elements of one head, as codecs see a value: they share scales.
_HEAD_DIM = 64


@dataclass(frozen=True)
class Value:
    """A tensor: whose it was, its element type by name, and its elements. Those of bfloat16, which numpy has not, are uint16."""

    library: str
    dtype: str
    array: NDArray[Any]

    def copy(self) -> Value:
        """Returns one with memory of its own."""
        return Value(self.library, self.dtype, self.array.copy())


def taken(value: Any) -> Value:
    """Takes a tensor of torch or numpy, or what numpy makes an array of.

    :raises kvhive.WrongTypeError: when it holds no numbers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        name = str(tensor.dtype).removeprefix("torch.")
        if name == "bfloat16":
            return Value("torch", name, tensor.view(torch.int16).numpy().view(np.uint16))
        return Value("torch", name, tensor.numpy())
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.kind not in "biufc":
        raise WrongTypeError(f"a value is a tensor of numbers, not {type(value).__name__} with elements of {array.dtype}")
    # The machine's own order of bytes, which an element type's name does not say.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Value("numpy", array.dtype.name, array)


def given(value: Value, *, pinned: bool) -> Any:
    """Gives a tensor back to its library; to numpy where torch is not there any more.

    :param pinned: whether torch's lies in pinned memory, where there is CUDA to pin it for.
    """
    if value.library != "torch":
        return value.array
    try:
        torch = import_module("torch")
    except ImportError:
        return value.array
    if value.dtype == "bfloat16":
        tensor = torch.from_numpy(value.array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(value.array)
    return tensor.pin_memory() if pinned and torch.cuda.is_available() else tensor


def codec_of(value: Value, config: KVCacheConfig) -> Codec:
    """Returns the name of the codec that a configuration stores a value by."""
    if not value.array.size:
        return "raw"
    if config.codec in ("int8", "int4") and (value.dtype not in _NUMBERS or not _is_finite(value)):
        return "lossless" if config.use_compression else "raw"
    return config.codec


def _is_finite(value: Value) -> bool:
    """Says whether rounding knows what to make of every element: infinities have no scale."""
    if value.dtype == "bfloat16":
        return bool(((value.array & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(value.array).all())


def encoded(value: Value, codec: Codec) -> bytes:
    """Returns a value's bytes as a codec stores them."""
    if codec == "raw":
        return value.array.tobytes()
    layout = _layout(value.array.size, value.dtype, value.array.itemsize)
    padded = np.zeros(layout.block_bytes, np.uint8)
    raw = value.array.reshape(-1).view(np.uint8)
    padded[: raw.size] = raw
    return encode(codec, layout, padded)


def decoded(library: str, dtype: str, shape: tuple[int, ...], codec: Codec, stored: NDArray[np.uint8]) -> Value:
    """Returns the value that :func:`encoded` made bytes of."""
    kind: np.dtype[Any] = _NUMBERS[dtype] if dtype in _NUMBERS else np.dtype(dtype)
    size = math.prod(shape)
    if codec == "raw":
        raw = stored
    else:
        layout = _layout(size, dtype, kind.itemsize)
        raw = np.empty(layout.block_bytes, np.uint8)
        decode(codec, layout, stored.tobytes(), raw)
    array = raw[: size * kind.itemsize].view(kind).reshape(shape)
    return Value(library, dtype, array if array.flags.writeable else array.copy())


def _layout(size: int, dtype: str, item_bytes: int) -> Layout:
    """Returns what a codec takes so many elements for: the smallest layout that holds them."""
    if dtype not in _NUMBERS:
        return Layout.opaque(size * item_bytes, 1)
    tokens = max(1, math.ceil(size / (2 * _HEAD_DIM)))
    return Layout(layers=1, kv_heads=1, head_dim=_HEAD_DIM, tokens=tokens, dtype=dtype)
