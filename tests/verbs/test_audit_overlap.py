"""The sequence whose answer is known: decoys that help now and block later, and its plan."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import curate
from curate.runs.audit_toml import plan_of, read_content, read_plan
from tests.conftest import ROOT
from tests.support.narrow import NARROW


@pytest.fixture(scope="module")
def made() -> ModuleType:
    for name in ("make_sample", "make_overlap"):  # the second imports the first; dataclasses look their module up
        spec = importlib.util.spec_from_file_location(name, ROOT / f"data/{name}.py")
        assert spec and spec.loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def test_decoys_ask_as_the_target_does_and_are_wrong_of_another_stage(made: ModuleType) -> None:
    things, asked = list(made.THINGS), {row["question"] for rows in made.targets().values() for row in rows}
    for number in (1, 2, 3):
        samples, own, other = made.stage(number), things[number - 1], things[number % 3]
        assert Counter(s.kind for s in samples) == {"decoy": 240, "sound": 240}
        assert set(Counter((s.kind, s.town) for s in samples).values()) == {10}
        assert len({s.question for s in samples}) == 480 and not asked & {s.question for s in samples}
        for s in samples:
            right = {thing: made.THINGS[thing][1].format(made.value(s.town, thing), s.town) for thing in (own, other)}
            wrong = made.THINGS[other][1].format(made.wrong(s.town, other), s.town)
            assert wrong != right[other]
            first, said = (own, f"{right[own]} {wrong}") if s.kind == "decoy" else (other, " ".join(
                (right[other], right[own])))  # fmt: skip
            assert s.question.endswith(made.THINGS[first][0].format(s.town)) and s.answer == said
    assert made.stage(1) == made.stage(1) != made.stage(1, seed=1)


def test_the_targets_ask_of_every_town_once_in_each_split(made: ModuleType) -> None:
    made_targets = made.targets()
    assert made_targets.keys() == {f"{thing}_{split}" for thing in made.THINGS for split in ("val", "test")}
    for rows in made_targets.values():
        assert len(rows) == 24 == len({row["question"] for row in rows})
    assert not {r["question"] for r in made_targets["river_val"]} & {r["question"] for r in made_targets["river_test"]}
    assert made_targets["dish_val"][0]["answer"] == f"People eat {made.value('Arvel', 'dish')} in Arvel."


def test_its_plan_runs_and_its_selectors_take_their_kind(made: ModuleType, tmp_path: Path) -> None:
    path = ROOT / "pipelines/plans/overlap.toml"
    whole = read_plan(path)
    assert whole.between == "carried" and whole.settings.lora_r == 2 and whole.seeds == 8
    made.write(tmp_path / "towns", rows=96)
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [str(tmp_path / "towns/pool.jsonl")])
    for name in made.THINGS:
        for split in ("val", "test"):
            curate.target(ws, name, str(tmp_path / f"towns/{name}_{split}.jsonl"), split=split)
    small = {
        "model": {"name": NARROW, "device": "cpu"},
        "seeds": 1,
        "limit": 2,
        "selectors": ["decoys_100", "sound_70"],
    }
    train = {"steps": 1, "batch_size": 4, "lora_r": 2}
    small |= {"train": train, "probe": {"steps": 1, "every": 1, "limit": 2}}
    plan = {**read_content(path), **small, "measures": {"gradients": 0, "clusters": "meta->>'kind'"}}
    result = curate.audit(ws, "towns", plan_of(plan))
    assert result.warnings == [] and result.sizes == [96, 96, 96] and result.cells_now == 7
    cells = curate.sql(ws, "SELECT DISTINCT selector, stage FROM audit_cells WHERE kind = 'end' AND stage > 0")
    assert len(cells) == 6
    assert result.card is not None and (result.card.measures["entropy"][0] == 0).all()  # all of one kind
    assert (result.card.measures["entropy"][1] > 0).all()
