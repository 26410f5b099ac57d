"""`curate train`: train a model on a manifest, or on the whole pool, with weights that can change during training.

Resumes from its latest checkpoint. Under `accelerate launch` or `torchrun` it is one of several processes, of which
only the first writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from curate.arguments.trainings import evals_of, training_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.metric import Metric
from curate.kinds.score import Target
from curate.kinds.weighting import Weighting
from curate.models.choice import seeded
from curate.runs.account import Trained
from curate.runs.config import TrainingSpec, refuse_unused
from curate.runs.driver import processes_of, run_training
from curate.runs.evaluation import EvalSpec, questions
from curate.runs.foreseen_training import foreseen_training, trainable_skeleton
from curate.runs.recorded_rates import RecordedRates
from curate.runs.samples import TrainingRows, rows_of
from curate.store.locks import lock
from curate.store.run_record import Run, run_behind
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.inputs import load_target, model_of
from curate.tables.run_costs import costs_of

UNIFORM = 0.98  # the effective share of samples above which a weighting is told to do nothing


def train(
    ws: AnyWorkspace,
    name: str,
    training: TrainingSpec | None = None,
    *,
    evals: Sequence[EvalSpec | str] = (),
    metrics: Sequence[Metric | str] = ("loss",),
    fresh: bool = False,
    dry_run: bool = False,
    flops_of: str | None = None,
    wait: float | None = None,
    **options: Any,
) -> Trained:
    """Train a model as the run `name`, resuming from its latest checkpoint if there is one.

    options: in place of `training`, the fields of a TrainingSpec (model="tiny", manifest="best", weighting="adapt",
    mask="few", stream="-") and the settings of TrainSettings (lr=1e-3, steps=10, or by Hugging Face's names).
    evals: metrics on targets, or targets' names, for which `metrics` are computed, on the split test; every
    `eval_every` steps and at the end. fresh: train beside the existing run of
    that name, and replace it when the new one is complete. flops_of: a run whose FLOPs are the budget (the setting
    `flops`), with those of its selection if flops_for=everything.

    Raises CurateError for a run of other settings under that name, a manifest whose samples are not in the pool,
    weights that are all zero, negative or NaN, or a target to evaluate on that lacks the split; CurateFailure if the
    loss diverges, naming the step and the last good checkpoint.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, evals = workspace_of(ws, pinned=True, wait=wait), evals_of(evals, metrics)
    training = training_of(ws, training, options)
    ws.check_name(name, "run")
    training = replace(
        training,
        model=model_of(ws, seeded(training.model, training.seed)),
        reference=model_of(ws, seeded(training.reference, training.seed)) if training.reference else None,
    )
    if flops_of is not None:
        training = _with_budget(ws, training, flops_of)
    _refuse_itself(ws, name, training)
    refuse_unused(training)
    rows = None
    if not training.stream:
        ws.require_pool()
        rows = rows_of(ws, training.manifest, training.by, training.allow_stale, training.seed)
    warnings = list(rows.warnings) if rows else []
    target = load_target(ws, training.target) if training.target else None
    for spec in evals:
        questions(ws, spec)
    if dry_run:
        if rows is None:
            raise CurateError("what a stream holds is not known beforehand, so there is no --dry-run of it.")
        return Trained(name, warnings=warnings, planned=_planned(ws, rows, training, target))
    result, is_main = _train(ws, name, training, rows, target, evals, fresh)
    result.warnings += warnings
    result.folder = str(Run(ws, name).latest().folder)
    if is_main and training.settings.keep_weights:
        result.by_epoch, result.by_source = _diagnostics(ws, name, training.stream is None)
        if not _is_constant(training.weighting):
            result.warnings += _without_effect(result.by_epoch)
    return result


def _with_budget(ws: Workspace, training: TrainingSpec, other: str) -> TrainingSpec:
    """The training with another run's FLOPs as its budget. Raises CurateError if that is not finished, or if the
    training has a length already."""
    settings = training.settings
    if settings.flops or settings.steps:
        given = "flops" if settings.flops else "steps"
        raise CurateError(f"--flops-of {other} and {given}={getattr(settings, given):g} both say how long; give one.")
    ws.require("run", other)
    run = Run(ws, other)
    if not run.is_complete():
        raise CurateError(f"the run '{other}' is not finished, so that its FLOPs are not known; train it to its end.")
    costs, lost = costs_of(ws, {other: run.require_recipe()}, {other: other})
    if lost:
        raise CurateError(f"the FLOPs of '{other}' are not known: {lost}")
    cost = costs[other]
    flops = cost.total if settings.flops_for == "everything" else cost.train + cost.online
    return replace(training, settings=replace(settings, flops=flops))


def _refuse_itself(ws: Workspace, name: str, training: TrainingSpec) -> None:
    """Raises CurateError if a run would start from, or use as a reference, the model that it trains."""
    for model in (training.model, training.reference):
        if model and run_behind(ws, model.name) == name:
            raise CurateError(
                f"the run '{name}' cannot start from itself, or use itself as a reference; train under a new name."
            )


def _train(
    ws: Workspace,
    name: str,
    training: TrainingSpec,
    rows: TrainingRows | None,
    target: Target | None,
    evals: Sequence[EvalSpec],
    fresh: bool,
) -> tuple[Trained, bool]:
    """Train the run in all processes. Returns its summary, and whether this process is the one that writes."""
    processes = processes_of(training.model)
    is_main = processes.is_main_process
    if training.settings.count_flops and processes.num_processes > 1:
        raise CurateError("count_flops measures one process; leave it out, or train in one.")
    with ExitStack() as stack:
        run = Run(ws, name, beside=fresh and name in ws.run_names())
        processes.wait_for_everyone()  # all have checked the existing runs before the first one writes
        if is_main:
            run = replace(run, held=stack.enter_context(lock(ws, f"run {name}")))
        result = run_training(run, training, rows, target, processes, evals=evals)
        if is_main and run.beside:
            run.swap()
        processes.wait_for_everyone()
    return result, is_main


def _diagnostics(ws: Workspace, name: str, pooled: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """ADAPT's diagnostics: the effective proportion of the data (mean weight), the weights' spread, the effective share
    of samples (sum w)^2 / (n sum w^2), and the quantiles of the quantity that the weights were computed from, by epoch;
    and the effective distribution over sources."""
    trained_rows = f"(SELECT * FROM trained WHERE run = '{name}')"
    epochs = f"""SELECT epoch, count(*) AS samples, avg(weight) AS mean_weight,
        min(weight) AS least, max(weight) AS most, stddev_pop(weight) AS spread,
        sum(weight)^2 / (count(*) * sum(weight^2)) AS effective_share, quantile_cont(measure, 0.05) AS measure_5,
        median(measure) AS measure_50, quantile_cont(measure, 0.95) AS measure_95
        FROM {trained_rows} GROUP BY epoch ORDER BY epoch"""
    sources = f"""SELECT source, count(*) / sum(count(*)) OVER () AS share,
        sum(t.weight) / sum(sum(t.weight)) OVER () AS weighted_share
        FROM {trained_rows} t JOIN pool USING (row) GROUP BY source ORDER BY weighted_share DESC, source"""
    return list(sql.rows(ws, epochs, [name])), list(sql.rows(ws, sources, [name])) if pooled else []


def _is_constant(weighting: Weighting) -> bool:
    """Whether all weights are meant to be the same."""
    settings = weighting.settings()
    bounds = settings.get("clip_low"), settings.get("clip_high")
    return weighting.name == "uniform" or None not in bounds and bounds[0] == bounds[1]


def _without_effect(by_epoch: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence if the weights hardly differ."""
    shares = [row["effective_share"] for row in by_epoch if row["effective_share"]]
    if not shares or min(shares) <= UNIFORM:
        return []
    return [
        f"this weighting is uniform in effect: the effective share of samples, (sum w)^2 / (n sum w^2), is "
        f"{min(shares):.3f} or more in every epoch, and 1 is plain training"
    ]


def _planned(ws: Workspace, rows: TrainingRows, training: TrainingSpec, target: Target | None) -> dict[str, Any]:
    """A training's size, FLOPs and bytes, and its seconds at the rates that the ledger has, None if it has none."""
    choice, weighting = training.model, training.weighting
    more = {"seed": training.seed, "reference": training.reference, "target": target}
    planned = foreseen_training(ws, rows, choice, training.settings, weighting, **more)
    device = trainable_skeleton(choice, training.settings).usage().device
    row = {"rows": planned["samples"], "flops": planned["flops"], "device": device}
    return {**planned, "seconds": RecordedRates(ws).seconds([weighting.name], choice.name, ("train",), row)}
