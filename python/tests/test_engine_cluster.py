"""An engine that is one member of a cluster: what it shares, and what it leaves to the others."""

import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import kvhive
import pytest
from conftest import STORY, ask, small_engine

from kvhive.engine import AutoScaler, BaseKVCache, KVCacheConfig, MultiGPULoadBalancer, UltraAdaptiveKVCacheEngine, WorkloadPredictor


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVCacheConfig]:
    """The configuration of an engine that joins a running cluster."""
    token = tmp_path_factory.mktemp("cluster") / "token"
    with kvhive.EmbeddedNode(memory=16 << 20, block_bytes=[4096, 8192, 65536]) as cluster:
        token.write_bytes(cluster.token)
        yield small_engine(
            enable_distributed=True,
            cluster_address=",".join(cluster.coordinators),
            token_file=token,
            admin_address=cluster.admin_address,
            use_compression=False,
        )


def test_an_engine_finds_what_another_has_computed(member: KVCacheConfig) -> None:
    with UltraAdaptiveKVCacheEngine(member) as one:
        first = ask(one, STORY)
        one.flush()
        with UltraAdaptiveKVCacheEngine(member) as two:
            again = ask(two, STORY)
    assert again["cache_hit"] and again["result"] == first["result"]


def test_a_copy_that_cannot_be_read_adds_nothing_and_takes_nothing_away(member: KVCacheConfig, tmp_path: Path) -> None:
    # What an engine of a cluster holds itself may be nothing: the copy is of one that is alone.
    with UltraAdaptiveKVCacheEngine(small_engine(use_compression=False)) as alone:
        ask(alone, STORY)
        alone.persist(tmp_path)
    with UltraAdaptiveKVCacheEngine(member) as engine:
        ask(engine, STORY)
        engine.flush()
        (segment,) = tmp_path.glob("*/blocks/*.seg")
        segment.unlink()
        with pytest.raises(IOError, match="5 blocks are damaged or missing, and no other is of use"):
            engine.load(tmp_path)
        assert engine.covered(STORY) == 5


def test_blocks_that_the_clusters_frames_do_not_hold_are_warned_of(member: KVCacheConfig) -> None:
    large = replace(member, head_dim=member.head_dim * 32)
    said = f"blocks of {large.block_bytes} bytes are not stored on devices whose largest frame has 65536"
    assert large.block_bytes > 65536
    with pytest.warns(RuntimeWarning, match=said), UltraAdaptiveKVCacheEngine(large):
        pass


