"""Adapters in `curate audit`: one for all stages, or one for each; and a training that goes on with another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import curate
from curate.errors import CurateError
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice
from curate.models.tensor_files import read_arrays
from curate.runs.audit_toml import plan_of
from curate.runs.carried import FILES
from curate.store.encoding import read_json
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.verbs import audit as stage
from curate.verbs.select import SelectionSpec
from tests.support.audits import PLAN, cells, workspace
from tests.support.narrow import NARROW

LEAN = {**PLAN, "selectors": ["random"], "probe": {"steps": 0}, "measures": {"gradients": 0}, "out_of_domain": []}
LEAN["train"] = {**PLAN["train"], "lora_r": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.mktemp("adapters") / "ws")


def kept(ws: Workspace, name: str, monkeypatch: Any, **changes: Any) -> Path:
    """Where an audit's models are, of which none was removed."""
    monkeypatch.setattr(stage._Grid, "_forget", lambda *_: None)
    monkeypatch.setattr(stage.shutil, "rmtree", lambda *_, **__: None)
    curate.audit(ws, name, plan_of({**LEAN, **changes}))
    return Path(str(ws.path)) / "audits" / name / "models"


def ranks(models: Path, after: str) -> set[int]:
    """The ranks of what a path's stages have added to the matrices of the base, as far as they were trained."""
    first, last = (read_arrays(models / name / "model.safetensors") for name in ("base", after))
    its = {
        n: last[n].astype(np.float64) - first[n] for n in first if first[n].ndim == 2 and (first[n] != last[n]).any()
    }
    assert len(its) == 14  # all linear layers but the head
    return {int(np.linalg.matrix_rank(update, tol=1e-3 * np.linalg.norm(update))) for update in its.values()}


def test_a_carried_adapter_is_one_through_all_stages_and_fresh_ones_add_up(ws: Workspace, monkeypatch: Any) -> None:
    """With rank 2, two stages change a matrix by a matrix of rank 2 in all, or of up to 4; moments go on, or begin."""
    carried = kept(ws, "carried", monkeypatch)
    assert ranks(carried, "random_s0-t1") == ranks(carried, "random_s0-t2") == {2}
    state = read_arrays(carried / "random_s0-t2/carried/optimizer.safetensors")
    assert {float(value) for name, value in state.items() if name.startswith("step.")} == {4.0}
    fresh = kept(ws, "fresh", monkeypatch, adapter="fresh")
    assert ranks(fresh, "random_s0-t1") == {2} and max(ranks(fresh, "random_s0-t2")) > 2
    assert not (fresh / "random_s0-t1/carried").exists()
    one, other = (cells(ws, name) for name in ("carried", "fresh"))
    assert one["random_s0-t1"] == other["random_s0-t1"]  # they part after the first stage
    assert one["random_s0-t2"]["ids"] == other["random_s0-t2"]["ids"]
    assert one["random_s0-t2"]["performance"] != other["random_s0-t2"]["performance"]


def test_every_seed_draws_an_adapter_of_its_own(ws: Workspace, monkeypatch: Any) -> None:
    """With a learning rate that moves nothing, what is left of the adapter is how it was drawn."""
    train = {**LEAN["train"], "lr": 1e-12}
    models = kept(ws, "drawn", monkeypatch, seeds=2, train=train)
    drawn = [read_arrays(models / f"random_s{seed}-t1/carried/adapter_model.safetensors") for seed in (0, 1)]
    for name in (n for n in drawn[0] if "lora_A" in n):
        assert not np.allclose(drawn[0][name], drawn[1][name])


