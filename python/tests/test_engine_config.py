"""What an engine's configuration takes, and what it says of what it does not."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from kvhive.engine import CacheMode, CacheStrategy, KVCacheConfig


def test_the_defaults_are_the_documented_ones() -> None:
    config = KVCacheConfig()
    said = {field.name: getattr(config, field.name) for field in fields(config)}
    assert said == {
        "num_heads": 8,
        "head_dim": 64,
        "max_tokens": 4096,
        "block_size": 128,
        "cache_strategy": CacheStrategy.ADAPTIVE,
        "cache_mode": CacheMode.INFERENCE,
        "use_compression": True,
        "compression_ratio": 0.3,
        "use_quantization": False,
        "quantization_bits": 8,
        "max_memory_mb": None,
        "enable_gc": True,
        "gc_threshold": 0.8,
        "pin_memory": True,
        "non_blocking": True,
        "dtype": "float16",
        "enable_persistence": False,
        "persistence_path": None,
        "enable_prefetch": True,
        "prefetch_size": 4,
        "enable_profiling": False,
        "enable_distributed": False,
        "distributed_backend": "nccl",
        "multi_tenant": False,
        "tenant_isolation": True,
        "num_layers": 4,
        "cluster_address": None,
        "admin_address": None,
        "token_file": None,
        "tls": None,
        "listen_address": None,
        "advertise_address": None,
        "gpu": None,
    }


def test_names_are_the_documented_ones() -> None:
    assert [strategy.value for strategy in CacheStrategy] == ["lru", "lfu", "adaptive", "paged", "compressed", "quantized"]
    assert [mode.value for mode in CacheMode] == ["training", "inference", "bulk", "streaming", "interactive"]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_heads", 0, "a whole number from 1 to 4096"),
        ("head_dim", 64.0, "a whole number from 1 to 4096"),
        ("max_tokens", -1, "a whole number from 1 to"),
        ("block_size", 0, "a whole number from 1 to 65536"),
        ("block_size", 8192, "at most max_tokens, which is 4096"),
        ("cache_strategy", "clock", "'lru', 'lfu', 'adaptive', 'paged', 'compressed', 'quantized'"),
        ("cache_mode", "fast", "'training', 'inference', 'bulk', 'streaming', 'interactive'"),
        ("use_compression", 1, "True or False"),
        ("compression_ratio", 0, "a number from 0.001 to 1"),
        ("compression_ratio", float("nan"), "a number from 0.001 to 1"),
        ("use_quantization", None, "True or False"),
        ("quantization_bits", 5, "one of 4, 8, 16"),
        ("quantization_bits", 8.0, "one of 4, 8, 16"),
        ("cluster_address", 5, "host:port or None"),
        ("max_tokens", 1 << 31, "a whole number from 1 to"),
        ("max_memory_mb", 1, "at least eight blocks"),
        ("max_memory_mb", "64", "a whole number from 1 to"),
        ("enable_gc", "yes", "True or False"),
        ("gc_threshold", 1.5, "a number from 0.001 to 1"),
        ("pin_memory", 0, "True or False"),
        ("non_blocking", 0, "True or False"),
        ("dtype", "int8", "float16, bfloat16, float32"),
        ("dtype", object(), "float16, bfloat16, float32"),
        ("enable_persistence", 2, "True or False"),
        ("persistence_path", 3, "a path or None"),
        ("enable_prefetch", 2, "True or False"),
        ("prefetch_size", 0, "a whole number from 1 to 4096"),
        ("enable_profiling", 2, "True or False"),
        ("enable_distributed", True, "the coordinators' host:port"),
        ("distributed_backend", "gloo", "'nccl', 'nccl-unencrypted', 'tcp'"),
        ("multi_tenant", 2, "True or False"),
        ("tenant_isolation", 2, "True or False"),
        ("num_layers", True, "a whole number from 1 to 4096"),
        ("token_file", 3, "a path or None"),
        ("tls", "yes", "a kvhive.Tls or None"),
        ("gpu", -1, "a whole number from 0 to 1023"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as refused:
        KVCacheConfig(**{name: value})
    text = str(refused.value)
    named = "cluster_address" if name == "enable_distributed" and value is True else name
    assert text.startswith(f"{named} is ") and allowed in text


@pytest.mark.parametrize(
    ("given", "named", "allowed"),
    [
        ({}, "listen_address is None", "10.0.0.9:7800 is another host, which would dial itself"),
        ({"listen_address": "127.0.0.1:7810"}, "listen_address is '127.0.0.1:7810'", "an address of this host is allowed"),
        ({"listen_address": "0.0.0.0:7810"}, "listen_address is '0.0.0.0:7810'", "goes into advertise"),
        ({"listen_address": "0.0.0.0:7810", "advertise_address": "localhost:7810"}, "advertise_address is 'localhost:7810'", "dial itself"),
        ({"listen_address": "127.0.0.1:7810", "advertise_address": "10.0.0.5:7810"}, "listen_address is '127.0.0.1:7810'", "0.0.0.0 is"),
        ({"listen_address": "0.0.0.0:0", "advertise_address": "10.0.0.5:7810"}, "listen_address is '0.0.0.0:0'", "a port of its own"),
        ({"listen_address": "here"}, "listen_address is 'here'", "host:port is allowed"),
        ({"cluster_address": "10.0.0.9"}, "cluster_address is '10.0.0.9'", "host:port is allowed"),
        ({"admin_address": "http://10.0.0.9"}, "admin_address is 'http://10.0.0.9'", "host:port is allowed"),
        ({"token_file": None}, "token_file is None", "needs the file with the cluster's token"),
        ({"advertise_address": "here:99999"}, "advertise_address is 'here:99999'", "host:port is allowed"),
        ({"listen_address": 7810}, "listen_address is 7810", "host:port or None is allowed"),
        ({"enable_distributed": False}, "cluster_address is '127.0.0.1:7800, 10.0.0.9:7800'", "it goes with enable_distributed"),
        ({"cluster_address": None, "enable_distributed": False}, "token_file is 'token'", "it goes with enable_distributed"),
        ({"listen_address": "10.0.0.5:7810", "enable_distributed": False}, "listen_address is '10.0.0.5:7810'", "enable_distributed"),
    ],
)
def test_what_does_not_name_a_cluster_or_how_others_reach_a_node_is_refused(given: dict[str, Any], named: str, allowed: str) -> None:
    cluster: dict[str, Any] = {"enable_distributed": True, "cluster_address": "127.0.0.1:7800, 10.0.0.9:7800", "token_file": "token"}
    with pytest.raises(ValueError) as refused:
        KVCacheConfig(**(cluster | given))
    assert str(refused.value).startswith(f"{named}: ") and allowed in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"cluster_address": "127.0.0.1:7800,localhost:7801,[::1]:7802"},
        {"cluster_address": "10.0.0.9:7800", "listen_address": "10.0.0.5:0"},
        {"cluster_address": "coordinator:7800", "listen_address": "0.0.0.0:7810", "advertise_address": "node:7810"},
    ],
    ids=str,
)
def test_a_node_that_others_reach_is_taken(given: dict[str, Any]) -> None:
    config = KVCacheConfig(enable_distributed=True, token_file="token", **given)
    assert config.listens == given.get("listen_address", "127.0.0.1:0")


def test_what_is_changed_later_is_checked_too() -> None:
    config = KVCacheConfig()
    config.block_size = 0
    with pytest.raises(ValueError, match="block_size is 0"):
        config.validate()


def test_element_types_go_by_name_or_as_numpys() -> None:
    for given in ("float16", np.float16, np.dtype("float16")):
        assert KVCacheConfig(dtype=given).dtype == "float16"
    assert KVCacheConfig(dtype=np.float32).block_bytes == 2 * KVCacheConfig(dtype="bfloat16").block_bytes


def test_memory_is_what_is_said_or_enough_for_the_longest_requests() -> None:
    config = KVCacheConfig(max_tokens=1024)
    assert config.memory_bytes == max(64 << 20, 4 * 8 * config.block_bytes)
    assert KVCacheConfig(max_memory_mb=100).memory_bytes == 100 << 20


@pytest.mark.parametrize(
    ("given", "codec"),
    [
        ({}, "lossless"),
        ({"use_compression": False}, "raw"),
        ({"compression_ratio": 1.0}, "raw"),
        ({"use_quantization": True}, "int8"),
        ({"use_quantization": True, "quantization_bits": 4}, "int4"),
        ({"use_quantization": True, "quantization_bits": 4, "compression_ratio": 0.55}, "int8"),
        ({"use_quantization": True, "quantization_bits": 4, "compression_ratio": 0.8}, "lossless"),
        ({"use_quantization": True, "quantization_bits": 4, "use_compression": False}, "int4"),
        ({"use_quantization": True, "quantization_bits": 16}, "lossless"),
    ],
)
def test_compression_never_rounds_unless_quantization_lets_it(given: dict[str, Any], codec: str) -> None:
    config = KVCacheConfig(**given)
    assert config.codec == codec and codec in config.codecs_allowed
