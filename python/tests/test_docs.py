"""What the documentation shows is run, and prints what it says."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kvhive
import pytest

PYTHON = Path(__file__).parent.parent
PAGES = PYTHON.parent / "docs" / "integrate"
# Each page, and what it takes that is not always there.
NEEDS: dict[str, list[str]] = {"python.md": [], "python-engine.md": ["numpy"], "transformers.md": ["torch", "transformers"]}
FENCE = re.compile(r"(<!-- not run: [^\n]*-->\n)?```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


@pytest.mark.parametrize(("page", "needs"), NEEDS.items())
def test_a_page_runs_as_it_stands(page: str, needs: list[str]) -> None:
    for need in needs:
        pytest.importorskip(need)
    text = (PAGES / page).read_text()
    names: dict[str, Any] = {}
    ran = 0
    for found in FENCE.finditer(text):
        not_run, code, expected = found.groups()
        if not_run:
            compile(code, page, "exec")
            continue
        line = text.count("\n", 0, found.start(2))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * line + code, str(PAGES / page), "exec"), names)
        assert printed.getvalue() == (expected or ""), f"{page}, line {line}"
        ran += 1
    assert ran > 2


def test_the_first_steps_lead_somewhere(node: kvhive.EmbeddedNode, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(node.token + b"\n")
    program = [sys.executable, str(PYTHON / "examples" / "first_steps.py"), *node.coordinators, str(token)]
    said = [subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout for _ in range(2)]
    assert said == [
        "0 of 6 blocks came from the cluster\n6 blocks stored; run this again\n",
        "6 of 6 blocks came from the cluster\n0 blocks stored; run this again\n",
    ]


def test_every_public_name_is_documented() -> None:
    undocumented = [name for name in kvhive.__all__ if not (getattr(kvhive, name).__doc__ or "").strip()]
    assert undocumented == []


def test_without_numpy_the_package_works_and_the_engine_says_what_it_needs() -> None:
    program = """
import sys
sys.modules["numpy"] = None
import kvhive
layout = kvhive.Layout(layers=1, kv_heads=1, head_dim=16, tokens=16, dtype="float16")
with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=layout.block_bytes) as node, node.client() as client:
    prefix = client.namespace("plain", layout).keys(range(16))
    client.store_from(prefix, bytes(layout.block_bytes))
    fetched = bytearray(b"x" * layout.block_bytes)
    assert client.fetch_into(prefix, fetched).delivered == 1 and not any(fetched)
try:
    import kvhive.engine
except ImportError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert said.stdout == "kvhive.engine needs numpy, which is not installed: pip install 'numpy>=1.26'\n", said.stderr
