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
