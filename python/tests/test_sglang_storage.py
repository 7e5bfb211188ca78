"""SGLang's own storage factory and pools in the host's memory, with kvhive behind them.

`scripts/test sglang` runs this; it takes gigabytes of packages.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import kvhive
import pytest

pytest.importorskip("sglang")
sys.path.append(str(Path(__file__).parent / "sglang_cpu"))
import sglang_cpu  # noqa: E402

sglang_cpu.install()

import sglang  # noqa: E402
import torch  # noqa: E402
from sglang.srt.environ import envs  # noqa: E402
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import (  # noqa: E402
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import _mha_host_inputs  # noqa: E402
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool  # noqa: E402
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.storage import StorageBackendFactory  # noqa: E402

PAGE = 32
CONFIG: dict[str, Any] = {
    "tp_rank": 0,
    "tp_size": 2,
    "pp_rank": 0,
    "pp_size": 1,
    "attn_cp_rank": 0,
    "attn_cp_size": 1,
    "is_mla_model": False,
    "enable_storage_metrics": False,
    "is_page_first_layout": True,
}


def mha(layout: str = "page_first", dtype: torch.dtype = torch.float16, layers: int = 4, page: int = PAGE) -> Any:
    device = MHATokenToKVPool(256, page, dtype, 2, 16, layers, "cpu", False)
    make, info, named = _mha_host_inputs(device)
    return drawn(make(info, 2.0, 0, page, layout, pin_memory=False, **named))


def mla(layout: str = "page_first") -> Any:
    device = MLATokenToKVPool(256, PAGE, torch.float16, 48, 16, 4, "cpu", False)
    info = device.get_device_pool_infos()[0].buffer_info
    named: dict[str, Any] = {"device_capacity_tokens": device.size, "target_layer_num": 4}
    named |= {"start_layer": device.start_layer, "end_layer": device.end_layer, "override_kv_cache_dim": device.kv_cache_dim}
    return drawn(MLATokenToKVPoolHost(info, 2.0, 0, PAGE, layout, pin_memory=False, **named))


def mamba() -> Any:
    info = MambaStateBufferInfo(temporal=torch.zeros(3, 9, 2, 8, 8), conv=(torch.zeros(3, 9, 16, 3, dtype=torch.float16),))
    return drawn(MambaPoolHost(info, 2.0, 0, device_capacity=8, pin_memory=False, layout="page_first"))


def drawn(pool: Any) -> Any:
    """Fills a pool with numbers, other ones each time."""
    for buffer in pool.kv_buffer if isinstance(pool.kv_buffer, list) else [pool.kv_buffer]:
        buffer.copy_(torch.randn(buffer.shape))
    return pool


class Backend:
    """A backend as SGLang makes it, for one pool."""

    def __init__(self, node: kvhive.EmbeddedNode, model: str, pool: Any, extra: dict[str, Any] | None = None, **config: Any):
        told = {"backend_name": "kvhive", "module_path": "kvhive.sglang", "class_name": "KvHiveStorage", "interface_v1": 1}
        told |= {"coordinators": ",".join(node.coordinators), "token": node.token.decode(), "wait_ms": 5000, "fetch_ms": 5000}
        settings = {**CONFIG, "model_name": model, **config, "extra_config": {**told, **(extra or {})}}
        self.pool = pool
        self.storage: Any = StorageBackendFactory.create_backend("dynamic", HiCacheStorageConfig(**settings), pool)
        self.storage.register_mem_pool_host(pool)
        self.storage.on_host_pools_registered()

    def page(self, at: int) -> torch.Tensor:
        """Returns what the pool has in a page."""
        return self.pool.get_data_page(at * PAGE, flat=True).clone()

    def set(self, keys: list[str], pages: list[int]) -> list[bool]:
        answer: list[bool] = self.storage.batch_set_v1(keys, indices(pages))
        return answer

    def get(self, keys: list[str], pages: list[int]) -> list[bool]:
        answer: list[bool] = self.storage.batch_get_v1(keys, indices(pages))
        return answer


def indices(pages: list[int], page: int = PAGE) -> torch.Tensor:
    return torch.cat([torch.arange(at * page, (at + 1) * page) for at in pages])


def keys_of(name: str, count: int) -> list[str]:
    return [f"{name.encode().hex()}{at:032x}" for at in range(count)]


POOLS = {
    "page_first": (lambda: mha("page_first"), True),
    "page_first_direct": (lambda: mha("page_first_direct"), True),
    "page_head": (lambda: mha("page_head"), True),
    "layer_first": (lambda: mha("layer_first"), False),
    "mla page_first": (mla, True),
    "mla layer_first": (lambda: mla("layer_first"), True),
    "bfloat16": (lambda: mha("page_first", torch.bfloat16), True),
}


@pytest.mark.parametrize(("make", "is_in_place"), POOLS.values(), ids=POOLS)
def test_pages_go_from_one_engines_pool_to_anothers(
    node: kvhive.EmbeddedNode, request: pytest.FixtureRequest, make: Any, is_in_place: bool
) -> None:
    model = request.node.nodeid
    one, other = Backend(node, model, make()), Backend(node, model, make())
    assert one.storage._pools["kv"].pool.is_direct == is_in_place
    keys = keys_of("p", 5)
    assert one.set(keys[:4], [1, 2, 3, 5]) == [True] * 4
    assert other.storage.batch_exists(keys) == 4
    assert other.storage.batch_exists(keys[4:]) == 0
    assert other.storage.exists(keys[0]) and not other.storage.exists(keys[4])
    untouched = other.page(7)
    assert other.get([keys[3], keys[4], keys[0]], [6, 7, 8]) == [True, False, True]
    assert torch.equal(other.page(6), one.page(5)) and torch.equal(other.page(8), one.page(1))
    if is_in_place:
        assert torch.equal(other.page(7), untouched)
    one.storage.close()
    other.storage.close()


def test_pages_that_are_not_the_same_are_misses(node: kvhive.EmbeddedNode) -> None:
    keys = keys_of("m", 3)
    one = Backend(node, "model", mha())
    assert one.set(keys, [1, 2, 3]) == [True] * 3
    others: list[tuple[Any, dict[str, Any]]] = [
        (mha("page_first_direct"), {}),
        (mha("layer_first"), {}),
        (mha(dtype=torch.bfloat16), {}),
        (mha(layers=2), {}),
        (mla(), {}),
        (mha(), {"tp_rank": 1}),
        (mha(), {"tp_size": 4}),
        (mha(), {"pp_size": 2}),
        (mha(), {"attn_cp_size": 2}),
        (mha(), {"extra": {"weights": "other"}}),
        (mha(), {"extra": {"interface_v1": 0}}),
    ]
    for pool, config in others:
        other = Backend(node, "model", pool, **config)
        before = pool.kv_buffer.clone()
        assert other.storage.batch_exists(keys) == 0, config
        assert other.get(keys[:1], [4]) == [False] and torch.equal(pool.kv_buffer, before), config
    assert Backend(node, "other model", mha()).storage.batch_exists(keys) == 0
    assert Backend(node, "model", mha()).storage.batch_exists(keys) == 3
    # The same tokens in pages of another size have other hashes; a hash that is the same all the same is of another page.
    assert Backend(node, "model", mha(page=16)).storage.batch_exists(keys) == 0


def test_ranks_that_have_the_same_share_it(node: kvhive.EmbeddedNode) -> None:
    keys = keys_of("r", 2)
    writer = Backend(node, "latent", mla(), is_mla_model=True)
    assert writer.set(keys, [1, 2]) == [True, True]
    for rank, size in ((1, 2), (3, 4)):
        reader = Backend(node, "latent", mla(), is_mla_model=True, tp_rank=rank, tp_size=size)
        assert reader.get(keys, [3, 4]) == [True, True] and torch.equal(reader.page(3), writer.page(1))
        # But what each of them has for itself is not.
        for backend in (writer, reader):
            backend.storage.register_mem_host_pool_v2(mamba(), PoolName.MAMBA)
        state = [PoolTransfer(PoolName.MAMBA, host_indices=torch.tensor([2]), keys=keys[1:])]
        assert writer.storage.batch_set_v2(state) == {PoolName.MAMBA: [True]}
        assert reader.storage.batch_get_v2(state) == {PoolName.MAMBA: [False]}


def test_without_the_first_interface_whole_pages_go_through_tensors(node: kvhive.EmbeddedNode) -> None:
    plain: dict[str, Any] = {"interface_v1": 0}
    one, other = Backend(node, "plain", mha(), plain), Backend(node, "plain", mha(), plain)
    keys = keys_of("g", 3)
    # As SGLang's controller does.
    assert one.storage.batch_set(keys[:2], [one.pool.get_data_page(at * PAGE) for at in (1, 2)])
    assert one.storage.set(keys[2], one.pool.get_data_page(3 * PAGE))
    assert other.storage.batch_exists(keys) == 3
    targets = [other.pool.get_dummy_flat_data_page() for _ in range(3)]
    got = other.storage.batch_get([*keys[:2], "nothing"], targets)
    assert got[2] is None
    assert torch.equal(got[0], one.page(1)) and torch.equal(got[1], one.page(2))
    assert torch.equal(other.storage.get(keys[2], targets[2]), one.page(3))
    assert other.storage.get(keys[2], torch.zeros(3)) is None, "memory that does not fit is a miss"
    # Both ways mean the same page.
    assert other.get(keys[:1], [5]) == [True] and torch.equal(other.page(5), one.page(1))


def test_pools_beside_the_first_decide_where_a_prefix_stops(node: kvhive.EmbeddedNode) -> None:
    one, other = (Backend(node, "hybrid", mha()) for _ in range(2))
    states = {}
    for backend in (one, other):
        states[backend] = mamba()
        backend.storage.register_mem_host_pool_v2(backend.pool, PoolName.KV)
        backend.storage.register_mem_host_pool_v2(states[backend], PoolName.MAMBA)
        backend.storage.register_mem_host_pool_v2(mha("layer_first"), PoolName.INDEXER)
    keys = keys_of("v", 6)
    assert one.set(keys[:5], [1, 2, 3, 4, 5]) == [True] * 5
    state = PoolTransfer(PoolName.MAMBA, host_indices=torch.tensor([3, 4]), keys=[keys[1], keys[3]])
    index = PoolTransfer(PoolName.INDEXER, host_indices=indices([1, 2, 3, 4]), keys=keys[:4])
    assert one.storage.batch_set_v2([state, index]) == {PoolName.MAMBA: [True, True], PoolName.INDEXER: [True] * 4}

    last = PoolTransfer(PoolName.MAMBA, keys=keys[5:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    every = PoolTransfer(PoolName.INDEXER, hit_policy=PoolHitPolicy.ALL_PAGES)
    found = other.storage.batch_exists_v2(keys, [last])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (4, [2, 4])
    assert found.extra_pool_hit_pages == {PoolName.KV: 5, PoolName.MAMBA: 4}
    found = other.storage.batch_exists_v2(keys[:3], [last, every])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (2, [2])
    assert found.extra_pool_hit_pages == {PoolName.KV: 3, PoolName.MAMBA: 2, PoolName.INDEXER: 3}
    assert other.storage.batch_exists_v2(keys[5:], [last]).kv_hit_pages == 0
    groups = PoolTransfer(PoolName.INDEXER, hit_policy=PoolHitPolicy.BLOCK_GROUPS)
    assert other.storage.batch_exists_v2(keys, [groups]).kv_hit_pages == 0, "what is not known is a miss"

    state = PoolTransfer(PoolName.MAMBA, host_indices=torch.tensor([7]), keys=[keys[3]])
    assert other.storage.batch_get_v2([state]) == {PoolName.MAMBA: [True]}
    assert torch.equal(states[other].get_data_page(7), states[one].get_data_page(4))
    unknown = PoolTransfer(PoolName.SWA, host_indices=indices([1]), keys=keys[:1])
    assert other.storage.batch_get_v2([unknown]) == {PoolName.SWA: [False]}
    assert other.storage.batch_set_v2([unknown]) == {PoolName.SWA: [False]}


def test_a_state_with_more_than_its_pieces_is_kept_whole(node: kvhive.EmbeddedNode) -> None:
    # SGLang does not give out pieces of a state that has others beside it.
    def with_side(pool: Any) -> Any:
        pool.slot_state_device_tensors = [torch.zeros(9, 4)]
        pool.slot_state_buffers = [torch.randn(pool.size, 4)]
        pool.size_per_token = pool.get_size_per_token()
        return pool

    backends = []
    for _ in range(2):
        backend = Backend(node, "side", mha())
        states = with_side(mamba())
        backend.storage.register_mem_host_pool_v2(states, PoolName.MAMBA)
        backends.append((backend, states))
    (one, held), (other, got) = backends
    keys = keys_of("s", 1)
    assert not one.storage._pools["mamba"].pool.is_direct
    assert one.storage.batch_set_v2([PoolTransfer(PoolName.MAMBA, host_indices=torch.tensor([2]), keys=keys)])[
        PoolName.MAMBA
    ] == [True]
    assert other.storage.batch_get_v2([PoolTransfer(PoolName.MAMBA, host_indices=torch.tensor([5]), keys=keys)])[
        PoolName.MAMBA
    ] == [True]
    assert torch.equal(got.get_data_page(5), held.get_data_page(2))


def test_an_anchor_without_pages_goes_as_far_as_its_pools(node: kvhive.EmbeddedNode) -> None:
    pool = mha()
    logical = type("Logical", (), {"kv_buffer": None, "page_size": PAGE})()
    one = Backend(node, "logical", logical)
    one.storage.register_mem_host_pool_v2(logical, PoolName.KV)
    one.storage.register_mem_host_pool_v2(pool, PoolName.DEEPSEEK_V4_C4)
    keys = keys_of("l", 3)
    assert one.storage.batch_set_v2([PoolTransfer(PoolName.DEEPSEEK_V4_C4, host_indices=indices([1, 2]), keys=keys[:2])])
    found = one.storage.batch_exists_v2(keys, [PoolTransfer(PoolName.DEEPSEEK_V4_C4)])
    assert found.kv_hit_pages == 2
    assert one.storage.batch_exists(keys[:2]) == 0 and one.storage.batch_exists_v2(keys[:2], []).kv_hit_pages == 0
    one.storage.close()
    assert one.storage.batch_exists_v2(keys, [PoolTransfer(PoolName.DEEPSEEK_V4_C4)]).kv_hit_pages == 0


def test_a_cluster_that_is_silent_or_gone_is_a_miss(
    node: kvhive.EmbeddedNode, silent_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, patience = keys_of("d", 2), {"wait_ms": 200, "fetch_ms": 200, "store_ms": 200}
    gone = kvhive.EmbeddedNode(memory=4 << 20, block_bytes=64 << 10)
    left = Backend(gone, "gone", mha(), patience)
    assert left.set(keys, [1, 2]) == [True, True]
    gone.stop()
    silent = Backend(node, "silent", mha(), {**patience, "coordinators": silent_address})
    stranger = Backend(node, "stranger", mha(), {**patience, "token": "wrong"})
    homeless = Backend(node, "homeless", mha(), {**patience, "tenant": "nobody"})
    for backend in (left, silent, stranger, homeless):
        before = backend.pool.kv_buffer.clone()
        for _ in range(3):
            assert backend.storage.batch_exists(keys) == 0
            assert backend.storage.batch_exists_v2(keys, []).kv_hit_pages == 0
            assert backend.get(keys, [3, 4]) == [False, False]
            assert backend.set(keys, [1, 2]) == [False, False]
        assert torch.equal(backend.pool.kv_buffer, before)
        assert dict(backend.storage._pages.figures())["unasked"] > 0
        backend.storage.close()
    said = caplog.text
    assert "the token is missing or wrong" in said and "nobody" in said
    assert said.count("the token is missing or wrong") == 1, "once"


def test_pages_that_no_frame_takes_are_said_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=4096) as small:
        backend = Backend(small, "large", mha())
        assert backend.set(keys_of("f", 1), [1]) == [False]
        assert "8192 bytes are not stored: no frame is large enough" in caplog.text
        backend.storage.close()


def test_a_full_cluster_takes_what_it_has_room_for() -> None:
    with kvhive.EmbeddedNode(memory=16 * 8192, block_bytes=8192) as small:
        backend = Backend(small, "full", mha())
        keys = keys_of("o", 16)
        for at in range(16):
            backend.set([keys[at]], [at])
        kept = [at for at in range(16) if backend.storage.batch_exists([keys[at]])]
        assert 0 < len(kept) < 16
        expected = backend.page(kept[-1])
        got = backend.get([keys[kept[-1]]], [16])
        assert got == [False] or torch.equal(backend.page(16), expected)
        backend.storage.close()


def test_nothing_that_is_asked_raises(node: kvhive.EmbeddedNode, caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend(node, "odd", mha())
    keys = keys_of("n", 2)
    before = backend.pool.kv_buffer.clone()
    assert backend.storage.batch_get_v1(keys, indices([1])) == [False, False]
    assert backend.storage.batch_set_v1(keys, torch.arange(7)) == [False, False]
    assert backend.storage.batch_get_v1(keys, indices([1, 1_000_000])) == [False, False]
    assert backend.storage.batch_get_v1(keys, indices([2, 2])) == [False, False], "one page cannot be two"
    assert backend.storage.batch_exists([None]) == 0
    assert backend.storage.batch_get(keys, [torch.zeros(4), torch.zeros(4)]) == [None, None]
    assert backend.storage.batch_set(keys, [torch.zeros(4), torch.zeros(4)]) is False
    assert backend.storage.batch_exists([]) == 0 and backend.storage.batch_exists_v2([], None).kv_hit_pages == 0
    assert torch.equal(backend.pool.kv_buffer, before)
    assert "are not in the pool's memory" in caplog.text and "do not fit" in caplog.text


def test_a_clear_is_the_tenants(node: kvhive.EmbeddedNode, client: kvhive.Client) -> None:
    client.ensure_tenant("cleared")
    keys, tenant = keys_of("e", 2), {"tenant": "cleared"}
    one, other = Backend(node, "cleared", mha(), tenant), Backend(node, "cleared", mha(), tenant)
    apart = Backend(node, "cleared", mha())
    for backend in (one, apart):
        assert backend.set(keys, [1, 2]) == [True, True]
    assert other.storage.batch_exists(keys) == 2
    one.storage.clear()
    assert other.storage.batch_exists(keys) == 0 and other.get(keys, [3, 4]) == [False, False]
    assert apart.storage.batch_exists(keys) == 2, "it is another tenant's"
    assert one.set(keys, [1, 2]) == [True, True] and other.storage.batch_exists(keys) == 2
    stranger = Backend(node, "cleared", mha(), {**tenant, "token": "wrong"})
    with pytest.raises(kvhive.UnauthorizedError):
        stranger.storage.clear()


def test_a_pool_whose_pages_cannot_be_had_is_not_shared(
    node: kvhive.EmbeddedNode, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed:
        page_size = PAGE
        kv_buffer = torch.zeros(4)

        def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
            raise NotImplementedError("scales live outside")

    backend = Backend(node, "closed", Closed())
    assert "nothing of the pool kv is shared: scales live outside" in caplog.text
    assert backend.storage.batch_exists(keys_of("c", 2)) == 0


def test_what_is_detached_lets_go_of_the_engines_memory(node: kvhive.EmbeddedNode, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of("t", 1)
    with caplog.at_level(logging.INFO, "sglang.srt.mem_cache.kvhive"):
        backend = Backend(node, "detached", mha())
        assert backend.set(keys, [1]) == [True]
        page = backend.page(1)
        storage, pool = backend.storage, weakref.ref(backend.pool)
        storage.close()
        del backend
        gc.collect()
        assert pool() is None
        assert "pages of kv are sglang#" in caplog.text and "'stored': 2" in caplog.text
    assert storage.batch_exists(keys) == 0 and storage.batch_get_v1(keys, indices([1])) == [False]
    storage.close()
    again = Backend(node, "detached", mha())
    assert again.get(keys, [2]) == [True] and torch.equal(again.page(2), page)


def test_it_works_behind_sglangs_own_faults(node: kvhive.EmbeddedNode) -> None:
    keys = keys_of("i", 8)
    failing, slow = envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE, envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY
    with failing.override(0.3), slow.override(0.01):
        one, other = Backend(node, "faults", mha()), Backend(node, "faults", mha())
    assert type(one.storage).__name__ == "HiCacheStorageFailureInjector"
    for at, key in enumerate(keys):
        while not all(one.set([key], [at])):
            pass
    for at, key in enumerate(keys):
        while not all(other.get([key], [at])):
            pass
        assert torch.equal(other.page(at), one.page(at))
    one.storage.close()


def test_threads_of_an_engine_do_not_disturb_each_other(node: kvhive.EmbeddedNode) -> None:
    backend = Backend(node, "threads", mha())
    keys = keys_of("h", 8)
    assert backend.set(keys[:4], [0, 1, 2, 3]) == [True] * 4
    before = [backend.page(at) for at in range(8)]
    wrong: list[str] = []

    def reads() -> None:
        for _ in range(50):
            if backend.get(keys[:4], [8, 9, 10, 11]) != [True] * 4:
                wrong.append("read")

    def writes() -> None:
        for _ in range(50):
            if backend.set(keys[4:], [4, 5, 6, 7]) != [True] * 4:
                wrong.append("write")

    def asks() -> None:
        for _ in range(50):
            if backend.storage.batch_exists(keys[:4]) != 4:
                wrong.append("ask")

    threads = [threading.Thread(target=work) for work in (reads, writes, asks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(torch.equal(backend.page(8 + at), before[at]) for at in range(4))


def test_its_figures_are_sglangs(node: kvhive.EmbeddedNode) -> None:
    silent, backend = Backend(node, "figures", mha()), Backend(node, "figures", mha(), enable_storage_metrics=True)
    assert silent.storage.get_stats() is None
    keys = keys_of("q", 3)
    backend.set(keys, [1, 2, 3])
    backend.get(keys[:2], [4, 5])
    figures = backend.storage.get_stats()
    assert (figures.backup_pgs, figures.prefetch_pgs) == ([3], [2])
    assert len(figures.backup_bandwidth) == len(figures.prefetch_bandwidth) == 1 and figures.backup_bandwidth[0] > 0
    assert backend.storage.get_stats().backup_pgs == []


def test_what_it_was_not_tested_with_is_refused(node: kvhive.EmbeddedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(kvhive.MisuseError, match="nonsense"):
        Backend(node, "odd", mha(), {"nonsense": 1})
    monkeypatch.setattr(sglang, "__version__", "0.6.0")
    with pytest.raises(ValueError, match=r"works with SGLang 0\.5\.23; this is 0\.6\.0"):
        Backend(node, "odd", mha())
