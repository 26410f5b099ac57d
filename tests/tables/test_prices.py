"""What a run of the workspace that others look at costs those others; and runs that are named as models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.metrics.loss import Loss
from curate.methods.mixers.doremi import Doremi
from curate.methods.pruners.magnitude import Magnitude
from curate.methods.scores.davir import Davir
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.nll import Nll
from curate.methods.scores.rho import Rho
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.rho_weight import RhoWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import TINY as TINY_FOLDER
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.proxies import Proxy
from curate.store.mask_file import read_mask
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.compare import Compared
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW)
SHORT = TrainSettings(steps=2, batch_size=8, lr=1e-3)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A reference, whose own choice was scored; then what was chosen by looking at it in three ways, and without."""
    folder = tmp_path_factory.mktemp("prices")
    (folder / "pool.jsonl").write_text("\n".join((SAMPLE / "pool/school.jsonl").read_text().splitlines()[:120]))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(folder / "pool.jsonl")])
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    curate.score(ws, Nll(), models=MODEL)
    curate.select(ws, "likely", Top(), SelectionSpec(by="-nll", top=16))
    curate.train(ws, "teacher", TrainingSpec(MODEL, Uniform(), SHORT, manifest="likely"))
    curate.score(ws, Rho(), Davir(), models={"base": MODEL, "reference": ModelChoice("teacher")})
    curate.score(ws, Graddot(), target="arithmetic", checkpoints=["teacher"])
    curate.select(ws, "learnable", Top(), SelectionSpec(by="rho", top=16))
    curate.select(ws, "aligned", Top(), SelectionSpec(by="graddot_arithmetic", top=16))
    curate.select(ws, "chance", Random(), SelectionSpec(top=16))
    for run, manifest in (("learner", "learnable"), ("gradient", "aligned"), ("plain", "chance")):
        curate.train(ws, run, TrainingSpec(MODEL, Uniform(), SHORT, manifest=manifest))
    weighed = TrainingSpec(MODEL, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("teacher"))
    curate.train(ws, "weighed", weighed)
    return ws


def costs(found: Compared) -> dict[str, Any]:
    return {line.run: line.cost for line in found.lines}


def passes(ws: Workspace, name: str) -> float:
    """What the scores of that name cost, or the choice."""
    return sum(row["flops"] for row in curate.ledger(ws) if name in row["name"].split(", ") and row["stage"] == "score")


def test_who_looks_at_a_run_pays_for_it_and_for_its_choice(ready: Workspace) -> None:
    its = costs(curate.compare(ready, ["learner", "gradient", "weighed", "plain", "teacher"]))
    teacher = its["teacher"].train + passes(ready, "nll")
    assert its["teacher"].prep == passes(ready, "nll") > 0 and its["plain"].prep == 0
    assert its["weighed"].prep == pytest.approx(teacher)
    assert its["learner"].prep == pytest.approx(teacher + passes(ready, "rho"))
    gradients = sum(row["flops"] for row in curate.ledger(ready) if "graddot" in row["methods"])
    assert its["gradient"].prep == pytest.approx(teacher + gradients) and gradients > 0


def test_an_arm_listed_before_has_paid(ready: Workspace) -> None:
    its = costs(curate.compare(ready, ["teacher", "learner", "weighed"]))
    assert its["weighed"].prep_marginal == 0 < its["weighed"].prep
    assert its["learner"].prep_marginal == pytest.approx(passes(ready, "rho"))


def test_what_a_training_goes_on_from_is_no_preparation(ready: Workspace) -> None:
    further = TrainingSpec(ModelChoice("teacher"), Uniform(), SHORT, manifest="aligned")
    curate.train(ready, "further", further)
    curate.train(ready, "likelier", replace(further, manifest="likely"))  # by the score that chose for its base, too
    assert costs(curate.compare(ready, ["likelier"]))["likelier"].prep == passes(ready, "nll") > 0
    cost = costs(curate.compare(ready, ["further", "gradient"]))
    assert cost["gradient"].prep - cost["further"].prep == pytest.approx(costs(curate.compare(ready, ["teacher"]))[
        "teacher"].total)  # fmt: skip


