"""`curate prune`: what is taken back of a run, and that the rest is a run like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import curate
from curate.errors import CurateError
from curate.methods.metrics.loss import Loss
from curate.methods.pruners.magnitude import Magnitude
from curate.methods.selectors.random import Random
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, sample_in
from tests.support.narrow import NARROW

SHORT = TrainSettings(steps=3, batch_size=8, lr=1e-3)
MODEL = ModelChoice(NARROW)


class Nowhere(Magnitude):
    """A pruner of a user's, whose formula divides by zero."""

    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        return np.full(update.shape, np.nan)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = sample_in(tmp_path_factory.mktemp("prune"))
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_test.jsonl"), split="test")
    curate.select(ws, "picked", Random(), SelectionSpec(top=40))
    curate.train(ws, "whole", TrainingSpec(MODEL, Uniform(), SHORT, manifest="picked"))
    lora = TrainingSpec(MODEL, Uniform(), replace(SHORT, lora_r=4), manifest="picked")
    curate.train(ws, "lora", lora)
    return ws


def weights(folder: str | Path) -> dict[str, np.ndarray]:
    return load_file(Path(folder) / "model.safetensors")


def latest(ws: Workspace, run: str) -> Path:
    (folder,) = (ws.run_folder(run) / "checkpoints").glob("step-*")
    return Path(str(folder))


def test_nothing_taken_back_is_the_run_and_all_is_the_base(ready: Workspace) -> None:
    nothing = curate.prune(ready, "whole", Magnitude(), 0.0, name="nothing")
    everything = curate.prune(ready, "whole", Magnitude(), 1.0, name="everything")
    run, base = weights(latest(ready, "whole")), weights(NARROW)
    kept, back = weights(nothing.folder), weights(everything.folder)
    assert kept.keys() == run.keys() and all((kept[n] == run[n]).all() for n in run)
    assert all((back[n] == base[n].astype(np.float32)).all() for n in back)
    assert nothing.kept == nothing.changed > everything.kept == 0


@pytest.mark.parametrize("run", ["whole", "lora"])
def test_the_share_of_every_parameter_goes_back(ready: Workspace, run: str) -> None:
    made = curate.prune(ready, run, Magnitude(), 0.7, name=f"{run}_less")
    base, kept = weights(NARROW), weights(made.folder)
    whole = weights(curate.prune(ready, run, Magnitude(), 0.0, name=f"{run}_whole").folder)
    for name, after in whole.items():
        before = base[name].astype(np.float32)
        update, stays = np.abs(after.astype(np.float64) - before).ravel(), round(0.7 * after.size)
        order = np.argsort(-update, kind="stable")
        want = before.ravel().copy()
        want[order[: after.size - stays]] = after.ravel()[order[: after.size - stays]]
        assert (kept[name].ravel() == want).all(), name
    assert 0 < made.kept < made.changed <= made.parameters


def test_what_is_left_is_judged_and_compared_at_the_cost_of_the_run(ready: Workspace) -> None:
    evals = [EvalSpec("facts", Loss(), limit=6)]
    curate.prune(ready, "whole", Magnitude(), 0.5)
    found = [curate.evaluate(ready, run, evals).evaluations[0]["value"] for run in ("whole", "whole_magnitude")]
    assert found[0] != found[1]
    compared = curate.compare(ready, ["whole", "whole_magnitude"])
    assert [arm.name for arm in compared.arms] == ["whole", "whole_magnitude"]
    costs = [arm.cost for arm in compared.arms]
    assert costs[0].train == costs[1].train > 0 and costs[0].prep == costs[1].prep
    rows = {row["stage"]: row for row in curate.ledger(ready)}
    assert rows["prune"]["seconds"] > 0
    assert curate.verify(ready).damaged == []


