"""The script for a GPU, rehearsed at its smallest on what such a machine has; and the page made of its lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.gpu import agreement, page, prove
from tests.gpu.figures import BY_NAME, FIGURES, PARTS
from tests.gpu.ground import SIZES, Ground
from tests.gpu.lines import Lines, Untried

ABOUT = {
    "on": "cpu", "size": "small", "device": "d", "date": "2026-11-29", "commit": "abcdefg", "versions": {"torch": "2"},
}  # fmt: skip


def line(figure: str, value: float | None, on: str = "cuda", **more: Any) -> dict[str, Any]:
    holds = None if value is None else BY_NAME[figure].holds(value, on)
    return {"figure": figure, "value": value, "holds": holds, **ABOUT, "on": on, **more}


def test_a_rehearsal_is_whole_and_agrees_where_only_models_can_run(tmp_path: Path) -> None:
    """In a process of its own, which is refused Arrow, DuckDB, polars, FAISS, orjson, jinja2, …"""
    asked = ["--on", "cpu", "--size", "smallest", "--bare", "--minutes", "5", "--to", str(tmp_path / "lines.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "tests/gpu/prove.py", *asked], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = page.read(tmp_path / "lines.jsonl")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [one["figure"] for one in lines] == [f.name for f in prove_order() if f != BY_NAME["c.memory"]]
    assert {one["figure"] for one in lines if one["value"] is None} == {"g.influence", "h.search"}
    assert all(one["holds"] for one in lines if one["figure"][0] in "bf")
    assert all(
        one["shapes"] and one["device"] and one["versions"]["torch"] for one in lines if one["value"] is not None
    )


def test_a_device_that_computes_something_else_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer off by a hundredth, where the reference's is right."""
    exact = agreement.tiny

    def off(device: str, dtype: str = "float32") -> Any:
        lm = exact("cpu", dtype)
        if device != "cpu":
            lm.model.model.layers[1].mlp.down_proj.weight.data.mul_(1.01)
        return lm

    monkeypatch.setattr(agreement, "tiny", off)
    ground = Ground("another", SIZES["smallest"], Lines(tmp_path / "lines.jsonl", ABOUT))
    found = {name: value for name, value, _ in agreement.forward_scores(ground)}
    assert not any(BY_NAME[f"b.{name}"].holds(found[f"b.{name}"]) for name in ("nll", "entropy", "el2n", "embed_lm"))


def prove_order() -> list[Any]:
    return [BY_NAME[name] for part in prove.PARTS for name in part.figures]


def test_every_figure_is_made_by_one_part_and_stands_in_a_table() -> None:
    assert sorted(f.name for f in prove_order()) == sorted(BY_NAME) and len(BY_NAME) == len(FIGURES)
    assert list(dict.fromkeys(f.name[0] for f in FIGURES)) == list(PARTS)


# --- what happens on the way -------------------------------------------------------------------------------


@pytest.fixture
def ground(tmp_path: Path) -> Any:
    return SimpleNamespace(on_gpu=False, lines=Lines(tmp_path / "lines.jsonl", ABOUT))


def made_by(monkeypatch: pytest.MonkeyPatch, *does: Any) -> list[prove.Part]:
    """Parts of this module that give b.nll, b.entropy, … and do something after the first."""
    names = iter(f.name for f in FIGURES if f.name[0] == "b")
    parts = []
    for i, what in enumerate(does):
        two = (next(names), next(names))

        def give(ground: Any, two: tuple[str, str] = two, what: Any = what) -> Iterator[Any]:
            yield two[0], 1e-9, {"shapes": {}}
            what()
            yield two[1], 1.0, {"shapes": {}}

        monkeypatch.setitem(globals(), f"part_{i}", give)
        parts.append(prove.Part(__name__, f"part_{i}", {"small": 0.01}, two))
    return parts


def raising(error: Exception) -> Any:
    def fail() -> None:
        raise error

    return fail


