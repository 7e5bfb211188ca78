"""Memory of a GPU, of tensors that speak DLPack and of nodes: with a driver that the test makes, and with torch where there is a real GPU."""

import json
import os
import pathlib
import subprocess
import sys

import kvhive
import pytest
from fleet import KVHIVE, command

FAKE = pathlib.Path(__file__).parents[2] / "gpu" / "tests" / "fake"

# Run where the fake driver is the one that is found: whose memory is the host's, as is that of numpy's arrays.
WITH_A_FAKE = '''
import ctypes
import sys

import kvhive
import numpy as np
from kvhive._native import EngineCourier, EnginePlanner

LAYOUT = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="float16")
SIZE = LAYOUT.block_bytes
fake = ctypes.CDLL("libcuda.so.1")
streams = []


class Tensor:
    """An array that says that it is a GPU's."""

    def __init__(self, array, number=0, lies=False):
        self.array, self.number, self.lies = array, number, lies

    def __dlpack_device__(self):
        return (2, self.number)

    def __dlpack__(self, *, stream=None, **words):
        streams.append(stream)
        capsule = self.array.__dlpack__(**words)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        content = pointer(capsule, b"dltensor_versioned")
        # version, context, deleter, flags; then the tensor's data and device.
        device = (ctypes.c_int32 * 2).from_address(content + 8 + 8 + 8 + 8 + 8)
        device[:] = (1 if self.lies else 2, self.number)
        return capsule


def failing(call, nth=1, code=700):
    fake.fake_fail(call.encode(), nth, code)


def refused(error, what, do):
    try:
        do()
    except error as raised:
        assert what in str(raised), raised
    else:
        raise AssertionError(f"{what}: it was not refused")


with kvhive.EmbeddedNode(memory=512 << 20, block_bytes=[SIZE, 20 << 20]) as node, node.client() as client:
    blocks = client.namespace("model", LAYOUT)
    prompt = blocks.keys(range(64))
    computed = np.arange(4 * SIZE, dtype=np.uint32).astype(np.uint8)
    assert client.store_from(prompt, Tensor(computed)).acknowledged == 4
    assert len(streams) == 1 and streams[0] > 2, "its owner was told on which stream it is used"
    there = np.zeros(4 * SIZE, np.uint8)
    assert client.fetch_into(prompt, [Tensor(there[: 3 * SIZE]), Tensor(there[3 * SIZE :])]).delivered == 4
    assert (there == computed).all() and streams[1] == streams[2]
    # To and from the host's memory: they are the same blocks.
    here = np.zeros(4 * SIZE, np.uint8)
    assert client.fetch_into(prompt, here).delivered == 4 and (here == computed).all()

    # What is not there leaves the memory alone.
    longer = blocks.keys(range(96))
    there = np.full(6 * SIZE, 7, np.uint8)
    report = client.fetch_into(longer, Tensor(there))
    assert report.delivered == 4 and sorted(report.missed) == [4, 5]
    assert (there[: 4 * SIZE] == computed).all() and (there[4 * SIZE :] == 7).all()
    nothing = np.zeros(0, np.uint8)
    assert client.fetch_into(prompt, Tensor(nothing), 4).delivered == 0

    # More than passes through the host at a time.
    large = kvhive.Layout(layers=20, kv_heads=16, head_dim=128, tokens=128, dtype="float16")
    prefix = client.namespace("large", large).keys(range(5 * 128))
    computed = np.frombuffer(np.random.default_rng(1).bytes(5 * large.block_bytes), np.uint8).copy()
    assert large.block_bytes == 20 << 20
    assert client.store_from(prefix, Tensor(computed, 1)).acknowledged == 5
    there = np.zeros_like(computed)
    assert client.fetch_into(prefix, Tensor(there, 1)).delivered == 5 and (there == computed).all()
    assert client.fetch_into(prefix, [Tensor(there[: large.block_bytes], 1)], 4).delivered == 1
    assert (there[: large.block_bytes] == computed[-large.block_bytes :]).all()

    # What goes wrong is told in words.
    one = np.zeros(SIZE, np.uint8)
    refused(kvhive.BadBufferError, "there is no GPU 2: this process sees 2", lambda: client.fetch_into(prompt, Tensor(one, 2)))
    for mixed in ([Tensor(one), one.copy()], [one.copy(), Tensor(one)], [Tensor(one), Tensor(one.copy(), 1)]):
        refused(kvhive.BadBufferError, "make a call for each", lambda mixed=mixed: client.fetch_into(prompt, mixed))
    refused(kvhive.BadBufferError, "not on the device that it said", lambda: client.fetch_into(prompt, Tensor(one, lies=True)))
    refused(kvhive.BadBufferError, "no whole number of blocks", lambda: client.fetch_into(prompt, Tensor(one[1:])))
    refused(kvhive.BadBufferError, "overlap", lambda: client.fetch_into(prompt, [Tensor(one), Tensor(one)]))
    for call in ("cuMemcpyHtoDAsync_v2", "cuLaunchKernel", "cuStreamSynchronize"):
        failing(call)
        refused(kvhive.GpuError, f"{call}: CUDA_ERROR_ILLEGAL_ADDRESS (700)", lambda: client.fetch_into(prompt, Tensor(one)))
        assert client.fetch_into(prompt, Tensor(one)).delivered == 1, "once is once"
    failing("cuLaunchKernel")
    refused(kvhive.GpuError, "cuLaunchKernel", lambda: client.store_from(prompt, Tensor(one)))
    failing("cuMemcpyDtoHAsync_v2")
    first, large_one = client.namespace("large", large).keys(range(128)), Tensor(there[: large.block_bytes])
    refused(kvhive.GpuError, "cuMemcpyDtoHAsync_v2", lambda: client.store_from(first, large_one))
    failing("cuStreamCreate")
    refused(kvhive.BadBufferError, "cuStreamCreate", lambda: client.store_from(prompt, Tensor(one)))
    assert client.store_from(prompt, Tensor(one)).acknowledged == 1
    assert fake.fake_depth() == 0, "this thread has no context that it did not have"

# A node whose memory is a GPU's.
with kvhive.EmbeddedNode(memory=4 << 20, block_bytes=SIZE, gpu=1) as node, node.client() as client:
    prompt = client.namespace("model", LAYOUT).keys(range(64))
    computed = np.arange(4 * SIZE, dtype=np.uint32).astype(np.uint8)
    assert client.store_from(prompt, Tensor(computed)).acknowledged == 4
    for there in (np.zeros(4 * SIZE, np.uint8), np.zeros(4 * SIZE, np.uint8)):
        assert client.fetch_into(prompt, there).delivered == 4 and (there == computed).all()
    assert client.fetch_into(prompt, Tensor(there)).delivered == 4 and (there == computed).all()
    # By the host's memory: in one process a stage of one GPU is not lent to another.
    stats = client.stats()
    assert stats["bytes_stored_on_gpu"] == stats["bytes_fetched_on_gpu"] == 0 and stats["stage_fallbacks"] == 1

# Blocks of the GPU that the node has go over a stage, and are the same blocks.
with kvhive.EmbeddedNode(memory=4 << 20, block_bytes=SIZE, gpu=1) as node:
    computed = np.arange(4 * SIZE, dtype=np.uint32).astype(np.uint8)
    for codec, gpu_stages in (("raw", True), ("int8", True), ("raw", False)):
        with node.client(gpu_stages=gpu_stages) as client:
            prompt = client.namespace(f"{codec} {gpu_stages}", LAYOUT).keys(range(64))
            assert client.store_from(prompt, Tensor(computed, 1), codec=codec).acknowledged == 4
            here, there = np.zeros(4 * SIZE, np.uint8), np.zeros(4 * SIZE, np.uint8)
            assert client.fetch_into(prompt, [Tensor(there[: 3 * SIZE], 1), Tensor(there[3 * SIZE :], 1)]).delivered == 4
            stats = client.stats()
            assert stats["bytes_stored_on_gpu"] == gpu_stages * stats["bytes_stored"] and stats["bytes_stored"] > 0
            assert stats["bytes_fetched_on_gpu"] == gpu_stages * stats["bytes_fetched"] and stats["bytes_fetched"] > 0
            assert client.fetch_into(prompt, here).delivered == 4 and (here == there).all()
            assert codec != "raw" or (there == computed).all()
            # What is not there leaves the memory alone.
            longer, there = client.namespace(f"{codec} {gpu_stages}", LAYOUT).keys(range(96)), np.full(6 * SIZE, 7, np.uint8)
            report = client.fetch_into(longer, Tensor(there, 1))
            assert report.delivered == 4 and sorted(report.missed) == [4, 5]
            assert (there[: 4 * SIZE] == here).all() and (there[4 * SIZE :] == 7).all()
            assert stats["stage_fallbacks"] == 0

# An engine's worker whose blocks on their way are a GPU's.
with kvhive.EmbeddedNode(memory=4 << 20, block_bytes=4096, gpu=1) as node:

    def courier():
        said = {"coordinators": node.coordinators, "token": node.token, "tls": None, "tenant": "default", "model": "engine"}
        said |= {"rank": 0, "groups": [(16, None)], "hash_tokens": 16, "block_bytes": [4096], "wait": 5.0, "asks": 4}
        return EngineCourier(**said, memory=1 << 20, allocate=lambda size: Tensor(np.empty(size, np.uint8), 1))

    def planner():
        said = {"groups": [(16, None)], "hash_tokens": 16, "ranks": 1, "wait": 5.0, "asks": 4, "least_tokens": 1}
        return EnginePlanner(**said, loads=True, saves=True, known=60.0)

    def heard(worker, plan):
        worker.told(plan.orders())
        if reports := worker.reports():
            plan.heard(reports)

    def matched(worker, plan, request):
        while (found := plan.matched(request, 0, 65, names)) is None:
            heard(worker, plan)
        return found

    names = [bytes([at]) * 8 for at in range(4)]
    saver, plan = courier(), planner()
    assert matched(saver, plan, "r") == 0
    plan.allocated("r", [[1, 2, 3, 4, 5]], 0)
    plan.scheduled("r", [[1, 2, 3, 4, 5]], True, 65, names)
    saver.told(plan.orders())
    for number, _, rows in saver.saves():
        saver.store(number, Tensor(np.repeat(np.array(rows, np.uint8), 4096), 1))
    assert saver.flush(30.0)
    loader, plan = courier(), planner()
    assert matched(loader, plan, "s") == 64
    plan.allocated("s", [[1, 2, 3, 4, 5]], 64)
    loader.told(plan.orders())
    [(number, [(memory, row, rows)])] = loader.loads()
    assert memory.array.reshape(-1, 4096)[row : row + 4, 0].tolist() == [1, 2, 3, 4] == rows
    loader.loaded(number)
    assert dict(saver.figures())["bytes_stored_on_gpu"] == dict(loader.figures())["bytes_fetched_on_gpu"] == 4 * 4096
refused(
    kvhive.NodeError,
    "device 1: there is no GPU 2: this process sees 2",
    lambda: kvhive.EmbeddedNode(memory=4 << 20, block_bytes=SIZE, devices=2, gpu=1),
)
print("passed")
'''