def test_a_pruned_run_pays_for_its_own_training_alone_and_twice_pruned_is_another_arm(ready: Workspace) -> None:
    evals = [EvalSpec("facts", Loss(), limit=6)]
    training = TrainingSpec(MODEL, Uniform(), SHORT, manifest="picked", seed=5)
    curate.train(ready, "again", training, evals=evals)
    curate.prune(ready, "again", Magnitude(), 0.5, name="again_half")
    before = {line.run: line.cost.train for line in curate.compare(ready, ["again", "again_half"]).lines}
    assert before["again"] == before["again_half"] > 0
    curate.drop(ready, "again", force=True)
    curate.train(ready, "again", training, evals=evals)
    (line,) = curate.compare(ready, ["again_half"]).lines
    assert line.cost.train == before["again_half"]
    curate.prune(ready, "again_half", Magnitude(), 0.9, name="again_twice")
    curate.prune(ready, "again", Magnitude(), 0.9, name="again_once")
    arms = {arm.name: arm.runs for arm in curate.compare(ready, ["again_half", "again_twice", "again_once"]).arms}
    assert sorted(map(len, arms.values())) == [1, 1, 1]


def test_what_training_did_not_change_is_not_pruned(ready: Workspace, tmp_path: Path) -> None:
    rounded = TrainingSpec(replace(MODEL, dtype="bfloat16"), Uniform(), SHORT, manifest="picked")
    curate.train(ready, "rounded", rounded)
    made = curate.prune(ready, "rounded", Magnitude(), 0.0)
    trained = weights(curate.prune(ready, "rounded", Magnitude(), 0.0, name="rounded_all").folder)
    base = {n: torch.tensor(v).bfloat16().float().numpy() for n, v in weights(NARROW).items()}
    assert made.changed == sum(int((trained[n] != base[n]).sum()) for n in trained) < made.parameters
    copy = Path(shutil.copytree(NARROW, tmp_path / "base"))
    curate.train(ready, "own", TrainingSpec(ModelChoice(str(copy)), Uniform(), SHORT, manifest="picked"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    with pytest.raises(CurateError, match="is no longer the model that the run 'own' started from"):
        curate.prune(ready, "own", Magnitude(), 0.5)


def test_the_same_prune_again_does_nothing_and_one_that_is_not_finished_is_not_pruned(ready: Workspace) -> None:
    made = curate.prune(ready, "whole", Magnitude(), 0.25, name="quarter")
    rows = len(curate.ledger(ready))
    assert curate.prune(ready, "whole", Magnitude(), 0.25, name="quarter") == made and made.kept
    assert len(curate.ledger(ready)) == rows
    curate.train(ready, "half", TrainingSpec(MODEL, Uniform(), replace(SHORT, checkpoint_every=1), manifest="picked"))
    shutil.rmtree(ready.run_folder("half") / "checkpoints" / "step-000003")
    with pytest.raises(CurateError, match="the run 'half' is not finished; the same `curate train` goes on with it"):
        curate.prune(ready, "half", Magnitude(), 0.5)


def test_what_cannot_be_pruned_is_said(ready: Workspace, cli: Any) -> None:
    with pytest.raises(CurateError, match="has no run 'hole': did you mean 'whole'"):
        curate.prune(ready, "hole", Magnitude(), 0.5)
    with pytest.raises(CurateError, match="the pruner 'test_prune' gives values for .* that are NaN"):
        curate.prune(ready, "whole", Nowhere(), 0.5)
    with pytest.raises(CurateError, match="--sparsity 1.5: it is the share"):
        curate.prune(ready, "whole", Magnitude(), 1.5)
    with pytest.raises(CurateError, match="the run 'lora' exists, and is another"):
        curate.prune(ready, "whole", Magnitude(), 0.5, name="lora")
    curate.evaluate(ready, "base", [EvalSpec("facts", Loss(), limit=6)], model=MODEL)
    with pytest.raises(CurateError, match="is a model without further training; name one that was trained"):
        curate.prune(ready, "base", Magnitude(), 0.5)
    done = cli("prune", "whole", "--pruner", "magnitude", "--sparsity", "0.9", "--name", "few", ws=ready)
    assert done.returncode == 0 and "Run few: of" in done.stdout and "checkpoints/step-000003" in done.stdout
    looked = cli("score", "gradnorm", "--checkpoints", "few", ws=ready)
    assert (
        looked.returncode == 2 and "left of the run 'whole'; no training led to it, so name that run" in looked.stderr
    )
    again = cli("train", "few", "--model", NARROW, "--manifest", "picked", "--set", "steps=3", ws=ready)
    assert again.returncode == 2 and "is what `curate prune` left of whole" in again.stderr
