"""Memory that cannot be used so is refused, whatever it is; memory that can is let go again."""

import array
import ctypes
import mmap
import sys
from typing import Any

import kvhive
import numpy as np
import pytest
from conftest import LAYOUT

SIZE = LAYOUT.block_bytes


@pytest.fixture
def prefix(client: kvhive.Client, blocks: kvhive.Namespace) -> kvhive.Prefix:
    """Four blocks that are stored."""
    prefix = blocks.keys(range(64))
    client.store_from(prefix, np.arange(4 * SIZE, dtype=np.uint32).astype(np.uint8))
    return prefix


def test_wrong_memory_is_named_and_refused(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    frozen = np.zeros(SIZE, np.uint8)
    frozen.flags.writeable = False
    wrong: list[tuple[Any, str]] = [
        (bytes(SIZE), r"buffer 0 \(bytes\): it is read-only"),
        (frozen, r"buffer 0 \(ndarray\): it is read-only"),
        (bytearray(SIZE - 1), rf"{SIZE - 1} bytes are no whole number of blocks of {SIZE} bytes"),
        ([bytearray(SIZE), bytearray(7)], r"buffer 1 \(bytearray\): 7 bytes"),
        (np.zeros(2 * SIZE, np.uint8)[::2], "it is not contiguous in C order"),
        (np.zeros((64, SIZE // 64), np.uint8).T, "it is not contiguous in C order"),
        (np.full(SIZE // 8, None), "it holds references, not numbers"),
        ((ctypes.POINTER(ctypes.c_int) * (SIZE // 8))(), "it holds references, not numbers"),
        ("text", r"buffer 0 \(str\): it has neither a buffer nor __dlpack__"),
        (None, r"buffer 0 \(NoneType\): it has neither a buffer nor __dlpack__"),
        ([[bytearray(SIZE)]], r"buffer 0 \(list\): it has neither a buffer nor __dlpack__"),
    ]
    for memory, why in wrong:
        with pytest.raises(kvhive.BadBufferError, match=why):
            client.fetch_into(prefix, memory)
    with pytest.raises(BufferError):
        client.fetch_into(prefix, bytes(SIZE))
    assert client.fetch_into(prefix, bytearray(SIZE)).delivered == 1, "nothing of them is left behind"


def test_what_is_only_read_may_be_read_only_and_overlap(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    same = bytes(range(256)) * (SIZE // 256)
    prefix = blocks.keys([1] * 64)
    assert client.store_from(prefix, [same, same, same, memoryview(same)]).acknowledged == 4
    fetched = bytearray(4 * SIZE)
    assert client.fetch_into(prefix, fetched).delivered == 4
    assert fetched == same * 4


def test_memory_of_no_blocks_is_no_trouble(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    empty = np.zeros((0, SIZE), np.uint8)
    nothing: list[Any] = [empty, Tensor(empty), bytearray(), [], [empty, Tensor(empty)]]
    for memory in nothing:
        assert client.fetch_into(prefix, memory, 4).delivered == 0
        assert client.store_from(prefix, memory, 4).acknowledged == 0
    assert client.fetch_into(prefix, [empty, bytearray(SIZE), empty]).delivered == 1
    assert client.match(client.namespace("empty", LAYOUT).keys([1, 2])).covered == 0


def test_one_call_never_writes_memory_twice(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    memory = np.zeros(3 * SIZE, np.uint8)
    for overlapping in ([memory[:SIZE], memory[:SIZE]], [memory[SIZE : 3 * SIZE], memory[: 2 * SIZE]], [memory[:SIZE], memory]):
        with pytest.raises(kvhive.BadBufferError, match="two of the buffers overlap"):
            client.fetch_into(prefix, overlapping)
    assert client.fetch_into(prefix, [memory[2 * SIZE :], memory[:SIZE], memory[SIZE : 2 * SIZE]]).delivered == 3


def test_two_calls_never_use_what_one_writes(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    connection = client._open()  # pyright: ignore[reportPrivateUsage]
    memory = np.zeros(2 * SIZE, np.uint8)
    begun = connection.fetch_into(prefix, memory, 0, None)
    for meanwhile in (memory, memory[SIZE:]):
        with pytest.raises(kvhive.BufferInUseError, match="another call writes this memory"):
            client.fetch_into(prefix, meanwhile)
        with pytest.raises(kvhive.BufferInUseError, match="another call writes this memory"):
            client.store_from(prefix, meanwhile)
    assert begun.wait().delivered == 2
    with pytest.raises(kvhive.MisuseError, match="has begun already"):
        begun.wait()
    assert client.fetch_into(prefix, memory).delivered == 2
    dropped = connection.store_from(prefix, memory, 0, None, None, (0, 0, "none", None), None)
    with pytest.raises(kvhive.BufferInUseError, match="another call reads this memory"):
        client.fetch_into(prefix, memory)
    assert client.store_from(prefix, memory).acknowledged == 2, "who only reads disturbs nobody who reads"
    del dropped
    assert client.fetch_into(prefix, memory).delivered == 2


def test_memory_is_held_during_a_call_and_free_after_it(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    memory = bytearray(SIZE)
    begun = client._open().fetch_into(prefix, memory, 0, None)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(BufferError):
        memory.append(1)
    begun.wait()
    memory.append(1)
    array_memory = np.zeros(SIZE, np.uint8)
    before = sys.getrefcount(array_memory)
    for _ in range(10):
        client.fetch_into(prefix, array_memory)
        client.fetch_into(prefix, Tensor(array_memory))
        with pytest.raises(kvhive.BadBufferError):
            client.fetch_into(prefix, [array_memory, bytes(1)])
    assert sys.getrefcount(array_memory) == before


def test_arrays_of_every_kind_are_memory(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    mapped = mmap.mmap(-1, SIZE)
    kinds: list[Any] = [
        array.array("d", bytes(SIZE)),
        mapped,
        (ctypes.c_ubyte * SIZE)(),
        np.zeros((SIZE // 8, 1), np.complex64),
        np.zeros(SIZE // 8, "datetime64[s]").view(np.int64),
        np.zeros(SIZE, np.bool_),
    ]
    expected = bytearray(SIZE)
    client.fetch_into(prefix, expected)
    for memory in kinds:
        assert client.fetch_into(prefix, memory).delivered == 1
        assert bytes(memoryview(memory).cast("B")) == expected
    mapped.close()


class Tensor:
    """A tensor that speaks DLPack and nothing else, as torch's do."""

    def __init__(self, array: Any, device: int = 1, versions: bool = True) -> None:
        self.array, self.device, self.versions = array, device, versions

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **words: Any) -> Any:
        if words and not self.versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        return self.array.__dlpack__(**words)


@pytest.mark.parametrize("versions", [True, False])
def test_tensors_are_memory(client: kvhive.Client, prefix: kvhive.Prefix, versions: bool) -> None:
    memory = np.zeros((2, 2, SIZE // 4), np.float16)
    assert client.fetch_into(prefix, Tensor(memory, versions=versions)).delivered == 2
    expected = bytearray(2 * SIZE)
    client.fetch_into(prefix, expected)
    assert memory.tobytes() == expected
    # An axis of one element may have any stride; one that begins inside other memory has an offset.
    inner = np.zeros((3, SIZE), np.uint8)[1:2]
    assert client.fetch_into(prefix, [Tensor(inner, versions=versions)]).delivered == 1
    assert inner.tobytes() == expected[:SIZE]


def test_wrong_tensors_are_refused(client: kvhive.Client, prefix: kvhive.Prefix) -> None:
    frozen = np.zeros(SIZE, np.uint8)
    frozen.flags.writeable = False

    class Refuses(Tensor):
        def __dlpack__(self, **words: Any) -> Any:
            raise BufferError("it has a gradient")

    class Lies(Tensor):
        def __dlpack__(self, **words: Any) -> Any:
            return b"no capsule"

    used = np.zeros(SIZE, np.uint8).__dlpack__(max_version=(1, 0))
    np.from_dlpack(Given(used))
    wrong: list[tuple[Any, str]] = [
        (Tensor(np.zeros(SIZE, np.uint8), device=10), "DLPack device type 10"),
        (Tensor(np.zeros((SIZE, 2), np.uint8)[:, 0]), "it is not contiguous in C order"),
        (Tensor(np.zeros(SIZE, np.uint8)[::-1]), "it is not contiguous in C order"),
        (Tensor(np.zeros(SIZE - 1, np.uint8)), "bytes are no whole number of blocks"),
        (Tensor(frozen), "read-only"),
        (Refuses(frozen), r"buffer 0 \(Refuses\): it has a gradient"),
        (Lies(frozen), "PyCapsule"),
        (Given(used), "something else than an unused tensor"),
    ]
    for memory, why in wrong:
        with pytest.raises(kvhive.BadBufferError, match=why):
            client.fetch_into(prefix, memory)


class Given(Tensor):
    """Gives a capsule that was made before."""

    def __init__(self, capsule: Any) -> None:
        super().__init__(None)
        self.capsule = capsule

    def __dlpack__(self, **words: Any) -> Any:
        return self.capsule


def test_torch_gives_and_takes_without_a_copy(client: kvhive.Client, prefix: kvhive.Prefix, blocks: kvhive.Namespace) -> None:
    torch = pytest.importorskip("torch")
    expected = bytearray(2 * SIZE)
    client.fetch_into(prefix, expected)
    memory = torch.zeros((2, SIZE // 2), dtype=torch.bfloat16)
    assert client.fetch_into(prefix, memory).delivered == 2
    assert bytes(memory.view(torch.uint8).numpy().tobytes()) == expected
    again = blocks.keys([5] * 32)
    assert client.store_from(again, memory).acknowledged == 2
    with pytest.raises(kvhive.BadBufferError, match="grad"):
        client.fetch_into(prefix, torch.zeros(SIZE // 4, requires_grad=True))
    with pytest.raises(kvhive.BadBufferError, match="not contiguous"):
        client.fetch_into(prefix, torch.zeros((2, SIZE // 2), dtype=torch.bfloat16).t())
    assert blocks.keys(torch.arange(64)).keys == prefix.keys
