"""Tensors by key."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvhive.engine import AdaptiveKVCache, BaseKVCache, KVCacheConfig


def small(**given: Any) -> KVCacheConfig:
    return KVCacheConfig(max_memory_mb=64, **given)


@pytest.fixture(scope="module")
def cache() -> Iterator[BaseKVCache]:
    with BaseKVCache(small()) as cache:
        yield cache


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.random.default_rng(1).standard_normal((3, 50_000), np.float32),
        np.arange(7, dtype=np.int64),
        np.array(2.5),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.arange(12).reshape(3, 4).T,
        [1.5, 2.5],
    ],
    ids=lambda value: f"{np.asarray(value).dtype}{np.shape(value)}",
)
def test_what_is_stored_comes_back_bit_by_bit(cache: BaseKVCache, value: Any, request: pytest.FixtureRequest) -> None:
    cache.store(request.node.name, value)
    for _ in range(2):
        found = cache.retrieve(request.node.name)
        assert found.dtype == np.asarray(value).dtype and np.array_equal(found, value) and found.shape == np.shape(value)
        # Now from the node.
        cache.flush()


def test_keys_of_all_kinds_are_told_apart(cache: BaseKVCache) -> None:
    keys = ["1", b"1", 1, ("1",), ("1", 1), (("1",), 1), np.array([1]), np.array([1.0]), "", b"", ()]
    for at, key in enumerate(keys):
        cache.store(key, np.full(3, at))
    cache.flush()
    assert [int(cache.retrieve(key)[0]) for key in keys] == list(range(len(keys)))


def test_a_later_value_under_a_key_is_found(cache: BaseKVCache) -> None:
    for at in range(5):
        cache.store("again", np.full(10_000 * (5 - at), at, np.float32))
        assert cache.retrieve("again")[0] == at
    cache.flush()
    found = cache.retrieve("again")
    assert found.shape == (10_000,) and (found == 4).all()


def test_what_is_changed_after_it_was_stored_is_not_changed_in_the_cache(cache: BaseKVCache) -> None:
    value = np.ones(4)
    cache.store("own", value)
    value[:] = 0
    found = cache.retrieve("own")
    found[:] = 7
    assert (cache.retrieve("own") == 1).all()
    cache.flush()
    assert (cache.retrieve("own") == 1).all()


@pytest.mark.parametrize(("key", "value", "named"), [({}, 1.0, "dict"), ("a", "text", "str"), ("a", None, "NoneType"), (1.5, [], "")])
def test_what_is_no_key_or_no_tensor_is_refused_by_name(cache: BaseKVCache, key: Any, value: Any, named: str) -> None:
    if key == 1.5:
        # A number is an array of no axes.
        cache.store(key, np.zeros(1))
        assert cache.retrieve(key) is not None
        return
    with pytest.raises(TypeError, match=named):
        cache.store(key, value)


def test_a_value_is_never_found_in_parts_of_two() -> None:
    with BaseKVCache(KVCacheConfig(max_memory_mb=4, block_size=16, use_compression=False, cache_strategy="lru")) as cache:
        for turn in range(12):
            # Each is half of the memory: the one before has to leave, in part or as a whole.
            for key in ("a", "b", "c"):
                cache.store(key, np.full(180_000, turn, np.float64))
            for key in ("a", "b", "c"):
                cache.flush()
                found = cache.retrieve(key)
                assert found is None or (found == turn).all()


def test_numbers_come_back_whatever_the_order_of_their_bytes(cache: BaseKVCache) -> None:
    cache.store("big end first", np.arange(5, dtype=">i4"))
    cache.flush()
    assert cache.retrieve("big end first").tolist() == [0, 1, 2, 3, 4]
    cache.store(np.array([1], ">i4"), np.zeros(1))
    assert cache.retrieve(np.array([1 << 24], "<i4")) is None


def test_what_has_no_end_is_not_rounded() -> None:
    with BaseKVCache(small(use_quantization=True)) as cache:
        cache.store("inf", np.array([np.inf, 1.5, np.nan], np.float16))
        cache.flush()
        assert np.array_equal(cache.retrieve("inf"), np.array([np.inf, 1.5, np.nan], np.float16), equal_nan=True)


def test_what_was_never_stored_is_none_and_counted() -> None:
    with BaseKVCache(small()) as cache:
        assert cache.retrieve("nothing") is None
        cache.store("something", np.zeros(10))
        assert cache.retrieve("something") is not None
        stats = cache.get_stats()
        assert (stats["hits"], stats["misses"], stats["hit_rate"], stats["stores"]) == (1, 1, 0.5, 1)
        cache.clear()
        assert cache.retrieve("something") is None


def test_the_oldest_leave_a_full_cache() -> None:
    with BaseKVCache(KVCacheConfig(max_memory_mb=8, cache_strategy="lru", use_compression=False, block_size=16)) as cache:
        for at in range(20):
            cache.store(at, np.full(1 << 17, at))
        cache.flush()
        found = [at for at in range(20) if cache.retrieve(at) is not None]
        assert 19 in found and 0 not in found and len(found) < 10
        assert cache.get_stats()["evictions"]["for_room"] > 0
        assert cache.get_stats()["memory_usage"] <= 8 << 20


def test_compression_takes_less_and_quantization_less_still() -> None:
    walk = np.cumsum(np.random.default_rng(2).standard_normal((256, 64)) / 16, axis=0).astype(np.float16)
    ratio: dict[str, float] = {}
    error: dict[str, float] = {}
    for name, given in (
        ("raw", {"use_compression": False}),
        ("lossless", {}),
        ("int8", {"use_quantization": True}),
        ("int4", {"use_quantization": True, "quantization_bits": 4}),
    ):
        with BaseKVCache(small(**given)) as cache:
            cache.store("walk", walk)
            cache.flush()
            found = cache.retrieve("walk")
            ratio[name] = cache.get_stats()["compression_ratio"]
            error[name] = float(np.abs(found.astype(np.float32) - walk).max() / np.abs(walk).max())
    assert ratio["int4"] < 0.3 < ratio["int8"] < 0.6 < ratio["lossless"] < ratio["raw"] == 1
    assert error["raw"] == error["lossless"] == 0 < error["int8"] < 0.01 < error["int4"] < 0.1


def test_what_is_persisted_is_found_by_the_next_one(tmp_path: Path) -> None:
    config = small(enable_persistence=True, persistence_path=tmp_path / "kept")
    with BaseKVCache(config) as cache:
        cache.store("a", np.arange(5))
        cache.store("b", np.zeros(3))
        cache.store("b", np.ones(3))
    with BaseKVCache(config) as cache:
        assert cache.retrieve("a").tolist() == [0, 1, 2, 3, 4] and cache.retrieve("b").tolist() == [1, 1, 1]
    with BaseKVCache(small()) as cache:
        with pytest.raises(FileNotFoundError, match="nothing was persisted"):
            cache.load(tmp_path / "elsewhere")
        assert cache.load(tmp_path / "kept") and cache.retrieve("b").tolist() == [1, 1, 1]


def test_blocking_stores_are_in_the_node_when_they_return() -> None:
    with BaseKVCache(small(non_blocking=False)) as cache:
        cache.store("a", np.zeros(10))
        assert cache.get_stats()["node"]["device"]["blocks"] == 1


def test_other_stores_return_before_the_node_has_anything_and_are_found() -> None:
    with BaseKVCache(small()) as cache:
        # Who stores behind has to have this, and so has who stores at once: that is this thread, which has it.
        with cache._backing.lock:
            cache.store("a", np.arange(10))
            assert cache.get_stats()["node"]["device"]["blocks"] == 0 and cache.retrieve("a").tolist() == list(range(10))
        cache.flush()
        assert cache.get_stats()["node"]["device"]["blocks"] == 1 and cache.retrieve("a").tolist() == list(range(10))


def of_itself(name: str) -> int:
    """What the system says of this process, under a name of one number."""
    lines = Path("/proc/self/status").read_text().splitlines()
    said = next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))
    return int(said[0]) << 10 if said[1:] == ["kB"] else int(said[0], 16)


#: What may lock as much as there is.
IPC_LOCK = 1 << 14


def test_memory_is_pinned_where_that_is_wanted() -> None:
    before, (limit, most) = of_itself("VmLck"), resource.getrlimit(resource.RLIMIT_MEMLOCK)
    may_lock_all = limit == resource.RLIM_INFINITY or bool(of_itself("CapEff") & IPC_LOCK)
    config = KVCacheConfig(max_memory_mb=4, block_size=16)
    if not may_lock_all and limit - before < config.memory_bytes + (64 << 10):
        pytest.skip(f"this process may lock {limit} bytes and has locked {before}")
    with BaseKVCache(config) as cache:
        pinned = cache.get_stats()["pinned_bytes"]
        assert pinned == cache.get_stats()["memory_capacity"] > 3 << 20 and of_itself("VmLck") - before >= pinned
    with BaseKVCache(KVCacheConfig(max_memory_mb=4, block_size=16, pin_memory=False)) as cache:
        assert cache.get_stats()["pinned_bytes"] == 0 and of_itself("VmLck") == before
    if not may_lock_all:
        # It says so in the log, and goes on.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (before, most))
        try:
            with BaseKVCache(config) as cache:
                cache.store("a", np.arange(3))
                assert cache.get_stats()["pinned_bytes"] == 0 and cache.retrieve("a").tolist() == [0, 1, 2]
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, most))


def test_tensors_come_back_in_pinned_memory_where_there_is_cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA: there is nothing to pin for")
    stored = torch.arange(1000, dtype=torch.bfloat16)
    for pinned in (True, False):
        with BaseKVCache(small(pin_memory=pinned)) as cache:
            cache.store("a", stored)
            cache.flush()
            found = cache.retrieve("a")
            assert found.is_pinned() is pinned and torch.equal(found, stored)


def test_a_cache_is_a_module_of_torchs_where_there_is_torch_and_a_plain_object_elsewhere(tmp_path: Path) -> None:
    def bases(before: str = "", **environment: str) -> list[str]:
        asks = "from kvhive.engine import BaseKVCache; print(*(f'{one.__module__}.{one.__name__}' for one in BaseKVCache.__mro__[1:]))"
        said = subprocess.run(
            [sys.executable, "-c", before + asks], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
        )
        return said.stdout.split()

    assert bases("import sys; sys.modules['torch'] = None; ") == ["kvhive.engine.cache._Module", "builtins.object"]
    # As much of torch as is asked for, before any that is installed.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "nn.py").write_text("class Module: pass\nModule.__module__ = 'torch.nn.modules.module'\n")
    assert bases(PYTHONPATH=str(tmp_path)) == ["torch.nn.modules.module.Module", "builtins.object"]


def test_a_model_of_torchs_holds_a_cache() -> None:
    torch = pytest.importorskip("torch")
    with BaseKVCache(small()) as cache:
        model = torch.nn.Module()
        model.cache = cache
        assert dict(model.named_children()) == {"cache": cache} and list(model.parameters()) == []


def test_an_adaptive_cache_says_what_ranks_and_why() -> None:
    with AdaptiveKVCache(small()) as cache:
        for at in range(50):
            cache.store(at % 10, np.full(4, at))
        report = cache.adjust_strategy()
        assert report[0]["strategy"] == "adaptive" and report[0]["choice"]["reason"] == "too_little_evidence"
        assert cache.get_current_strategy() in {"adaptive", "lru", "lfu", "lirs"}
    with pytest.raises(ValueError, match="'adaptive' is what adapts"):
        AdaptiveKVCache(small(cache_strategy="lru"))