def test_what_fails_is_told_and_the_rest_goes_on(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [raising(torch.OutOfMemoryError("x")), raising(ValueError("bad\nworse")), raising(Untried("no FAISS"))]
    prove.prove(ground, "small", time.monotonic() + 60, made_by(monkeypatch, *failing, lambda: None))
    lines = page.read(ground.lines.path)
    assert [one["value"] for one in lines] == [1e-9, None, 1e-9, None, 1e-9, None, 1e-9, 1.0]
    assert [one.get("why") for one in lines[1:6:2]] == ["out of memory", "ValueError: bad", "no FAISS"]
    assert [one["holds"] for one in lines] == [True, False, True, False, True, None, True, False]


def test_it_stops_in_time_and_says_what_it_did_not_reach(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = made_by(monkeypatch, lambda: time.sleep(30), lambda: None)
    began = time.monotonic()
    prove.prove(ground, "small", began + 0.2, parts)
    assert time.monotonic() - began < 5
    assert [one.get("why", "") for one in page.read(ground.lines.path)] == [
        "", "it was under way when the time was over", *["it takes 0 s and there were 0 s left"] * 2,
    ]  # fmt: skip
    assert all(one["holds"] is not False for one in ground.lines.kept)


def test_a_line_is_on_the_disk_when_the_next_begins_and_what_is_no_number_misses(ground: Any) -> None:
    ground.lines.figure("b.nll", 2e-4)
    assert [one["holds"] for one in page.read(ground.lines.path)] == [False]
    ground.lines.figure("b.nll.bfloat16", float("nan"))
    (_, nan) = page.read(ground.lines.path)
    assert nan["value"] is None and nan["holds"] is False and nan["why"] == "it came out as nan"
    ground.lines.figure("c.share", 0.1)
    assert ground.lines.kept[-1]["holds"] is None, "speeds of a CPU bind nothing"


# --- the page ----------------------------------------------------------------------------------------------


def test_the_page_says_of_every_figure_what_it_is_or_that_it_is_untried() -> None:
    lines = [
        line("c.tokens", 180_000.0, tokens_per_sample=200.0), line("c.share", 0.5), line("b.nll", None, why="no time"),
        line("b.entropy", 3e-6, "cpu"), line("b.el2n", None, why="ValueError: x") | {"holds": False},
    ]  # fmt: skip
    made = page.tables(lines)
    rows = {row.split(" | ")[0].removeprefix("| "): row.rstrip(" |").split(" | ")[1:] for row in made.splitlines()}
    assert rows[BY_NAME["c.tokens"].what][1:] == ["180,000 tokens/s", "untried"]
    assert rows[BY_NAME["c.share"].what] == [">= 55 %", "50 % **missed**", "untried"]
    assert rows[BY_NAME["b.nll"].what][1] == "untried: no time" and rows[BY_NAME["b.entropy"].what][2] == "3.0e-06"
    assert rows[BY_NAME["b.el2n"].what][1] == "**failed**: ValueError: x"
    assert rows["`nll` and what shares its pass"] == ["200", "0.309 h", "30.9 h"]
    assert rows["features of `less`, a checkpoint"] == ["untried"] * 3
    assert made.count("\n| ") == len(FIGURES) + len(PARTS) + 3


def test_a_value_is_replaced_by_a_newer_one_and_by_nothing_else() -> None:
    kept = [line("c.share", 0.5), line("b.nll", 1e-6, "cpu"), line("c.tokens", None, why="no time")]
    new = [
        line("c.share", None, why="no time"), line("b.nll", 2e-6, "cpu"), line("c.tokens", 9.0),
        line("a.copy", 1.0, "cpu") | {"size": "smallest"},
    ]  # fmt: skip
    assert [(one["figure"], one["value"]) for one in page.merged(kept, new)] == [
        ("b.nll", 2e-6), ("c.share", 0.5), ("c.tokens", 9.0),
    ]  # fmt: skip


def test_the_lines_that_are_kept_are_of_known_figures_and_the_rehearsal_of_them_agrees() -> None:
    lines = page.read(page.KEPT)
    assert page.merged([], lines) == lines
    rehearsed = {one["figure"]: one for one in lines if one["on"] == "cpu"}
    assert all(rehearsed[f.name]["holds"] for f in FIGURES if f.name[0] in "bf")
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- gpu -->") == 1 and text.count("\n|") == 6, "all figures are in the file"
    assert page.stamped(text, lines) == text
    untried = not any(one["on"] == "cuda" and one["value"] is not None for one in lines)
    assert ("untried so far" in (ROOT / "docs/results/index.md").read_text(encoding="utf-8")) == untried
    assert str(Path.home()) not in json.dumps(lines)