def test_two_trainings_of_which_the_second_goes_on_are_one(ws: Workspace) -> None:
    """Four steps in one run, or two and two: the same adapter, and the same moments."""
    settings: dict[str, Any] = {"batch_size": 4, "lora_r": 2, "lr": 1e-2, "schedule": "constant", "warmup": 0.0}
    settings |= {"order": "rank", "weight_decay": 0.1, "model": ModelChoice(NARROW, device="cpu"), "seed": 7}
    whole = SelectionSpec(by="-row", top=16, where="meta->>'skill' = 'facts'")
    curate.select(ws, "all16", Top(), whole)
    parts = {"first8": "rank <= (SELECT median(rank) FROM all16)", "last8": "rank > (SELECT median(rank) FROM all16)"}
    for name, part in parts.items():
        spec = SelectionSpec(by="-row", frac=1.0, where=f"id IN (SELECT id FROM all16 WHERE {part})")
        assert curate.select(ws, name, Top(), spec).rows == 8
    curate.train(ws, "at_once", manifest="all16", steps=4, **settings)
    before = curate.train(ws, "begun", manifest="first8", steps=2, **settings)
    after = curate.train(ws, "gone_on", manifest="last8", steps=2, carried=before.folder, **settings)
    found = [Run(ws, name).latest().folder for name in ("at_once", "gone_on")]
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        once, twice = (read_arrays(Path(str(folder)) / file) for folder in found)
        assert once.keys() == twice.keys() and all((once[name] == twice[name]).all() for name in once)
    assert after.steps == 2 and Run(ws, "gone_on").require_recipe().carried
    with pytest.raises(
        CurateError, match="the run 'gone_on' exists, gone on from another adapter; choose another name"
    ):
        curate.train(ws, "gone_on", manifest="last8", steps=2, carried=str(found[0]), **settings)
    for change, said in (({"lora_r": 4}, "with lora_r=2, and the training has lora_r=4"),
                         ({"lora_r": 0}, "is an adapter, and lora_r=0 trains all parameters")):  # fmt: skip
        with pytest.raises(CurateError, match=said):
            curate.train(ws, "other", manifest="last8", steps=2, carried=before.folder, **{**settings, **change})
    (bare := Path(str(ws.path)) / "bare").mkdir()
    for file in FILES:
        shutil.copy(Path(before.folder) / file, bare / file)
    save_file({"step.x": np.zeros(1, np.float32)}, bare / FILES[2])
    with pytest.raises(CurateError, match=r"bare has AdamW's moments of 0 of its 28 matrices; train it anew"):
        curate.train(ws, "other", manifest="last8", steps=2, carried=str(bare), **settings)
    with pytest.raises(CurateError, match="has no adapter_config.json; name a checkpoint of a run with LoRA"):
        curate.train(ws, "other", manifest="last8", steps=2, carried=NARROW, **settings)


def test_an_audit_of_an_earlier_version_goes_on_where_it_did_the_same_and_is_refused_else(ws: Workspace) -> None:
    """Where all parameters are trained it did; its adapters all began alike, and its proxy was of the branch's rows."""
    earlier = {**LEAN, "probe": {"steps": 0, "rows": "same"}, "train": {**LEAN["train"], "lora_r": 0}}
    first = curate.audit(ws, "earlier", plan_of(earlier))
    path = Path(str(ws.path)) / "audits/earlier/audit.json"
    recipe = read_json(path)
    assert "adapter" not in recipe
    del recipe["blur"], recipe["probe"]["rows"], recipe["training"]["batch_tokens"]  # as that version wrote it
    path.write_text(json.dumps(recipe))
    again = curate.audit(ws, "earlier", plan_of({**earlier, "train": {**earlier["train"], "eval_every": 1}}))
    assert (first.cells_now, again.cells_now) == (3, 0)
    with pytest.raises(CurateError, match=r"another probe \(rows=same, not disjoint\)"):
        curate.audit(ws, "earlier", plan_of({**earlier, "probe": {"steps": 0}}))
    with pytest.raises(CurateError, match="exists, with adapter=none, not carried"):
        curate.audit(ws, "earlier", plan_of({**earlier, "train": LEAN["train"]}))
    recipe["training"]["lora_r"] = 2
    path.write_text(json.dumps(recipe))
    with pytest.raises(CurateError, match="an adapter for each stage that all begin alike, as an earlier version"):
        curate.audit(ws, "earlier", plan_of({**earlier, "train": LEAN["train"], "adapter": "fresh"}))


def test_the_steps_between_evaluations_are_those_of_the_plan(ws: Workspace) -> None:
    plan = plan_of({**LEAN, "train": {**LEAN["train"], "steps": 3, "eval_every": 1}})
    curate.audit(ws, "watched", plan)
    cell = cells(ws, "watched")["random_s0-t2"]
    assert cell["during"].keys() == cell["performance"].keys()
    assert all([step for step, _ in points] == [1, 2] for points in cell["during"].values())
    assert len({value for _, value in cell["during"]["program"]} | {cell["performance"]["program"]}) == 3


def test_what_becomes_of_an_adapter_is_said_only_where_there_is_one(ws: Workspace) -> None:
    with pytest.raises(CurateError, match="adapter=carried says what becomes of LoRA's matrices between stages"):
        curate.audit(ws, "nothing", plan_of({**LEAN, "adapter": "carried", "train": {"steps": 2}}))
    with pytest.raises(CurateError, match="the plan's adapter is carried or fresh, not 'kept'"):
        plan_of({**LEAN, "adapter": "kept"})
