"""A workspace that an earlier version made is read by this one: every table, run and manifest of it, value by value."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.kinds.registry import find
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice
from curate.store.encoding import read_json
from curate.store.mask_file import read_mask
from curate.store.recipes import (
    Recipe,
    RunRecipe,
    TableRecipe,
    read_manifest_recipe,
    read_recipe,
    write_recipe,
)
from curate.store.schema import LATER
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import ROOT

MADE = ROOT / "tests/golden/format_1"
EXPECTED: dict[str, list[dict[str, Any]]] = json.loads((MADE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace, in the folder that its recipes name it by."""
    shutil.copytree(MADE / "workspace", tmp_path / "workspace")
    monkeypatch.chdir(tmp_path)
    return curate.open_workspace("workspace")


def as_json(value: Any) -> Any:
    """A value as expected.json writes it."""
    if isinstance(value, dict):
        return {key: as_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, datetime):
        return str(value)
    return "NaN" if value != value else value


@pytest.mark.parametrize("view", [v for v in EXPECTED if v not in ("runs", "ledger")])
def test_every_table_reads_as_it_was_written(old: Workspace, view: str) -> None:
    found = as_json(curate.sql(old, f"SELECT * FROM {view}"))
    # columns that there were not yet
    later = {"metrics": {"flops": None, "weights": None}, "evaluations": {"version": None}}.get(view, {})
    assert found == [row | (dict.fromkeys(LATER) if "messages" in row else later) for row in EXPECTED[view]]


def test_runs_and_the_ledger_read_as_they_were_written(old: Workspace) -> None:
    runs = "SELECT name, state, manifest, model, weighting, seed, steps, samples FROM runs"
    assert as_json(curate.sql(old, runs)) == EXPECTED["runs"]
    ledger = 'SELECT stage, name, phase, flops, samples FROM ledger ORDER BY "at", entry'
    assert as_json(curate.sql(old, ledger)) == EXPECTED["ledger"]


def test_everything_stands_and_nothing_is_damaged(old: Workspace) -> None:
    status = curate.status(old)
    assert {s["state"] for s in (*status.scores, *status.vectors)} == {"complete"}
    checked = curate.verify(old)
    assert checked.parts > 40
    assert {d.part for d in checked.damaged} == {
        f"checkpoints/step-00000{n}/README.md" for n in (4, 5)
    }  # see README.md


@pytest.mark.parametrize(
    ("method", "settings", "more"),
    [
        ("near_dup", {}, {}),
        ("nll", {}, {"models": "tiny"}),
        ("embed_lm", {}, {"models": "tiny", "target": "facts"}),
        ("less", {"dim": 64}, {"checkpoints": ["warm"], "target": "facts"}),
        ("graddot", {}, {"checkpoints": ["warm"], "target": "facts"}),
        ("davir", {}, {"models": {"base": ModelChoice("tiny"), "reference": ModelChoice("tiny")}}),
    ],
)
def test_the_same_command_finds_its_work_done(
    old: Workspace, method: str, settings: dict[str, Any], more: dict[str, Any]
) -> None:
    (scored,) = curate.score(old, find("score", method)(**settings), **more)
    assert (scored.computed, scored.reused) == (0, 40)


@pytest.mark.parametrize(("method", "more"), [("bm25", {"target": "facts"}), ("length", {}), ("repetition", {})])
def test_a_score_whose_rule_has_changed_is_made_anew_only_when_asked(
    old: Workspace, method: str, more: dict[str, Any]
) -> None:
    """They cut scripts without blanks into units since; the texts here have none, so that nothing else changes."""
    name = find("score", method)
    with pytest.raises(CurateError, match="made with version 1, not 2; choose another --name, or --fresh to replace"):
        curate.score(old, name(), **more)
    (scored,) = curate.score(old, name(), fresh=True, **more)
    table = "bm25_facts" if method == "bm25" else method
    assert (scored.computed, scored.note) == (40, "")
    assert as_json(curate.sql(old, f"SELECT * FROM {table}")) == EXPECTED[table]


@pytest.mark.parametrize(
    ("name", "selector", "spec"),
    [
        ("best", Top(), SelectionSpec(by="bm25_facts", where="length > 2", frac=0.3)),
        ("wide", Kcenter(), SelectionSpec(vectors="embed_lm", top=5)),
    ],
)
def test_a_selection_is_made_again(old: Workspace, name: str, selector: Any, spec: SelectionSpec) -> None:
    curate.select(old, "again", selector, spec)
    ids = [[row["id"] for row in curate.sql(old, f"SELECT id FROM {n} ORDER BY rank")] for n in ("again", name)]
    assert ids[0] == ids[1] == [row["id"] for row in sorted(EXPECTED[name], key=lambda row: row["rank"])]


