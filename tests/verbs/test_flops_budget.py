"""`curate train --flops` and `--flops-of`: arms that cost the same."""

from __future__ import annotations

from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt import Adapt
from curate.runs.recorder import Recorder
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.tables.run_costs import costs_of
from curate.training.settings import TrainSettings
from tests.support.narrow import NARROW

SHORT: dict[str, Any] = {"model": NARROW, "batch_size": 8, "lr": 1e-3}


def cost(ws: Workspace, name: str) -> Any:
    return costs_of(ws, {name: Run(ws, name).require_recipe()}, {name: name})[0][name]


def test_another_run_s_flops_with_and_without_its_selection(sums_ws: Workspace) -> None:
    curate.score(sums_ws, "nll", models=NARROW)
    curate.select(sums_ws, "few", Top(), curate.SelectionSpec(by="nll", top=24))
    whole = curate.train(sums_ws, "whole", epochs=1.0, **SHORT)
    alike = curate.train(sums_ws, "alike", manifest="few", flops_of="whole", **SHORT)
    step = whole.flops / whole.steps
    spent = cost(sums_ws, "alike")
    assert spent.train <= whole.flops < spent.train + 2 * step and spent.prep > 0
    paid = curate.train(sums_ws, "paid", manifest="few", flops_of="whole", flops_for="everything", **SHORT)
    assert paid.steps < alike.steps
    assert cost(sums_ws, "paid").total <= whole.flops < cost(sums_ws, "paid").total + 2 * step
    again = curate.train(sums_ws, "again", flops_of="paid", flops_for="everything", **SHORT)
    assert cost(sums_ws, "again").total <= cost(sums_ws, "paid").total < cost(sums_ws, "again").total + 2 * step
    assert again.steps and curate.train(sums_ws, "paid", manifest="few", flops_of="whole", flops_for="everything",
                                        **SHORT).steps_now == 0  # fmt: skip
    (row,) = curate.sql(sums_ws, "SELECT sum(flops) AS flops FROM metrics WHERE run = 'alike'")
    assert row["flops"] == pytest.approx(spent.train)


def test_its_steps_are_counted_once(sums_ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is gone on with has the steps that it began with, whatever the ledger has since."""
    whole = curate.train(sums_ws, "whole", epochs=1.0, **SHORT)
    budget = {"flops": whole.flops * 0.6, "flops_for": "everything", "checkpoint_every": 2}
    steps = curate.train(sums_ws, "run", **budget, **SHORT).steps
    assert 2 < steps < whole.steps
    run = Run(sums_ws, "stopped")

    def stop(self: Any, last: bool, keep: int, real: Any = Recorder.commit) -> None:
        real(self, last, keep)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("curate.runs.recorder.Recorder.commit", stop)
        curate.train(sums_ws, "stopped", **budget, **SHORT)
    assert run.require_recipe().steps == steps and not run.is_complete()
    monkeypatch.setattr("curate.training.budget.Budget.steps_within", None)
    assert curate.train(sums_ws, "stopped", **budget, **SHORT).steps == steps
    assert run.is_complete()


def test_what_it_refuses(sums_ws: Workspace) -> None:
    for said, more in (
        (r"the first step takes .* FLOPs, more than this budget", {"flops": 10.0}),
        (r"flops is|setting flops of the training is 0 or more", {"flops": -1.0}),
        (r"both say how long to train; give one", {"flops": 1e12, "steps": 3}),
        (r"both say how long; give one", {"flops_of": "x", "steps": 3}),
        (r"has no run 'x'", {"flops_of": "x"}),
    ):
        with pytest.raises(CurateError, match=said):
            curate.train(sums_ws, "run", **more, **SHORT)
        assert "run" not in sums_ws.run_names()  # so that the same name can be trained with a better budget
    planned = curate.train(sums_ws, "run", flops=3e10, dry_run=True, **SHORT).planned
    assert planned is not None and planned["flops"] == pytest.approx(3e10, rel=0.05) and planned["steps"] > 1


def test_a_dry_run_refuses_a_budget_below_a_step(sums_ws: Workspace) -> None:
    with pytest.raises(CurateError, match="a step takes about"):
        curate.train(sums_ws, "run", flops=1e4, dry_run=True, **SHORT)


def test_weights_that_all_saturate_are_told(sums_ws: Workspace) -> None:
    for weighting, told in ((Adapt(tau=1e-4), True), (Adapt(clip_low=0.5, clip_high=0.5), False)):
        training = curate.TrainingSpec(
            curate.ModelChoice(NARROW), weighting, TrainSettings(steps=2, batch_size=8), target="arithmetic"
        )
        done = curate.train(sums_ws, f"weighed_{told}".lower(), training)
        assert any("uniform in effect" in warning for warning in done.warnings) == told


def test_weights_that_hardly_differ_are_told(sums_ws: Workspace) -> None:
    for name, tau, told in (("flat", 50.0, True), ("sharp", 0.001, False)):
        training = curate.TrainingSpec(
            curate.ModelChoice(NARROW), Adapt(tau=tau, center="cosine"), TrainSettings(steps=3, batch_size=8),
            target="arithmetic",
        )  # fmt: skip
        done = curate.train(sums_ws, name, training)
        assert any("uniform in effect" in warning for warning in done.warnings) == told
        (epoch,) = done.by_epoch
        assert (epoch["effective_share"] > 0.98) == told and epoch["spread"] > 0