# Run where NCCL and NVML are such as well: two nodes of one cluster, each with a GPU of its own.
WITH_NCCL = '''
import ctypes
import itertools
import pathlib
import sys
import time

import kvhive
import numpy as np
from kvhive.engine import KVCacheConfig, MultiGPULoadBalancer, UltraAdaptiveKVCacheEngine

cluster = pathlib.Path(sys.argv[1])
coordinators, admin = sys.argv[2].split(","), sys.argv[3]
token = (cluster / "token").read_text()
LAYOUT = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="float16")
SIZE = LAYOUT.block_bytes


def gone(node, way):
    return next(used["bytes"] for used in node.stats()["transports"] if used["transport"] == way)


joins = {"memory": 4 << 20, "block_bytes": SIZE, "coordinators": coordinators, "token": token}
joins |= {"nccl_after": 1, "nccl_guest_memory": 1 << 20}
with kvhive.EmbeddedNode(gpu=0, **joins) as one, kvhive.EmbeddedNode(gpu=1, **joins) as other, one.client() as client:
    blocks = client.namespace("pairs", LAYOUT)
    end = time.monotonic() + 100
    for user in itertools.count():
        computed = np.random.default_rng(user).integers(0, 256, (4, SIZE), dtype=np.uint8)
        prompt = blocks.keys([user] * 64)
        # Each block has a copy at another node.
        client.store_from(prompt, computed, ack="all")
        if gone(one, "nccl") + gone(other, "nccl") > 0:
            break
        assert time.monotonic() < end, [node.stats()[said] for node in (one, other) for said in ("transports", "nccl")]
        time.sleep(0.01)
    for node in (one, other):
        [gpu] = node.stats()["nccl"]
        [pair] = gpu["pairs"]
        assert pair["state"] in ("ready", "busy"), gpu
    fetched = np.zeros_like(computed)
    assert client.fetch_into(prompt, fetched).delivered == 4 and (fetched == computed).all()
    with kvhive.EmbeddedNode(gpu=0, nccl="off", **joins) as without:
        assert without.stats()["nccl"] == []

ctypes.CDLL("libnvidia-ml.so.1").fake_busy(62)
shape = {"num_heads": 2, "head_dim": 16, "num_layers": 2, "block_size": 16, "max_tokens": 512, "max_memory_mb": 16}
member = {"enable_distributed": True, "cluster_address": ",".join(coordinators), "token_file": cluster / "token", "admin_address": admin}
for backend, has_nccl in (("nccl", True), ("tcp", False)):
    with UltraAdaptiveKVCacheEngine(KVCacheConfig(gpu=1, distributed_backend=backend, use_compression=False, **shape, **member)) as engine:
        assert len(engine.get_stats()["node"]["nccl"]) == has_nccl
        end = time.monotonic() + 30
        # It is asked a few times a second.
        while (stats := engine.get_stats())["gpu_utilization_of"] != "gpu":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (stats["gpu_utilization"], stats["gpu_utilization_of"]) == (0.62, "gpu")
        assert stats["memory_utilization"] == stats["node"]["device_utilization"] < 0.62
        kinds = {device["node"]: device["kind"] for device in MultiGPULoadBalancer(engine).get_gpu_stats()}
        assert kinds[engine.backing.node.name] == "cuda"
print("passed")
'''