def test_whose_blocks_lie_in_no_gpu_does_without_nccl_and_is_not_warned(member: KVCacheConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = UltraAdaptiveKVCacheEngine(replace(member, distributed_backend="nccl"))
    with engine:
        stats = engine.get_stats()
        assert stats["node"]["nccl"] == [] and stats["transport"] != "nccl"


def test_what_is_everybodys_is_cleared_only_where_that_is_said(member: KVCacheConfig) -> None:
    with UltraAdaptiveKVCacheEngine(member) as one, UltraAdaptiveKVCacheEngine(member) as two, BaseKVCache(member) as cache:
        ask(one, STORY)
        one.flush()
        for clear in (two.clear_cache, cache.clear):
            with pytest.raises(kvhive.MisuseError, match="whole_cluster is False: .* in the whole cluster"):
                clear()
        assert ask(one, STORY)["cache_hit"]
        two.clear_cache(whole_cluster=True)
        assert not ask(one, STORY)["cache_hit"]


def test_a_cluster_grows_by_whoever_follows_what_an_engine_asks_for(member: KVCacheConfig) -> None:
    with UltraAdaptiveKVCacheEngine(member) as engine:
        scaler = AutoScaler(engine, most=3)
        members = scaler.get_recommended_scaling()["current"]
        asked = scaler.scale_up()
        assert scaler.get_recommended_scaling()["details"]["target"] == asked
        assert scaler.scale_down() == asked - 1
        # Nothing grows here: nobody follows.
        assert scaler.get_recommended_scaling()["current"] == members


class Admin(BaseHTTPRequestHandler):
    """An admin API that says always the same."""

    says: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        content = json.dumps(self.says).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_a_cluster_foresees_is_told_by_a_predictor_of_its_engine(member: KVCacheConfig) -> None:
    with UltraAdaptiveKVCacheEngine(member) as engine:
        predictor = WorkloadPredictor(engine)
        # Nothing is known before five minutes have passed.
        assert predictor.predict_next_workload() == predictor.predict_next_workload(12) == {}
        learns: list[Callable[[], bool]] = [lambda: predictor.update_pattern(1, 1, 1), lambda: predictor.observe(engine)]
        for learn in learns:
            with pytest.raises(kvhive.MisuseError, match="the forecast is the cluster's, which learns by itself"):
                learn()
        says = engine.backing.ask("GET", "/v1/scaling")
    # As a coordinator's answer is documented (GET /v1/openapi.json, Foreseen).
    none = {"low": None, "high": None, "mase": None, "coverage": None}
    rate = {"figure": "rate", "ahead_s": 300, "value": 12.5, "low": 10.0, "high": 14.0, "mase": 0.5, "coverage": 0.9, "season_s": 86400}
    says["forecast"] = [rate, {"figure": "reuse", "ahead_s": 300, "value": 0.25, "season_s": 0, **none}, {**rate, "ahead_s": 3600}]
    says["forecast"].append({**rate, "ahead_s": 86400})
    Admin.says = says
    with ThreadingHTTPServer(("127.0.0.1", 0), Admin) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with UltraAdaptiveKVCacheEngine(replace(member, admin_address=f"127.0.0.1:{server.server_port}")) as engine:
                predictor = WorkloadPredictor(engine)
                known = {"value": 12.5, "low": 10.0, "high": 14.0, "mase": 0.5, "coverage": 0.9, "season_seconds": 86400.0}
                assert predictor.predict_next_workload() == {"rate": known, "reuse": {"value": 0.25, "season_seconds": 0.0}}
                assert predictor.predict_next_workload(12) == predictor.predict_next_workload(288) == {"rate": known}
                with pytest.raises(ValueError, match="steps is 2: the cluster foresees 1, 12, 288"):
                    predictor.predict_next_workload(2)
        finally:
            server.shutdown()


def test_in_a_cluster_better_settings_are_advised_and_taken_only_where_that_is_said(member: KVCacheConfig) -> None:
    given = replace(member, use_compression=True, compression_ratio=1.0, cache_strategy="compressed", use_quantization=True)
    with UltraAdaptiveKVCacheEngine(given) as engine:
        # What is new to the cluster: what blocks are like is known of those that were computed here.
        prompt = "Nobody has asked this. " + STORY
        for _ in range(3):
            ask(engine, prompt)
        report = engine.optimize("memory")
        assert report["advised"] == {"codec": {"from": "raw", "to": "int8"}} and report["changed"] == {}
        assert report["improvement_percentage"] == pytest.approx(25) and ask(engine, prompt)["cache_hit"]
        assert engine.optimize("memory", whole_cluster=True)["changed"] == report["advised"]
        assert engine.optimize("memory")["advised"] == {}


def test_what_is_read_much_gets_a_replica_where_little_is_read(member: KVCacheConfig) -> None:
    with UltraAdaptiveKVCacheEngine(member) as engine:
        balancer = MultiGPULoadBalancer(engine)
        prompt = "All of this is asked again and again. " + STORY * 3
        end = time.monotonic() + 60
        # It waits until the new node has its slots, and for the next reports.
        while not (report := balancer.balance_load())["applied"]:
            assert time.monotonic() < end, report["because"]
            for _ in range(10):
                ask(engine, prompt, max_new_tokens=1)
        assert report["busiest_to_mean_after"] < report["busiest_to_mean"]
        nodes = {device["device"]: device["node"] for device in balancer.get_gpu_stats()}
        for change in report["changes"]:
            assert len({nodes[device] for device in change["replicas"]}) == len(change["replicas"]) == 2 and "is read at" in change["reason"]


def test_others_reach_an_engines_node_where_it_says(member: KVCacheConfig) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    for given, data, metrics in (
        ({"listen_address": "127.0.0.2:0"}, "127.0.0.2:", "127.0.0.2:"),
        # Metrics are at a port of their own, beside what is advertised.
        ({"listen_address": f"0.0.0.0:{port}", "advertise_address": f"localhost:{port}"}, f"localhost:{port}", "localhost:"),
    ):
        config = KVCacheConfig(**(vars(member) | given))
        with UltraAdaptiveKVCacheEngine(config) as engine, UltraAdaptiveKVCacheEngine(member) as other:
            nodes = {node["name"]: node for node in engine.backing.ask("GET", "/v1/cluster")["nodes"]}
            said = nodes[engine.backing.node.name]
            assert said["data_address"].startswith(data) and said["metrics_address"].startswith(metrics)
            prompt = f"Asked of who is reached by {data}. " + STORY * 3
            ask(engine, prompt)
            engine.flush()
            assert ask(other, prompt)["cache_hit"]


def test_a_cluster_that_is_gone_is_left_alone_and_requests_are_answered(member: KVCacheConfig, tmp_path: Path) -> None:
    with kvhive.EmbeddedNode(memory=16 << 20, block_bytes=[4096, 8192]) as cluster:
        (tmp_path / "token").write_bytes(cluster.token)
        given = replace(member, cluster_address=",".join(cluster.coordinators), token_file=tmp_path / "token", admin_address=None)
        with UltraAdaptiveKVCacheEngine(given) as engine:
            before = ask(engine, STORY)
            assert not engine.get_stats()["is_resting"]
            cluster.stop()
            end = time.monotonic() + 60
            while not engine.get_stats()["is_resting"]:
                assert time.monotonic() < end
                assert ask(engine, STORY)["result"] == before["result"]
            failures = engine.get_stats()["cache_failures"]
            assert ask(engine, STORY)["result"] == before["result"]
            assert engine.get_stats()["cache_failures"] > failures
