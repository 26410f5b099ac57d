"""Several audits of one plan, in one table, and as tables of SQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import curate
from curate.cli.main import cli
from curate.errors import CurateError
from curate.pages.audits import MEASURES, page, pictures, reading, rows, values
from curate.runs.audit_grid import expanded
from curate.runs.audit_toml import plan_of, read_plan
from curate.store.workspace import Workspace
from curate.tables.audit_cards import card_of, conditions, joined
from tests.support.audits import PLAN, cells, workspace

LEAN = {**PLAN, "limit": 2, "out_of_domain": ["strings"], "train": {**PLAN["train"], "lora_r": 2},
        "measures": {"gradients": 4, "clusters": "meta->>'task'"}, "probe": {"steps": 1, "every": 1, "limit": 2},
        "selectors": ["random", "quality", "loss"], "selector": {"loss": {"scores": [], "by": "-n_chars"}}}  # fmt: skip


def toml(plan: dict[str, Any]) -> str:
    """A plan as its file has it."""
    stages = "".join("[[stage]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in s.items()) for s in plan["stage"])
    tables = {key: value for key, value in plan.items() if isinstance(value, dict)}
    plain = {key: value for key, value in plan.items() if key not in tables and key != "stage"}

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + " }"
        return json.dumps(value)

    text = "".join(f"{key} = {inline(value)}\n" for key, value in plain.items()) + stages
    return text + "".join(
        f"[{key}]\n" + "".join(f"{a} = {inline(b)}\n" for a, b in value.items()) for key, value in tables.items()
    )


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """Two orders of two stages, by the command line."""
    folder = tmp_path_factory.mktemp("grid")
    ws = workspace(folder / "ws")
    plan = folder / "plan.toml"
    plan.write_text(toml({**LEAN, "grid": {"order": "all"}}))
    arguments = ["audit", "two", "-w", str(ws.path), "--plan", str(plan), "-o", str(folder / "page")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output + repr(done.exception)
    (folder / "said.txt").write_text(done.output)
    return ws, folder


# --- the grid ----------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_of_its_lists() -> None:
    grid = {"budget": {"frac": [0.1, 0.5]}, "train": {"lora_r": [2, 0]}, "order": [["facts", "program"],
                                                                                  ["program", "facts"]]}  # fmt: skip
    points = expanded({**PLAN, "adapter": "carried", "grid": grid})
    assert len(points) == 8 and list(points)[0] == "frac_0_1_lora_r_2_order_1"
    plans = {suffix: plan_of(point) for suffix, point in points.items()}
    its = plans["frac_0_5_lora_r_0_order_2"]
    assert (its.budget, its.settings.lora_r, its.between) == ({"frac": 0.5}, 0, "")
    assert [stage.name for stage in its.stages] == ["program", "facts"]
    assert plans["frac_0_5_lora_r_2_order_1"].between == "carried"
    assert expanded(PLAN) == {"": PLAN}
    assert len(expanded({**PLAN, "grid": {"order": "all"}})) == 2


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({}, r"\[grid\] is a table of lists"),
        ({"seeds": 3}, r"\[grid\] has a list of values for seeds, not 3"),
        ({"order": [["facts"]]}, r"\['facts'\] is not every stage once, which are facts, program"),
        ({"order": "backwards"}, "order is 'all', or lists of the stages' names, not 'backwards'"),
        ({"limit": [1, 1]}, "two audits of the .* would both be called 'limit_1'"),
        ({"limit": list(range(1, 202))}, "has more than 200 audits"),
        ({"seeds": {"n": [1]}}, "and the plan's 'seeds' is no table"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        expanded({**PLAN, "grid": grid})


def test_the_command_line_makes_them_all_and_ends_with_one_table(ordered: tuple[Workspace, Path]) -> None:
    ws, folder = ordered
    said = (folder / "said.txt").read_text()
    assert said.count("16 samples") == 6 + 2 and "facts, program" in said and "program, facts" in said
    assert "two_order_1 (16 samples; facts, program; LoRA 2, carried): myopia gap" in said
    html = (folder / "page.html").read_text()
    assert html.count("<img") == 2 and "Ranks now and in the end, by audit" in html
    assert {cell["stage"] for cell in cells(ws, "two_order_2").values()} == {0, 1, 2}
    plan = folder / "plan.toml"
    again = CliRunner().invoke(cli, ["audit", "two", "-w", str(ws.path), "--plan", str(plan), "--json"])
    assert again.exit_code == 0, repr(again.exception)
    found = json.loads(again.output)["audits"]
    assert len(found) == 6 and found[0]["seeds"] == 1 and found[0]["stages"] == "facts, program"
    dry = CliRunner().invoke(cli, ["audit", "other", "-w", str(ws.path), "--plan", str(plan), "--dry-run"])
    assert "Would make 2 audits: 18 trainings." in dry.output and "other_order_2" in dry.output
    with pytest.raises(CurateError, match=r"has a \[grid\], which is several audits"):
        read_plan(plan)


# --- the table ---------------------------------------------------------------------------------------------


def test_the_table_of_several_audits_is_made_of_their_scorecards(ordered: tuple[Workspace, Path]) -> None:
    ws, _ = ordered
    found = joined(ws, ["two_order_2", "two_order_1"])
    table, shown = values(found), rows(found)
    assert [row["audit"] for row in table] == ["two_order_2"] * 3 + ["two_order_1"] * 3
    for name, start in (("two_order_2", 0), ("two_order_1", 3)):
        card = card_of(ws, name)
        assert card is not None
        for k in range(3):
            for measure in MEASURES:
                value = card.measures[measure][k, 0]
                assert table[start + k][measure] == (pytest.approx(value) if np.isfinite(value) else None)
        assert table[start]["myopia_gap"] == card.myopia.gap  # type: ignore[union-attr]
        assert shown[start]["ranks"] == f"{card.myopia.now[0]:g} -> {card.myopia.later[0]:g}"  # type: ignore[union-attr]
    assert len(reading(found)) == len(pictures(found)) == 2 and page(found, "t").count("<tr>") == 7
    with pytest.raises(CurateError, match="has no audit 'two_order_3': did you mean 'two_order_"):
        joined(ws, ["two_order_3"])
    (Path(str(ws.path)) / "audits/two_order_1/summed.json").rename(ws.path / "kept")  # type: ignore[arg-type]
    with pytest.raises(CurateError, match="the audit 'two_order_1' has not ended; the same `curate audit two_order_1"):
        joined(ws, ["two_order_1"])
    (Path(str(ws.path)) / "kept").rename(Path(str(ws.path)) / "audits/two_order_1/summed.json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": {"frac": 0.25}}, {"budget": "25 %", "trained": "LoRA 2, carried"}),
        ({"budget": {"tokens": 1e6}, "adapter": "fresh"}, {"budget": "1,000,000 tokens", "trained": "LoRA 2, fresh"}),
        ({"train": {"steps": 2}}, {"budget": "16 samples", "trained": "all"}),
    ],
)
def test_an_audit_says_under_what_it_was_made(changes: dict[str, Any], told: dict[str, str]) -> None:
    assert conditions(plan_of({**LEAN, **changes}).recipe({})) == {**told, "stages": "facts, program"}


def test_audits_are_joined_by_name_or_pattern(ordered: tuple[Workspace, Path]) -> None:
    ws, _ = ordered
    told = CliRunner().invoke(cli, ["audit", "join", "two_*", "-w", str(ws.path)])
    assert told.exit_code == 0 and told.output.count("two_order_") == 8
    for words, said in (
        (["join"], "name the audits to put into one table"),
        (["join", "none_*"], "no audit of .* is called none_\\*; there are two_order_1, two_order_2"),
        (["two"], "say by --plan FILE what to do"),
        (["a", "b", "--plan", "x.toml"], "a plan is for one NAME, not a b"),
    ):
        done = CliRunner().invoke(cli, ["audit", *words, "-w", str(ws.path)])
        assert isinstance(done.exception, CurateError)
        with pytest.raises(CurateError, match=said):
            raise done.exception


# --- SQL ---------------------------------------------------------------------------------------------------


def test_sql_sees_scorecards_and_cells(ordered: tuple[Workspace, Path]) -> None:
    ws, _ = ordered
    card = card_of(ws, "two_order_1")
    assert card is not None and card.myopia is not None
    (row,) = curate.sql(ws, "SELECT * FROM audits WHERE audit = 'two_order_1' AND selector = 'quality'")
    assert (row["budget"], row["stages"], row["trained"]) == ("16 samples", "facts, program", "LoRA 2, carried")
    for measure, columns in card.measures.items():
        value = columns[1, 0]
        assert row[measure] == (pytest.approx(value) if np.isfinite(value) else None)
    assert (row["rank_now"], row["rank_later"]) == (card.myopia.now[1], card.myopia.later[1])
    own = """SELECT avg(value) AS v FROM audit_cells
        WHERE audit = 'two_order_1' AND selector = 'quality' AND kind = 'end'
        AND target = stage_name"""
    (score,) = curate.sql(ws, own)
    assert score["v"] == pytest.approx(row["score"])
    branch = "SELECT step, target FROM audit_cells WHERE kind = 'branch' AND selector = 'random' ORDER BY audit, step"
    assert [(r["step"], r["target"]) for r in curate.sql(ws, branch)] == [(0, "program"), (1, "program"), (0, "facts"),
                                                                         (1, "facts")]  # fmt: skip


def test_a_table_of_an_earlier_version_keeps_its_name(ordered: tuple[Workspace, Path], monkeypatch: Any) -> None:
    ws, _ = ordered
    with pytest.raises(CurateError, match="the manifest name 'audits' is taken: it is a view"):
        curate.select(ws, "audits", by="row", top=3)
    monkeypatch.setattr(Workspace, "check_name", lambda *_: None)
    curate.select(ws, "audits", by="row", top=3)
    assert len(curate.sql(ws, "SELECT id FROM audits")) == 3
    curate.drop(ws, "audits")
    assert len(curate.sql(ws, "SELECT selector FROM audits")) == 6