@pytest.mark.parametrize("shrinks", [False, True])
def test_what_was_made_before_a_method_had_a_setting_is_made_again_by_its_default(
    old: Workspace, shrinks: bool
) -> None:
    """Its recipe lacks the setting; with another value than the default it is another mask."""
    recipe = read_mask(old, "small").recipe
    assert recipe.mask.settings.keys() < MagnitudeSmall().settings().keys()
    before = old.mask_path("small").read_bytes()
    if shrinks:
        with pytest.raises(CurateError, match="the mask 'small' exists, made by .*choose another name, or --fresh"):
            curate.mask(old, "small", MagnitudeSmall(density_interval=5, densities="0.5"), recipe.frac, model="tiny")
        assert old.mask_path("small").read_bytes() == before
        return
    selected = read_mask(old, "small").selected
    curate.mask(old, "small", MagnitudeSmall(), recipe.frac, model="tiny")
    again = read_mask(old, "small").selected
    assert again.keys() == selected.keys() and all((again[n] == selected[n]).all() for n in again)


def test_a_target_gets_another_split(old: Workspace, tmp_path: Path) -> None:
    before = curate.sql(old, "SELECT id, split, subtask FROM targets")
    file = tmp_path / "test.jsonl"
    file.write_text('{"prompt": "Name a fruit.", "completion": "an apple", "tools": [{"name": "look"}]}\n')
    assert curate.target(old, "facts", str(file), split="test").rows["test"] == 1
    after = curate.sql(old, "SELECT id, split, subtask, template_kwargs FROM targets")
    kept = [{k: row[k] for k in ("id", "split", "subtask")} for row in after if row["split"] == "val"]
    assert kept == [row for row in before if row["split"] == "val"]
    assert [row["template_kwargs"] is None for row in after] == [row["split"] == "val" for row in after]


def test_a_later_format_is_refused_in_a_sentence(old: Workspace) -> None:
    marker = Path(str(old.path)) / "workspace.json"
    marker.write_text(json.dumps({**read_json(marker), "format": 99}))
    with pytest.raises(CurateError, match="format 99.*upgrade curate"):
        curate.open_workspace("workspace")


@pytest.mark.parametrize(
    ("part", "command"),
    [
        ("scores/nll/score.json", lambda ws: curate.sql(ws, "SELECT nll FROM samples")),
        ("vectors/embed_lm/vectors.json", lambda ws: curate.neighbors(ws, "embed_lm", text="x")),
        ("manifests/best.json", lambda ws: curate.sql(ws, "SELECT * FROM best")),
        ("runs/warm/run.json", lambda ws: curate.compare(ws, ["warm"])),
    ],
)
def test_a_recipe_of_a_later_format_is_refused_and_left_as_it_is(old: Workspace, part: str, command: Any) -> None:
    path = Path(str(old.path)) / part
    path.write_text(json.dumps({**read_json(path), "format": 2}))
    before = path.read_bytes()
    with pytest.raises(CurateError, match=f"{part} has format 2.*up to format 1: upgrade curate"):
        command(old)
    assert path.read_bytes() == before


RECIPES = sorted(
    path
    for pattern in ("*/*/score.json", "*/*/vectors.json", "*/*/run.json", "manifests/*.json")
    for path in (MADE / "workspace").glob(pattern)
)


def read(path: Path) -> Recipe:
    kinds = {"score.json": TableRecipe, "vectors.json": TableRecipe, "run.json": RunRecipe}
    return read_recipe(path, kinds[path.name]) if path.name in kinds else read_manifest_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_recipe_is_written_as_it_was_read(path: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "again.json", read(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("scores/bm25_facts/score.json", {"version": "one"}, "Expected `int`, got `str` - at `$.version`"),
        ("scores/nll/score.json", {"colums": {}}, "unknown field `colums`"),
        ("scores/nll/score.json", {"models": {"base": {"name": "tiny"}}}, "missing required field `weights`"),
        ("vectors/less/vectors.json", {"checkpoints": "warm"}, "Expected `array`, got `str`"),
        ("manifests/best.json", {"pool": None}, "Expected `object`, got `null` - at `$.pool`"),
        ("manifests/warmer.json", {"share": [1, None]}, "at `$.share[1]`"),
        ("runs/online/run.json", {"selection": {"selector": 1}}, "at `$.selection.selector`"),
    ],
)
def test_an_edited_recipe_is_refused_by_a_sentence_that_says_where(
    old: Workspace, part: str, change: dict[str, Any], said: str
) -> None:
    path = Path(str(old.path)) / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CurateError, match=re.escape(said)) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path} is damaged or was edited: ")


def test_a_torn_recipe_is_refused_by_a_sentence(old: Workspace) -> None:
    path = Path(str(old.path)) / "manifests/best.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CurateError, match=f"{path} is damaged or was edited: it is not JSON"):
        curate.export(old, "best", "jsonl", "out")
    (said,) = curate.status(old).damaged  # which goes on
    assert f"{path} is damaged or was edited: it is not JSON" in said
