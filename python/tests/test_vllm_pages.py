"""Copies between an engine's blocks and rows of memory, in every arrangement that vLLM has. On a GPU too, where there is one."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kvhive.vllm.pages import Pages, Placement  # noqa: E402

BLOCKS = 10
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def numbered(size: int, device: str) -> Any:
    """An allocation of which every byte tells where it is, more or less."""
    at = torch.arange(size, dtype=torch.int64)
    return (at * 31 + at // 251).to(torch.uint8).to(device)


def page(raw: Any, place: Placement, block: int) -> Any:
    """What one block's pages of a layer hold, by the definition."""
    begins = [place.offset + part * BLOCKS * place.stride + block * place.stride for part in range(place.parts)]
    return torch.cat([raw[begin : begin + place.page] for begin in begins])


LAYERS_FIRST = [Placement("a", 0, 64, 64), Placement("b", 640, 64, 64)]
HEADS_APART = [Placement("a", 0, 32, 32, 2), Placement("b", 640, 32, 32, 2)]
BLOCKS_FIRST = [Placement("a", 0, 128, 64), Placement("b", 64, 128, 64)]
ODD = [Placement("a", 0, 63, 63), Placement("b", 633, 63, 63)]


def test_what_stays_on_the_device_is_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    raw, other = numbered(1280, "cuda"), numbered(1280, "cuda").flip(0)
    pages = Pages({"a": raw, "b": raw}, BLOCKS, [LAYERS_FIRST], stays=True)
    saved = pages.save(0, [7, 2])
    assert saved.device.type == "cuda" and pages.memory(10).device.type == "cuda"
    into = Pages({"a": other, "b": other}, BLOCKS, [LAYERS_FIRST], stays=True)
    into.load(0, into.memory(saved.numel()).copy_(saved), 1, [4])
    for place in LAYERS_FIRST:
        assert torch.equal(page(other, place, 4), page(raw, place, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("places", [LAYERS_FIRST, HEADS_APART, BLOCKS_FIRST, ODD], ids=["layers", "heads", "blocks", "odd"])
def test_what_is_saved_is_what_is_loaded(places: list[Placement], device: str) -> None:
    raw = numbered(1280, device)
    pages = Pages({"a": raw, "b": raw}, BLOCKS, [places])
    saved = pages.save(0, [7, 2, 9])
    if event := pages.begun():
        event.synchronize()
    expected = torch.cat([torch.cat([page(raw, place, block) for place in places]) for block in (7, 2, 9)])
    assert torch.equal(saved, expected.cpu())
    assert saved.numel() == 3 * pages.block_bytes[0] and saved.device.type == "cpu"
    # Elsewhere, from the second row on; and nothing else is touched.
    other = numbered(1280, device).flip(0)
    kept = other.clone()
    into = Pages({"a": other, "b": other}, BLOCKS, [places])
    memory = into.memory(saved.numel()).copy_(saved)
    into.load(0, memory, 1, [4, 0])
    if event := into.begun():
        event.synchronize()
    for place in places:
        assert torch.equal(page(other, place, 4), page(raw, place, 2))
        assert torch.equal(page(other, place, 0), page(raw, place, 9))
        for block in (1, 2, 3, 5, 6, 7, 8, 9):
            assert torch.equal(page(other, place, block), page(kept, place, block))
    into.load(0, memory, 0, [])


@pytest.mark.parametrize("device", DEVICES)
def test_groups_that_share_an_allocation_have_their_own_pages(device: str) -> None:
    raw = numbered(1280, device)
    pages = Pages({"a": raw, "b": raw}, BLOCKS, [[Placement("a", 0, 64, 64)], [Placement("b", 640, 64, 64)]])
    assert pages.block_bytes == [64, 64]
    saved = pages.save(1, [3])
    if event := pages.begun():
        event.synchronize()
    assert torch.equal(saved, raw[640 + 192 : 640 + 256].cpu())


def test_the_widest_elements_are_used_that_fit() -> None:
    raw = numbered(1280, "cpu")
    assert Pages({"a": raw, "b": raw}, BLOCKS, [LAYERS_FIRST])._element == [torch.int64]
    assert Pages({"a": raw, "b": raw}, BLOCKS, [ODD])._element == [torch.uint8]


def test_pages_beyond_their_allocation_are_refused() -> None:
    raw = numbered(1279, "cpu")
    with pytest.raises(ValueError, match="pages of b end at byte 1280 of 1279"):
        Pages({"a": raw, "b": raw}, BLOCKS, [LAYERS_FIRST])