def test_what_a_reference_goes_on_from_is_paid_for_but_not_what_the_run_itself_does(ready: Workspace) -> None:
    curate.train(ready, "taught", TrainingSpec(ModelChoice("teacher"), Uniform(), SHORT, manifest="chance"))
    weighing = TrainingSpec(MODEL, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("taught"))
    curate.train(ready, "twice", weighing)
    curate.train(ready, "beyond", replace(weighing, model=ModelChoice("teacher")))
    curate.prune(ready, "teacher", Magnitude(), 0.5, name="pruned")
    curate.train(ready, "from_pruned", replace(weighing, model=ModelChoice("pruned"), reference=ModelChoice("teacher")))
    its = costs(curate.compare(ready, ["teacher", "taught", "twice", "beyond", "from_pruned"]))
    assert its["twice"].prep == pytest.approx(its["teacher"].total + its["taught"].total)
    assert its["beyond"].prep == pytest.approx(its["taught"].total) and its["from_pruned"].prep == 0


def test_a_mask_and_proxies_pay_for_the_run_that_they_look_at(ready: Workspace) -> None:
    curate.mask(ready, "small", MagnitudeSmall(), 0.1, model="teacher")
    curate.train(
        ready, "masked", TrainingSpec(MODEL, Uniform(), SHORT, manifest="chance", mask=read_mask(ready, "small"))
    )
    proxy = Proxy(ModelChoice("teacher"), Uniform(), replace(SHORT, steps=1, batch_size=2))
    curate.mix(ready, "blend", Doremi(), MixtureSpec(domain="meta->>'skill'", rows=16), proxy=proxy)
    curate.train(ready, "mixed", TrainingSpec(MODEL, Uniform(), SHORT, manifest="blend"))
    its = costs(curate.compare(ready, ["teacher", "masked", "mixed"]))
    assert its["masked"].prep == pytest.approx(its["teacher"].total)
    own = sum(row["flops"] for row in curate.ledger(ready) if row["stage"] == "mix")
    assert its["mixed"].prep == pytest.approx(its["teacher"].total + own) and own > 0


def test_a_score_that_was_computed_anew_between_two_steps_is_paid_for_twice(ready: Workspace) -> None:
    judged = {"rho": "again"}
    curate.train(ready, "other", TrainingSpec(MODEL, Uniform(), replace(SHORT, steps=1), manifest="chance"))
    curate.score(ready, Rho(), names=judged, models={"base": MODEL, "reference": ModelChoice("teacher")})
    curate.select(ready, "by_teacher", Top(), SelectionSpec(by="again", top=16))
    curate.score(ready, Rho(), names=judged, models={"base": MODEL, "reference": ModelChoice("other")}, fresh=True)
    curate.train(ready, "twofold", TrainingSpec(MODEL, AdaptStatic(), SHORT, manifest="by_teacher", by="again"))
    its = costs(curate.compare(ready, ["teacher", "other", "twofold"]))
    assert its["twofold"].prep == pytest.approx(its["teacher"].total + its["other"].total + passes(ready, "again"))


def test_a_reference_that_was_trained_anew_or_dropped_is_paid_for_as_it_was_looked_at(ready: Workspace) -> None:
    before = costs(curate.compare(ready, ["learner", "weighed", "gradient"]))
    longer = TrainingSpec(
        MODEL, Uniform(), replace(SHORT, steps=5), manifest="learnable"
    )  # chosen by its own earlier self
    curate.train(ready, "teacher", longer, fresh=True)
    assert costs(curate.compare(ready, ["learner", "weighed", "gradient"])) == before
    late = TrainingSpec(
        MODEL, Uniform(), SHORT, manifest="learnable", seed=1
    )  # of the score as it was, by what it looked at
    curate.train(ready, "late", late)
    assert costs(curate.compare(ready, ["late"]))["late"].prep == before["learner"].prep
    weighed = TrainingSpec(MODEL, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("teacher"), seed=1)
    curate.train(ready, "anew", weighed)
    anew = costs(curate.compare(ready, ["teacher", "anew"]))
    assert anew["anew"].prep == pytest.approx(anew["teacher"].total) and anew["teacher"].prep == before["learner"].prep
    curate.drop(ready, "teacher", force=True)
    assert costs(curate.compare(ready, ["learner", "weighed", "gradient"])) == before
    assert costs(curate.compare(ready, ["anew"]))["anew"].prep == anew["anew"].prep


