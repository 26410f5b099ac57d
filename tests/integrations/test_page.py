"""The page of online weights: its script runs as printed, and its runs are compared."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import curate
from tests.docs.test_docs import DOCS, ROOT, blocks


@pytest.mark.filterwarnings("ignore")  # torch says on a CPU that there is no memory to pin
def test_the_script_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    page = DOCS / "online-weights.md"
    code, *others = blocks(page, "python")
    assert all("options = " in other for other in others)  # for programs that are not installed here
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    ws = curate.open_workspace("ws")
    assert {row["name"] for row in curate.sql(ws, "SELECT name FROM runs WHERE state = 'complete'")} == {
        f"{arm}_s{seed}" for arm in ("plain", "adapt") for seed in (0, 1)
    }
    (least,) = curate.sql(ws, "SELECT min(weight) AS weight FROM trained WHERE run = 'adapt_s0'")
    assert 0.5 < least["weight"] < 1
    (command,) = [block for block in blocks(page, "") if block.startswith("curate compare")]
    done = cli(*shlex.split(command)[1:], ws=ws)
    assert done.returncode == 0, done.stderr
    assert "adapt" in Path("page.html").read_text() and Path("page.png").exists()
