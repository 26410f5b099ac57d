"""Learning curves against all FLOPs: points at marks, areas, gains; against sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.metrics.loss import Loss
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.pages.comparison import has_curves, page, plot_curves
from curate.runs.config import TrainingSpec
from curate.runs.curves import Curve, mean_curve, step_flops_of
from curate.runs.evaluation import EvalSpec
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from tests.conftest import SAMPLE, few_lines
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("curves")
    (folder / "pool.jsonl").write_text("\n".join(few_lines()[:48]))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(folder / "pool.jsonl")])
    for split in ("val", "test"):
        curate.target(ws, "facts", str(SAMPLE / f"targets/facts_{split}.jsonl"), split=split)
    return ws


KEY = "facts loss [limit=4]"
EVALS = [EvalSpec("facts", Loss(), limit=4)]
TRAINING = TrainingSpec(MODEL, Uniform(), TrainSettings(batch_size=8, lr=1e-3, steps=6))


def test_a_run_is_evaluated_at_marks_of_flops_also_when_it_is_resumed(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate.train(ws, "plain", TRAINING, evals=EVALS)
    spent = np.cumsum(step_flops_of(Run(ws, "plain")))
    every = spent[-1] / 2.5
    settings = replace(TRAINING.settings, eval_flops=every, checkpoint_every=1)
    marked = {int(np.argmax(spent >= every)) + 1, int(np.argmax(spent >= 2 * every)) + 1, 6}
    curate.train(ws, "marked", replace(TRAINING, settings=settings), evals=EVALS)
    assert {e["step"] for e in _evaluations(ws, "marked")} == marked

    begun = Run.commit

    def killed(self: Run, step: int, *more: object, **record: object) -> None:
        begun(self, step, *more, **record)  # type: ignore[arg-type]
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "commit", killed)
        curate.train(ws, "resumed", replace(TRAINING, settings=settings), evals=EVALS)
    curate.train(ws, "resumed", replace(TRAINING, settings=settings), evals=EVALS)
    assert {e["step"] for e in _evaluations(ws, "resumed")} == {s for s in marked if s > 2} | {6}


def _evaluations(ws: Workspace, run: str) -> list[dict[str, float]]:
    return [record["evaluation"] for record in Run(ws, run).evaluations.records().values()]


def test_curves_areas_and_gains_are_those_summed_by_hand(ws: Workspace, tmp_path: Path) -> None:
    curate.evaluate(ws, "base", EVALS, model=MODEL)
    settings = replace(TRAINING.settings, eval_every=2)
    for seed in range(2):
        curate.train(ws, f"arm_s{seed}", replace(TRAINING, settings=settings, seed=seed), evals=EVALS)
    found = curate.compare(ws, ["base", "arm_s0", "arm_s1"])
    (before,) = (line.quality[KEY] for line in found.lines if line.run == "base")
    assert found.budget == min(line.cost.total for line in found.lines if line.run != "base")
    for line in found.lines[1:]:
        curve, spent = line.curves[KEY], np.cumsum(step_flops_of(Run(ws, line.run)))
        values = {e["step"]: e["value"] for e in _evaluations(ws, line.run)}
        assert curve.flops == pytest.approx(spent[[1, 3, 5]], rel=1e-12)
        assert curve.value.tolist() == [values[2], values[4], values[6]]
        x, y = [0.0, *curve.flops], [before, *curve.value]
        by_hand = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(x, x[1:], y, y[1:], strict=False))
        own = curate.compare(ws, ["base", line.run]).arms[1]
        assert own.area[KEY].mean == pytest.approx(by_hand / x[-1], rel=1e-9)
        assert own.gain[KEY].mean == pytest.approx((before - y[-1]) / x[-1], rel=1e-12)
    half = curate.compare(ws, ["base", "arm_s0", "arm_s1"], budget=found.lines[1].curves[KEY].flops[0])
    first = half.lines[1].curves[KEY].value[0]
    assert half.lines[1].area[KEY] == pytest.approx((before + first) / 2, rel=1e-9)
    assert half.arms[1].area[KEY].n == 2 and has_curves(half)
    shown = page(half, "curves")
    assert "area" in shown and "gain per FLOP" in shown
    assert plot_curves(half).startswith(b"\x89PNG")


def test_without_the_model_as_it_was_there_are_curves_and_no_areas(ws: Workspace) -> None:
    curate.train(ws, "alone", replace(TRAINING, seed=7), evals=EVALS)
    found = curate.compare(ws, ["alone"])
    assert found.budget is None and not found.arms[0].area and found.lines[0].curves
    with pytest.raises(CurateError, match="a number above 0"):
        curate.compare(ws, ["alone"], budget=-1.0)


def test_areas_of_some_of_an_arm_s_runs_say_so_and_a_model_may_be_evaluated_under_two_names(ws: Workspace) -> None:
    curate.evaluate(ws, "base", EVALS, model=MODEL)
    other = EvalSpec("facts", Loss(), limit=3)
    curate.evaluate(ws, "again", [other], model=MODEL)
    for seed, evals in ((0, [*EVALS, other]), (1, EVALS)):
        curate.train(
            ws, f"part_s{seed}", replace(TRAINING, settings=replace(TRAINING.settings, steps=1), seed=seed), evals=evals
        )
    arm = next(arm for arm in curate.compare(ws, ["base", "again", "part_s0", "part_s1"]).arms if arm.name == "part")
    assert arm.area[KEY].n == 2 and "of 2 runs" not in arm.shown(KEY, "area")
    assert arm.shown("facts loss [limit=3]", "area").endswith("(1 of 2 runs)")
    assert arm.shown("facts loss [limit=3]", "gain").endswith("(1 of 2 runs)")


def test_values_of_an_earlier_version_of_a_metric_are_a_measure_of_their_own(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate.evaluate(ws, "early", EVALS, model=MODEL)
    monkeypatch.setattr(Loss, "version", 2)
    curate.train(ws, "late", replace(TRAINING, seed=5), evals=EVALS)
    found = curate.compare(ws, ["early", "late"])
    assert set(found.measures) == {KEY, f"{KEY}, earlier version"} and not found.arms[1].against
    assert any("evaluate RUN" in warning for warning in found.warnings)
    curate.evaluate(ws, "early", EVALS, model=MODEL)
    assert set(curate.compare(ws, ["early", "late"]).measures) == {KEY}


def test_the_effective_share_is_of_the_weights_that_there_are(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"text": f"{i} " + "word " * 300}) for i in range(3)))
    own = curate.open_workspace(tmp_path / "ws")
    curate.ingest(own, [str(tmp_path / "long.jsonl")])
    settings = TrainSettings(batch_size=8, steps=2, split=True)
    curate.train(own, "split", TrainingSpec(replace(MODEL, context=64), Uniform(), settings))
    (arm,) = curate.compare(own, ["split"]).arms
    assert arm.effective == pytest.approx(1.0)


def test_a_curve_holds_the_value_before_until_the_selection_is_paid_for_and_the_last_one_after_it() -> None:
    curve = Curve(np.array([4.0, 6.0]), np.array([1.0, 3.0]), before=5.0, paid=2.0)
    assert curve.at(np.array([0.0, 2.0, 3.0, 5.0, 9.0])).tolist() == [5.0, 5.0, 3.0, 2.0, 3.0]
    assert curve.area(8.0) == pytest.approx((2 * 5 + 2 * 3 + 2 * 2 + 2 * 3) / 8)
    assert curve.area(1.0) == 5.0  # what is paid for choosing teaches nothing yet
    assert curve.gain("lower") == pytest.approx(2 / 6) and curve.gain("higher") == pytest.approx(-2 / 6)
    unknown = Curve(np.array([4.0, 6.0]), np.array([1.0, 3.0]), before=None, paid=2.0)
    assert np.isnan(unknown.at(np.array([3.0]))).all() and unknown.area(8.0) is None and unknown.gain("lower") is None


def test_the_mean_curve_of_two_runs_is_over_all_their_evaluations() -> None:
    curves = [Curve(np.array([2.0, 4.0]), np.array(y), before=0.0, paid=0.0) for y in ([2.0, 4.0], [4.0, 4.0])]
    x, mean, error = mean_curve(curves)
    assert x.tolist() == [0.0, 2.0, 4.0] and mean.tolist() == [0.0, 3.0, 4.0]
    assert error.tolist() == pytest.approx([0.0, np.std([2, 4], ddof=1) / np.sqrt(2), 0.0])
