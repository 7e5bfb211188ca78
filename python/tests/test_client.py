"""A client against an embedded node: what is stored comes back, and every wrong call is refused by the right class."""

import _thread
import gc
import os
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import kvhive
import numpy as np
import pytest
from conftest import LAYOUT

SIZE = LAYOUT.block_bytes
TOKENS = list(range(16 * 8))


def some_bytes(count: int, seed: int = 7) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE), dtype=np.uint8)


def test_what_is_stored_comes_back(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    prefix = blocks.keys(TOKENS)
    stored = some_bytes(8)
    assert client.match(prefix).covered == 0
    kept = client.store_from(prefix, stored)
    assert (kept.acknowledged, kept.sent, kept.failed) == (8, 8, {})
    assert client.store_from(prefix, stored).sent == 0, "keys are content: nothing is sent twice"
    assert client.match(prefix).covered == 8
    fetched = np.zeros_like(stored)
    report = client.fetch_into(prefix, fetched)
    assert (report.delivered, report.missed) == (8, {})
    assert (fetched == stored).all()


def test_a_prompt_that_goes_on_otherwise_shares_its_beginning(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    one, other = blocks.keys(TOKENS), blocks.keys(TOKENS[:64] + [7] * 64)
    assert one.keys[:4] == other.keys[:4] and one.keys[4] != other.keys[4]
    stored = some_bytes(8)
    client.store_from(one, stored)
    assert client.match(other).covered == 4
    memory = np.zeros((8, SIZE), np.uint8)
    report = client.fetch_into(other, memory)
    assert report.delivered == 4
    assert report.missed == {at: "its device does not have it" for at in range(4, 8)}
    assert (memory[:4] == stored[:4]).all()


def test_blocks_go_to_and_come_from_wherever_they_lie(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    prefix = blocks.keys(TOKENS)
    stored = some_bytes(8)
    pieces = [stored[0].tobytes(), bytearray(stored[1]), stored[2:4].data, stored[4:8].view(np.float16)]
    assert client.store_from(prefix, pieces).acknowledged == 8
    first, rest = bytearray(SIZE), np.zeros((2, 3, SIZE // 8), np.float64)
    assert client.fetch_into(prefix, (first, rest.data), 1).delivered == 7
    assert first == stored[1].tobytes() and rest.tobytes() == stored[2:].tobytes()


def test_tokens_may_be_any_integers(blocks: kvhive.Namespace) -> None:
    expected = blocks.keys(TOKENS).keys
    for kind in (np.int64, np.uint32, np.int32, np.uint16):
        assert blocks.keys(np.array(TOKENS, kind)).keys == expected
    assert blocks.keys(range(len(TOKENS))).keys == expected
    assert blocks.keys(TOKENS + [1, 2, 3]).keys == expected, "only full blocks are named"
    assert blocks.keys(TOKENS, [b"adapter"]).keys != expected
    with pytest.raises(kvhive.MisuseError, match=r"token 1 is -4: allowed is 0 to 4294967295"):
        blocks.keys([3, -4])
    with pytest.raises(kvhive.MisuseError, match="tokens have 2 axes"):
        blocks.keys(np.zeros((2, 16), np.uint32))


def test_engines_hashes_and_raw_keys_name_blocks_too(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    of_engine = blocks.keys_of_hashes([b"one", b"two"])
    raw = blocks.raw_keys(of_engine.keys)
    stored = some_bytes(2)
    client.store_from(of_engine, stored)
    assert client.match(raw).covered == 2
    loose = blocks.raw_keys([os.urandom(32) for _ in range(5)], chained=False)
    assert client.store_from(loose, some_bytes(5)).acknowledged == 5
    assert client.fetch_into(loose, np.zeros((1, SIZE), np.uint8), 3).delivered == 1
    with pytest.raises(kvhive.MisuseError, match="key 1 has 3 bytes: a key has 32"):
        blocks.raw_keys([bytes(32), b"key"])


def test_namespaces_never_match(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    client.store_from(blocks.keys(TOKENS), some_bytes(8))
    for other in (client.namespace("another model", LAYOUT), client.namespace("another rank", LAYOUT, rank=1)):
        assert client.match(other.keys(TOKENS)).covered == 0


def test_a_cleared_tenant_has_nothing(client: kvhive.Client) -> None:
    client.create_tenant("cleared")
    blocks = client.namespace("model", LAYOUT, tenant="cleared")
    prefix = blocks.keys(TOKENS)
    client.store_from(prefix, some_bytes(8))
    before = client.clear("cleared")
    assert client.match(prefix).covered == 0
    assert client.store_from(prefix, some_bytes(8)).acknowledged == 8
    assert client.clear("cleared") == before + 1
    with pytest.raises(kvhive.UnknownTenantError, match='tenant "nobody" does not exist'):
        client.clear("nobody")
    with pytest.raises(LookupError):
        client.namespace("model", LAYOUT, tenant="nobody")


def test_a_store_says_how(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    prefix = blocks.keys(TOKENS)
    plain = np.zeros((8, SIZE), np.uint8)
    client.store_from(prefix, plain, codec="lossless", ack="all", input_tokens=128, hint="returns", returns_after=30)
    assert client.stats()["encoded_blocks"] == 8
    assert client.fetch_into(prefix, plain).delivered == 8
    assert client.stats()["decoded_blocks"] == 8
    assert client.release(prefix, "over") == 8
    with pytest.raises(kvhive.MisuseError, match='codec "zip": allowed is raw, lossless'):
        client.store_from(prefix, plain, codec="zip")  # type: ignore[arg-type]
    with pytest.raises(kvhive.MisuseError, match='ack "some": allowed is primary, quorum, all'):
        client.store_from(prefix, plain, ack="some")  # type: ignore[arg-type]
    with pytest.raises(kvhive.MisuseError, match="needs returns_after"):
        client.release(prefix, "returns")
    with pytest.raises(kvhive.MisuseError, match="timeout 0: allowed is more than 0"):
        client.match(prefix, timeout=0)


def test_pins_are_made_listed_and_ended(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    prefix = blocks.keys(TOKENS)
    client.pin(prefix, "system-prompt", reason="the assistant's own")
    client.pin(blocks.keys(TOKENS[:32]), "tonight", lasts=3600)
    standing, tonight = client.pins()
    assert standing == kvhive.Pin("system-prompt", "default", 8, None, "the assistant's own")
    assert (tonight.name, tonight.blocks) == ("tonight", 2) and tonight.until is not None
    client.unpin("tonight")
    client.unpin("system-prompt")
    assert client.pins() == []
    with pytest.raises(kvhive.RefusedError, match="tonight"):
        client.unpin("tonight")
    with pytest.raises(kvhive.RefusedError, match="name"):
        client.pin(prefix, "No Name")
    with pytest.raises(kvhive.MisuseError, match="lasts -1: allowed is more than 0"):
        client.pin(prefix, "past", lasts=-1)


def test_what_is_pinned_stays() -> None:
    with kvhive.EmbeddedNode(memory=64 * SIZE, block_bytes=SIZE) as node, node.client(hold=0.001) as client:
        blocks = client.namespace("pinned", LAYOUT)
        pinned, other = blocks.keys(TOKENS), blocks.keys([1] * 128)
        client.pin(pinned, "kept")
        for prefix in (pinned, other):
            assert client.store_from(prefix, some_bytes(8)).acknowledged == 8
        deadline = time.monotonic() + 30
        while "kvhive_node_pinned_blocks{device=\"0\"} 8\n" not in metrics(node):
            assert time.monotonic() < deadline, metrics(node)
            time.sleep(0.01)
        for user in range(20):
            client.store_from(blocks.keys([2, user] * 64), some_bytes(8))
        assert client.match(other).covered == 0
        assert client.match(pinned).covered == 8


def metrics(node: kvhive.EmbeddedNode) -> str:
    with urllib.request.urlopen(f"http://{node.metrics_address}/metrics", timeout=10) as answer:
        return str(answer.read(), "utf-8")


def test_calls_can_be_parts_of_a_trace(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    prefix = blocks.keys(range(4 * blocks.layout.tokens))
    for flags in ("00", "01"):
        traced = prefix.traced(f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}")
        assert traced.keys == prefix.keys
        assert client.match(traced).unreachable == 0
    with pytest.raises(kvhive.MisuseError, match="not a traceparent"):
        prefix.traced("4bf92f3577b34da6a3ce929d0e0e4736")


def test_what_does_not_fit_together_is_misuse(client: kvhive.Client, blocks: kvhive.Namespace, node: kvhive.EmbeddedNode) -> None:
    prefix = blocks.keys(TOKENS)
    with pytest.raises(kvhive.MisuseError, match="memory of 8 blocks from block 1 on, for a prefix of 8 blocks"):
        client.fetch_into(prefix, np.zeros((8, SIZE), np.uint8), 1)
    with node.client() as other, pytest.raises(kvhive.MisuseError, match="named by another client"):
        other.match(prefix)
    with pytest.raises(kvhive.MisuseError, match='dtype "f64": allowed is float16'):
        kvhive.Layout(layers=1, kv_heads=1, head_dim=1, tokens=1, dtype="f64")
    with pytest.raises(ValueError, match="block_bytes 0: allowed is a whole number from 1 to"):
        kvhive.Layout.opaque(0, 16)
    with pytest.raises(ValueError, match="kv_heads 0: allowed is a whole number from 1 to"):
        kvhive.Layout(layers=1, kv_heads=0, head_dim=1, tokens=1)
    with pytest.raises(TypeError, match="tokens are whole numbers, .* not .*str"):
        blocks.keys("a prompt")  # type: ignore[arg-type]


def test_numbers_and_types_that_are_not_allowed_are_named(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    for wrong in (-3, 0, 1 << 32, 1 << 70):
        with pytest.raises(kvhive.OutOfRangeError, match=f"head_dim {wrong}: allowed is a whole number from 1 to 4294967295"):
            kvhive.Layout(layers=1, kv_heads=1, head_dim=wrong, tokens=1)
    with pytest.raises(kvhive.WrongTypeError, match="tokens '16': allowed is a whole number"):
        kvhive.Layout.opaque(4096, "16")  # type: ignore[arg-type]
    with pytest.raises(kvhive.OutOfRangeError, match="rank -1: allowed is a whole number from 0"):
        client.namespace("m", LAYOUT, rank=-1)
    with pytest.raises(kvhive.MisuseError, match="model '': allowed is a name"):
        client.namespace("", LAYOUT)
    with pytest.raises(kvhive.OutOfRangeError, match="start -1: allowed"):
        client.fetch_into(blocks.keys(TOKENS), np.zeros((1, SIZE), np.uint8), start=-1)
    with pytest.raises(kvhive.OutOfRangeError, match="start -1: allowed"):
        client.store_from(blocks.keys(TOKENS), np.zeros((1, SIZE), np.uint8), start=-1)
    with pytest.raises(kvhive.WrongTypeError, match="hash 0 is .*str.*: allowed is bytes, in a sequence"):
        blocks.keys_of_hashes(["a", "b"])  # type: ignore[list-item]
    with pytest.raises(kvhive.WrongTypeError, match="hash 1 is .*int"):
        blocks.keys_of_hashes([b"a", 7])  # type: ignore[list-item]
    with pytest.raises(kvhive.WrongTypeError, match="keys are .*int"):
        blocks.raw_keys(7)  # type: ignore[arg-type]


def test_a_block_that_no_frame_holds_is_reported_with_both_sizes(client: kvhive.Client) -> None:
    large = client.namespace("large", kvhive.Layout.opaque(2 << 20, 16))
    report = client.store_from(large.keys(TOKENS).first(1), np.zeros(2 << 20, np.uint8))
    assert report.failed == {
        0: "no frame is large enough for it: the largest frames have 1048576 bytes (kvhive up --block-size); a block has 2097152 bytes"
    }


def test_a_tokens_line_ends_where_the_token_does(node: kvhive.EmbeddedNode) -> None:
    for ending in (b"", b"\n", b"\r\n"):
        kvhive.Client(node.coordinators, node.token + ending).close()
    with pytest.raises(kvhive.UnauthorizedError):
        kvhive.Client(node.coordinators, node.token + b"\n\n")


def test_what_is_no_control_port_is_told_at_once(node: kvhive.EmbeddedNode) -> None:
    assert node.admin_address is not None
    with pytest.raises(kvhive.UnreachableError, match="not a kvhive frame"):
        kvhive.Client(node.admin_address, node.token, request_timeout=600)


def test_a_layout_is_a_value() -> None:
    same = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="f16", order="layers-first")
    assert same == LAYOUT and hash(same) == hash(LAYOUT) and same.fingerprint == LAYOUT.fingerprint
    assert eval(repr(same), {"Layout": kvhive.Layout}) == same
    other = kvhive.Layout(layers=2, kv_heads=2, head_dim=16, tokens=16, dtype="bfloat16")
    assert other != same and other.fingerprint != same.fingerprint and other.block_bytes == same.block_bytes == 4096


def test_a_closed_client_says_so(node: kvhive.EmbeddedNode) -> None:
    client = node.client()
    prefix = client.namespace("closed", LAYOUT).keys(TOKENS)
    client.close()
    client.close()
    with pytest.raises(kvhive.ClosedError, match="the client has been closed"):
        client.match(prefix)


def test_who_cannot_connect_learns_why(node: kvhive.EmbeddedNode) -> None:
    with pytest.raises(kvhive.UnauthorizedError, match="token"):
        kvhive.Client(node.coordinators, b"no token of this cluster")
    with pytest.raises(kvhive.UnreachableError, match="no coordinator of"):
        kvhive.Client("127.0.0.1:1", node.token, connect_timeout=0.2, request_timeout=0.2)
    with pytest.raises(ConnectionError):
        kvhive.Client("127.0.0.1:1", node.token, connect_timeout=0.2, request_timeout=0.2)
    with pytest.raises(kvhive.TlsError, match="nowhere"):
        kvhive.Client(node.coordinators, node.token, tls=kvhive.Tls("/nowhere", "/nowhere", "/nowhere"))
    for wrong in ("127.0.0.1", "http://127.0.0.1", "http://127.0.0.1:7801", "", ["127.0.0.1:7801", "here:port"]):
        with pytest.raises(kvhive.MisuseError, match="allowed is host:port"):
            kvhive.Client(wrong, node.token)
    for nothing in ("", b"", " \n", b"\n"):
        with pytest.raises(kvhive.MisuseError, match="the token is empty"):
            kvhive.Client(node.coordinators, nothing)
    with pytest.raises(TypeError, match="unknown options"):
        kvhive.Client(node.coordinators, node.token, patience=3)  # type: ignore[call-arg]


def test_a_tokens_file_in_place_of_the_token_is_told(node: kvhive.EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(node.token)
    for given in (str(path), str(path).encode()):
        with pytest.raises(kvhive.MisuseError, match="is a file: give what is in it"):
            kvhive.Client(node.coordinators, given)
        with pytest.raises(kvhive.MisuseError, match="is a file: give what is in it"):
            kvhive.EmbeddedNode(memory=1 << 20, block_bytes=4096, coordinators=node.coordinators, token=given)


def test_options_that_are_not_allowed_are_named(node: kvhive.EmbeddedNode) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"request_timeout": "1"}, "request_timeout '1': allowed is a number of seconds"),
        ({"hold": True}, "hold True: allowed is a number of seconds"),
        ({"near": 5}, "near 5: allowed is the name of a node"),
        ({"raw_reads": "yes"}, "raw_reads 'yes': allowed is True or False"),
        ({"connections_per_member": 0}, "connections_per_member 0: allowed is a whole number from 1"),
        ({"connections_per_member": 1.5}, "connections_per_member 1.5: allowed is a whole number"),
        ({"connections_per_member": True}, "connections_per_member True: allowed is a whole number"),
        ({"connections_per_member": np.array([1, 2])}, "allowed is a whole number"),
        ({"hold": np.bool_(True)}, "allowed is a number of seconds"),
    ]
    for options, why in wrong:
        with pytest.raises(kvhive.MisuseError, match=why):
            kvhive.Client(node.coordinators, node.token, **options)


def test_numbers_of_other_libraries_are_numbers(node: kvhive.EmbeddedNode) -> None:
    options: dict[str, Any] = {"connections_per_member": np.int64(2), "hold": np.float32(2), "request_timeout": np.uint8(5)}
    with node.client(**options) as client:
        assert client.match(client.namespace("numbers", LAYOUT).keys(range(16))).covered == 0
    with pytest.raises(kvhive.OutOfRangeError, match="connections_per_member 0"):
        node.client(connections_per_member=np.int8(0))  # type: ignore[arg-type]


def test_threads_share_a_client(client: kvhive.Client, blocks: kvhive.Namespace) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            prefix, stored = blocks.keys([seed] * 128), some_bytes(8, seed)
            fetched = np.zeros_like(stored)
            for _ in range(20):
                assert client.store_from(prefix, stored).acknowledged == 8
                assert client.fetch_into(prefix, fetched).delivered == 8
                assert (fetched == stored).all()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_interrupt_ends_a_call(silent_address: str, node: kvhive.EmbeddedNode) -> None:
    interrupt = threading.Timer(0.1, _thread.interrupt_main)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        kvhive.Client(silent_address, node.token, connect_timeout=600, request_timeout=600)
    interrupt.join()
    with node.client() as client:
        assert client.refresh() > 0


def test_a_fork_has_to_connect_anew(node: kvhive.EmbeddedNode) -> None:
    client = node.client()
    blocks = client.namespace("forked", LAYOUT)
    prefix, stored = blocks.keys(TOKENS), some_bytes(8)
    client.store_from(prefix, stored)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            try:
                client.match(prefix)
            except kvhive.ClosedError:
                with node.client() as own:
                    again = own.namespace("forked", LAYOUT).keys(TOKENS)
                    code = 0 if own.fetch_into(again, np.zeros_like(stored)).delivered == 8 else 1
            # What is let go here is the parent's still.
            del client, blocks, prefix
            gc.collect()
            node.stop()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    dials = client.stats()["dials"]
    for _ in range(20):
        assert client.fetch_into(prefix, stored).delivered == 8
    assert client.stats()["dials"] == dials, "its connections are as they were"


def test_reports_outlive_what_they_are_of(node: kvhive.EmbeddedNode) -> None:
    client = node.client()
    prefix = client.namespace("outlived", LAYOUT).keys(TOKENS)
    report = client.store_from(prefix, some_bytes(8))
    del client
    gc.collect()
    assert report.acknowledged == 8 and len(prefix) == 8
