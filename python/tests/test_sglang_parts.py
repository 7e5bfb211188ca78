"""What the storage backend for SGLang is made of, without SGLang: its settings, and its native half against a cluster."""

import threading
from pathlib import Path
from typing import Any

import kvhive
import numpy as np
import pytest
from kvhive._native import EnginePages, engine_stops
from kvhive.sglang.settings import SGLANGS, Settings

PAGE = 4096
NAMES = [f"{at:064x}".encode() for at in range(6)]


def pages_of(node: kvhive.EmbeddedNode, **more: Any) -> EnginePages:
    given: dict[str, Any] = {"coordinators": node.coordinators, "token": node.token, "tls": None, "tenant": "default"}
    return EnginePages(**(given | more))


def filled(*values: int) -> list[np.ndarray]:
    return [np.full(PAGE, value, np.uint8) for value in values]


def test_pages_that_one_stores_another_fetches(node: kvhive.EmbeddedNode) -> None:
    one, other = pages_of(node), pages_of(node)
    shelf = one.open("pages", PAGE)
    assert one.store(shelf, NAMES[1:4], filled(10, 20, 30), 5.0) == [True] * 3
    assert other.open("something else", PAGE) == 0
    shelf = other.open("pages", PAGE)
    assert other.which(0, NAMES, 5.0, False) == [False] * 6, "the same names mean other pages on another shelf"
    assert other.which(shelf, NAMES, 5.0, False) == [False, True, True, True, False, False]
    memory = np.zeros((3, PAGE), np.uint8)
    assert other.fetch(shelf, [NAMES[3], NAMES[4], NAMES[1]], memory, 5.0) == [True, False, True]
    assert (memory[0] == 30).all() and (memory[2] == 10).all()
    figures = dict(other.figures())
    assert (figures["asked"], figures["found"], figures["fetched"], figures["missed"]) == (12, 3, 2, 1)
    assert dict(one.figures())["stored"] == 3 and one.troubles() == []


def test_of_a_long_run_what_is_after_a_gap_is_not_asked_for(node: kvhive.EmbeddedNode) -> None:
    pages = pages_of(node)
    shelf = pages.open("a run", PAGE)
    far = [f"far {at}".encode() for at in range(5000)]
    assert pages.store(shelf, [far[0], far[4999]], filled(1, 2), 5.0) == [True, True]
    assert pages.which(shelf, far, 5.0, True) == [True] + [False] * 4999
    found = pages.which(shelf, far, 5.0, False)
    assert found[0] and found[4999] and found.count(True) == 2


def test_pages_of_a_cluster_that_is_gone_are_missed(node: kvhive.EmbeddedNode, silent_address: str) -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=PAGE) as short:
        gone = pages_of(short)
        shelf = gone.open("gone", PAGE)
        assert gone.store(shelf, NAMES[:1], filled(7), 5.0) == [True]
    for pages in (gone, pages_of(node, coordinators=[silent_address]), pages_of(node, token=b"wrong")):
        shelf = pages.open("gone", PAGE)
        memory = filled(9)
        for _ in range(3):
            assert pages.which(shelf, NAMES[:1], 0.2, True) == [False]
            assert pages.fetch(shelf, NAMES[:1], memory, 0.2) == [False]
            assert pages.store(shelf, NAMES[:1], memory, 0.2) == [False]
        figures = dict(pages.figures())
        assert figures["unasked"] > 0, "a cluster that did not answer twice is left alone"
        assert figures["late"] >= 2
        troubles = pages.troubles()
        assert [why for why in troubles if why.startswith("pages are not stored: no node answered the last calls")], troubles
        assert len(troubles) > 1, "nor is what went wrong before that hidden by it"


def test_pages_that_no_frame_takes_are_not_stored_and_named(node: kvhive.EmbeddedNode) -> None:
    pages = pages_of(node)
    shelf = pages.open("large", 2 << 20)
    assert pages.store(shelf, NAMES[:1], np.zeros(2 << 20, np.uint8), 5.0) == [False]
    assert "2097152 bytes are not stored: no frame is large enough" in str(pages.troubles())
    assert pages.which(shelf, NAMES[:1], 5.0, True) == [False]