def run(script: str, *words: str, **environment: str) -> str:
    # Not this machine's own NCCL.
    usual = {name: value for name, value in os.environ.items() if name != "KVHIVE_NCCL"}
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], env=usual | environment, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a driver, an NVML and an NCCL that are made for tests."""
    if not FAKE.exists():
        pytest.skip("the package is tested without its repository")
    folder = tmp_path_factory.mktemp("driver")
    sources = {
        "libcuda.so.1": ["-x", "c", str(FAKE / "cuda.c"), "-x", "c++", str(FAKE / "kernels.cpp")],
        "libnvidia-ml.so.1": ["-x", "c", str(FAKE / "nvml.c")],
        "libnccl.so.2": ["-x", "c", str(FAKE.parents[1] / "nccl-rs" / "tests" / "fake" / "nccl.c")],
    }
    for name, listed in sources.items():
        # Threads of their own end some time: neither is unloaded.
        made = ["c++", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{name}", "-Wl,-z,nodelete", "-o", str(folder / name)]
        subprocess.run([*made, *listed], check=True)
    return folder


def paths(driver: pathlib.Path) -> str:
    return f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}"


def test_blocks_of_a_gpu_pass_through_the_host(driver: pathlib.Path) -> None:
    assert run(WITH_A_FAKE, LD_LIBRARY_PATH=paths(driver)) == "passed\n"


@pytest.mark.skipif(KVHIVE is None, reason="KVHIVE_BIN does not say where the command is")
@pytest.mark.parametrize("named", [True, False])
def test_blocks_go_from_gpu_to_gpu_by_nccl_where_that_is_wanted(driver: pathlib.Path, tmp_path: pathlib.Path, named: bool) -> None:
    cluster = tmp_path / "cluster"
    shape = ["--coordinators", "1", "--nodes", "2", "--devices", "1", "--replicas", "2", "--host-memory", "0B", "--block-size", "4KiB"]
    command(cluster, "up", "--detach", *shape, "--device-memory", "4MiB")
    try:
        running = json.loads((cluster / "running.json").read_text())
        environment = {"LD_LIBRARY_PATH": paths(driver)}
        if named:
            environment["KVHIVE_NCCL"] = str(driver / "libnccl.so.2")
        else:
            # As a package brings it: no loader looks there.
            packages = tmp_path / "packages"
            (packages / "nvidia" / "nccl" / "lib").mkdir(parents=True)
            (packages / "nvidia" / "nccl" / "lib" / "libnccl.so.2").symlink_to(driver / "libnccl.so.2")
            only = tmp_path / "driver"
            only.mkdir()
            for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
                (only / name).symlink_to(driver / name)
            environment = {"LD_LIBRARY_PATH": paths(only), "PYTHONPATH": f"{packages}:{os.environ.get('PYTHONPATH', '')}"}
        admin = running["admin_urls"][0].removeprefix("http://")
        assert run(WITH_NCCL, str(cluster), ",".join(running["coordinators"]), admin, **environment) == "passed\n"
    finally:
        command(cluster, "down")


def test_without_a_driver_a_gpus_memory_is_refused(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    class Tensor:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 99)

        def __dlpack__(self, **words: object) -> object:
            raise AssertionError("nobody asks for memory that cannot be reached")

    with pytest.raises(kvhive.BadBufferError, match="CUDA's driver is not on this machine|there is no GPU 99"):
        client.fetch_into(blocks.keys(range(16)), Tensor())


def test_without_a_driver_a_node_has_no_gpu() -> None:
    with pytest.raises(kvhive.NodeError, match="CUDA's driver is not on this machine|there is no GPU 99"):
        kvhive.EmbeddedNode(memory=4 << 20, block_bytes=4096, gpu=99)


def test_torchs_tensors_on_a_gpu_are_memory(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    prompt = blocks.keys(range(64))
    size = blocks.layout.block_bytes
    # What is still being computed when the call begins is waited for.
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy
        busy /= busy.norm()
    computed = (busy.flatten()[: 4 * size] * 1e6).to(torch.uint8)
    assert client.store_from(prompt, computed).acknowledged == 4
    there = torch.zeros(4, size, dtype=torch.uint8, device="cuda")
    assert client.fetch_into(prompt, [there[2], there[3], there[0], there[1]]).delivered == 4
    assert (there[[2, 3, 0, 1]].flatten() == computed).all()
    half = torch.zeros(4 * size // 2, dtype=torch.float16, device="cuda")
    assert client.fetch_into(prompt, half).delivered == 4
    assert (half.view(torch.uint8) == computed).all()
    with pytest.raises(kvhive.BadBufferError, match="contiguous"):
        client.fetch_into(prompt, torch.zeros(size, 2, dtype=torch.uint8, device="cuda")[:, 0])
