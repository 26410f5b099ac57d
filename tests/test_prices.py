"""What a run of the workspace that others look at costs those others; and runs that are named as models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.judging import Judge
from curate.metrics.loss import Loss
from curate.models.load import ModelChoice
from curate.plans import Training
from curate.scores.davir import Davir
from curate.scores.graddot import Graddot
from curate.scores.nll import Nll
from curate.scores.rho import Rho
from curate.selectors.random import Random
from curate.selectors.top import Top
from curate.stages.compare import Compared
from curate.stages.select import Choice
from curate.training.settings import TrainSettings
from curate.weightings.rho_weight import RhoWeight
from curate.weightings.uniform import Uniform
from curate.workspace import Workspace
from tests.conftest import SAMPLE

TINY = ModelChoice("tiny")
SHORT = TrainSettings(steps=2, batch_size=8, lr=1e-3)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A reference, whose own choice was scored; then what was chosen by looking at it in three ways, and without."""
    folder = tmp_path_factory.mktemp("prices")
    (folder / "pool.jsonl").write_text("\n".join((SAMPLE / "pool/school.jsonl").read_text().splitlines()[:200]))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(folder / "pool.jsonl")])
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    curate.score(ws, Nll(), models=TINY)
    curate.select(ws, "likely", Top(), Choice(by="-nll", top=16))
    curate.train(ws, "teacher", Training(TINY, Uniform(), SHORT, manifest="likely"))
    curate.score(ws, Rho(), Davir(), models={"base": TINY, "reference": ModelChoice("teacher")})
    curate.score(ws, Graddot(), target="arithmetic", checkpoints=["teacher"])
    curate.select(ws, "learnable", Top(), Choice(by="rho", top=16))
    curate.select(ws, "aligned", Top(), Choice(by="graddot_arithmetic", top=16))
    curate.select(ws, "chance", Random(), Choice(top=16))
    for run, manifest in (("learner", "learnable"), ("gradient", "aligned"), ("plain", "chance")):
        curate.train(ws, run, Training(TINY, Uniform(), SHORT, manifest=manifest))
    weighed = Training(TINY, RhoWeight(), SHORT, manifest="chance", reference=ModelChoice("teacher"))
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
    further = Training(ModelChoice("teacher"), Uniform(), SHORT, manifest="aligned")
    curate.train(ready, "further", further)
    cost = costs(curate.compare(ready, ["further", "gradient"]))
    assert cost["gradient"].prep - cost["further"].prep == pytest.approx(costs(curate.compare(ready, ["teacher"]))[
        "teacher"].total)  # fmt: skip


def test_a_reference_that_was_dropped_or_trained_anew_is_paid_for_still(ready: Workspace) -> None:
    before = costs(curate.compare(ready, ["learner", "weighed"]))
    again = Training(TINY, Uniform(), SHORT, manifest="learnable")  # chosen by its own earlier self
    curate.train(ready, "teacher", again, fresh=True)
    its = costs(curate.compare(ready, ["learner", "weighed", "teacher"]))
    for run in ("learner", "weighed"):
        assert its[run].prep == pytest.approx(before[run].prep - passes(ready, "nll"))  # of its choice nobody knows now
    assert its["teacher"].prep > its["learner"].prep - passes(ready, "rho") > 0
    curate.drop(ready, "teacher")
    assert costs(curate.compare(ready, ["weighed"]))["weighed"].prep == its["weighed"].prep


def test_a_run_is_a_model_by_its_name(ready: Workspace, cli: Any) -> None:
    curate.train(ready, "short", Training(TINY, Uniform(), SHORT, manifest="chance"))
    judges = [Judge("arithmetic", Loss(), "val", limit=4)]
    own = curate.evaluate(ready, "short", judges, allow_val=True).evaluations[0]["value"]
    as_it_is = curate.evaluate(ready, "as_short", judges, model=ModelChoice("short"), allow_val=True)
    assert as_it_is.evaluations[0]["value"] == own
    scored = cli("score", "nll", "--name", "nll_short", "--model", "short", ws=ready)
    assert scored.returncode == 0, scored.stderr
    (row,) = curate.sql(ready, "SELECT avg(nll_short) AS now, avg(nll) AS before FROM samples")
    assert row["now"] != row["before"]
    with pytest.raises(CurateError, match="the run 'plain_base' is the model tiny as it was; name that model"):
        curate.evaluate(ready, "plain_base", judges, model=TINY, allow_val=True)
        curate.score(ready, Nll(), names={"nll": "again"}, models=ModelChoice("plain_base"))
    with pytest.raises(CurateError, match="there is no model 'shirt'"):
        curate.score(ready, Nll(), names={"nll": "again"}, models=replace(TINY, name="shirt"))