def test_what_makes_no_sense_is_refused(node: kvhive.EmbeddedNode) -> None:
    pages = pages_of(node)
    with pytest.raises(kvhive.MisuseError, match="pages of 0 bytes"):
        pages.open("odd", 0)
    with pytest.raises(kvhive.MisuseError, match="there is no shelf 3"):
        pages.which(3, NAMES, 1.0, False)
    shelf = pages.open("odd", PAGE)
    with pytest.raises(kvhive.MisuseError, match="1 rows for 2 pages"):
        pages.store(shelf, NAMES[:2], filled(1), 1.0)
    with pytest.raises(kvhive.BadBufferError, match="no whole number of blocks"):
        pages.fetch(shelf, NAMES[:1], np.zeros(PAGE - 1, np.uint8), 1.0)
    with pytest.raises(kvhive.MisuseError, match="limit"):
        pages.which(shelf, NAMES, 0.0, False)


def test_closed_pages_use_no_memory_and_do_nothing(node: kvhive.EmbeddedNode, silent_address: str) -> None:
    pages = pages_of(node, coordinators=[silent_address])
    shelf, memory = pages.open("late", PAGE), filled(5)
    begun = threading.Event()

    def fetch() -> None:
        begun.set()
        pages.fetch(shelf, NAMES[:1], memory, 0.5)

    late = threading.Thread(target=fetch)
    late.start()
    begun.wait()
    pages.close()
    late.join()
    assert pages.which(pages.open("late", PAGE), NAMES, 5.0, False) == [False] * 6
    pages.close()


def test_a_prefix_stops_where_all_its_pools_let_it() -> None:
    assert engine_stops(4, []) == ([1, 2, 3, 4], [])
    assert engine_stops(4, [(None, [True, True, False, True])]) == ([1, 2], [2])
    assert engine_stops(4, [(2, [True, False, True, True]), (None, [True] * 4)]) == ([1, 4], [4, 4])
    assert engine_stops(0, [(1, [])]) == ([], [0])


def test_settings_that_are_wrong_are_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    sglangs = {"backend_name": "kvhive", "module_path": "kvhive.sglang", "class_name": "KvHiveStorage", "interface_v1": 1}
    where = {"coordinators": "a:1, b:2", "token_file": str(token)}
    settings = Settings.of({**sglangs, **where, "wait_ms": 100}, others=SGLANGS)
    assert (settings.coordinators, settings.token, settings.wait_ms) == (("a:1", "b:2"), "secret", 100)
    assert settings.cluster == {"coordinators": ("a:1", "b:2"), "token": b"secret", "tls": None, "tenant": "default"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"nonsense": 1}, "nonsense: allowed is backend_name, class_name, coordinators"),
        ({"wait_ms": 0}, "wait_ms=0: allowed is 1 to 8000"),
        ({"fetch_ms": True}, "fetch_ms=True"),
        ({"store_ms": 1.5}, "store_ms=1.5"),
        ({"tenant": ""}, "tenant=''"),
        ({"weights": ""}, "weights=''"),
        ({"token": "secret"}, "one of them goes with coordinators"),
        ({"directory": str(tmp_path)}, "directory, coordinators: both say which cluster it is"),
    ]
    for given, message in wrong:
        with pytest.raises(kvhive.MisuseError, match=message):
            Settings.of({**sglangs, **where, **given}, others=SGLANGS)
    with pytest.raises(kvhive.MisuseError, match=r"token='.*': it is a file; allowed is token_file='"):
        Settings.of({**sglangs, "coordinators": "a:1", "token": str(token)}, others=SGLANGS)
    with pytest.raises(kvhive.MisuseError, match="no local cluster runs"):
        Settings.of({**sglangs, "directory": str(tmp_path)}, others=SGLANGS)
