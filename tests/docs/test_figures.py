"""The table of docs/performance.md is what tests/bench/results/figures.jsonl gives, and that takes what a run wrote."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import figures, timing
from tests.conftest import ROOT

ROWS = figures.read(figures.FILE)
FIELDS = ("command", "what", "measured", "limit", "near", "date", "commit", "device", "from")


def test_the_page_is_what_the_file_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks: Any = __import__("hooks")
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert "\n|" not in page and page.count("<!-- figures -->") == 1, "all figures are in the file"
    built = hooks.on_page_markdown(page, None, None, None)
    shown = [line for line in built.splitlines() if line.startswith("|")][2:]
    assert len(shown) == len(ROWS) > 40
    command = ""
    for line, row in zip(shown, ROWS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        command = cells[0] or command
        near = f" ({100 * row['near']:.0f} % of it)" if row["near"] is not None else ""
        assert [command, *cells[1:]] == [
            f"`{row['command']}`", row["what"], row["measured"], f"{row['limit']}{near}", row["date"],
        ]  # fmt: skip
    sys.modules.pop("hooks")


@functools.cache
def _strings(module: str) -> list[re.Pattern[str]]:
    """What a file has as text, with anything where an f-string puts a value."""
    found = []
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        known = [
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None for part in parts
        ]
        if sum(len(text or "") for text in known) > 5:
            found.append(re.compile("".join(".+" if text is None else re.escape(text) for text in known)))
    return found


def test_every_row_says_where_it_is_from_and_names_what_its_benchmark_prints() -> None:
    for row in ROWS:
        assert tuple(row) == FIELDS and row["measured"] and row["device"] and "|" not in row["what"], row
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["date"]) and re.fullmatch(r"[0-9a-f]{7}\+?", row["commit"])
        assert row["near"] is None or (row["limit"] and 0 < row["near"] <= 1.5)
        module = row["command"].split()[2]
        for name in row["from"]:
            assert any(text.fullmatch(name) for text in _strings(module)), f"{module} prints no '{name}'"


def row(command: str, *names: str, **more: Any) -> dict[str, Any]:
    about = {"limit": "reading", "near": 0.5, "date": "2026-11-20", "commit": "1234567", "device": "old"}
    return {"command": command, "what": "it", "measured": "2x", **about, "from": list(names), **more}


def line(command: str, what: str, value: float, **more: Any) -> dict[str, Any]:
    about = {"limit": "", "near": None, "date": "2026-11-29", "commit": "abcdefg", "device": "new"}
    return {"command": command, "what": what, "ratio": value, "interval": [value, value], "unit": "x", **about, **more}


def test_new_figures_take_the_place_of_those_of_their_name() -> None:
    bench = "python -m tests.bench.a"
    rows = [
        row(bench, "a / b"), row(f"{bench} tiny 9 32", "a / b"), row(bench, "a / b", "c"), row(bench),
        row("python -m tests.bench.b", "a / b"),
    ]  # fmt: skip
    lines = [
        line(f"{bench} 300", "a / b", 1.0),
        line(bench, "a / b", 2.3456, interval=[2.0, 30.0], limit="sorting", near=0.9),
        line(f"{bench} tiny 9 32", "a / b", 123.4),
        line(bench, "d", 5.0),
    ]
    new, left = figures.merged(rows, lines)
    assert [r["measured"] for r in new] == ["2.35x (2.00 to 30.0)", "123x", "2x", "2x", "2x"]
    assert [new[0][key] for key in FIELDS[3:7]] == ["sorting", 0.9, "2026-11-29", "abcdefg"]
    assert (new[1]["limit"], new[1]["near"]) == ("reading", None), "how near it was is not how near it is"
    assert new[2:] == rows[2:] and left == [f"{bench} 300: a / b", f"{bench}: d"]
    (both,), _ = figures.merged(rows[2:3], [*lines, line(bench, "c", 0.004, unit="GiB")])
    assert both["measured"] == "2.35x (2.00 to 30.0); 0.004 GiB"
    assert figures.said(line(bench, "e", 0.0361, unit="%", interval=[0.02, 0.05])) == "3.61 % (2.00 to 5.00)"


def test_a_figure_is_printed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("CURATE_BENCH", str(tmp_path / "kept/bench.jsonl"))
    monkeypatch.setattr(timing, "_rates", lambda: {"float32": 1e11, "bfloat16": 1e12})
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "model.gguf"), "9"])
    timing.machine("numpy")
    timing.told("a / b", (2.0, 1.5, 3.0), ">= 2.5x", False, "a note", "reading", 0.25)
    timing.figure("peak", 1.25, "GiB")
    ratio, peak = figures.read(tmp_path / "kept/bench.jsonl")
    assert ratio["ratio"] == 2.0 and ratio["interval"] == [1.5, 3.0] and ratio["holds"] is False
    assert (ratio["wanted"], ratio["limit"], ratio["near"], ratio["note"]) == (">= 2.5x", "reading", 0.25, "a note")
    assert ratio["command"].endswith(" model.gguf 9") and str(tmp_path) not in str(ratio)
    assert ratio["rates"] == {"float32": 1e11, "bfloat16": 1e12} and set(ratio["versions"]) >= {"python", "numpy"}
    assert peak["value"] == 1.25 and peak["unit"] == "GiB" and peak["holds"] is None and peak["date"] and peak["device"]
    printed = capsys.readouterr().out
    assert "wanted >= 2.5x: MISSED" in printed and "25% of reading" in printed