def test_no_run_takes_the_place_of_what_it_stands_on_and_an_unfinished_one_is_no_model(ready: Workspace) -> None:
    itself = TrainingSpec(ModelChoice("plain"), Uniform(), SHORT, manifest="chance")
    for training in (
        itself,
        TrainingSpec(MODEL, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("plain")),
    ):
        with pytest.raises(CurateError, match="the run 'plain' cannot start from itself"):
            curate.train(ready, "plain", training, fresh=True)
    curate.train(ready, "part", TrainingSpec(MODEL, Uniform(), replace(SHORT, checkpoint_every=1, keep_checkpoints=0)))
    shutil.rmtree(ready.run_folder("part") / "checkpoints" / "step-000002")
    with pytest.raises(CurateError, match="the run 'part' is not finished; the same `curate train` goes on with it"):
        curate.train(ready, "onward", replace(itself, model=ModelChoice("part")))


def test_a_folder_comes_before_a_run_of_its_name_and_a_workspace_is_the_same_from_anywhere(
    ready: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(str(ready.path))
    monkeypatch.chdir(whole.parent)
    relative = curate.open_workspace(Path(whole.name))
    training = TrainingSpec(MODEL, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("plain"))
    curate.train(relative, "seen", training)
    monkeypatch.chdir(tmp_path)
    its = costs(curate.compare(ready, ["plain", "seen"]))
    assert its["seen"].prep == its["plain"].total
    assert curate.train(ready, "seen", training).steps_now == 0
    runs = ["plain", "seen", "learner", "gradient"]
    before = costs(curate.compare(ready, runs))
    shutil.copytree(whole, tmp_path / "moved")
    assert costs(curate.compare(curate.open_workspace(tmp_path / "moved"), runs)) == before
    shutil.copytree(TINY_FOLDER, tmp_path / "short")
    curate.train(ready, "short", TrainingSpec(ModelChoice("short"), Uniform(), SHORT, manifest="chance"))
    assert (
        curate.train(ready, "short", TrainingSpec(ModelChoice("short"), Uniform(), SHORT, manifest="chance")).steps == 2
    )


def test_a_run_is_a_model_by_its_name(ready: Workspace, cli: Any) -> None:
    curate.train(ready, "brief", TrainingSpec(MODEL, Uniform(), SHORT, manifest="chance"))
    evals = [EvalSpec("arithmetic", Loss(), "val", limit=4)]
    own = curate.evaluate(ready, "brief", evals, allow_val=True).evaluations[0]["value"]
    as_it_is = curate.evaluate(ready, "as_brief", evals, model=ModelChoice("brief"), allow_val=True)
    assert as_it_is.evaluations[0]["value"] == own
    scored = cli("score", "nll", "--name", "nll_short", "--model", "brief", ws=ready)
    assert scored.returncode == 0, scored.stderr
    (row,) = curate.sql(ready, "SELECT avg(nll_short) AS now, avg(nll) AS before FROM samples")
    assert row["now"] != row["before"]
    with pytest.raises(CurateError, match="the run 'plain_base' is .* without training; name that model"):
        curate.evaluate(ready, "plain_base", evals, model=MODEL, allow_val=True)
        curate.score(ready, Nll(), names={"nll": "again"}, models=ModelChoice("plain_base"))
    with pytest.raises(CurateError, match="there is no model 'shirt'"):
        curate.score(ready, Nll(), names={"nll": "again"}, models=replace(MODEL, name="shirt"))
