"""`curate trial`: train on random subsets of the pool, to measure which scores foretell what training gives.

pool ── K subsets ── a training each, from one model ── the loss of every target example ── the table `trials`

Every training is one small part, written when it has ended, so a killed trial goes on with those that are left. What
the trainings say of a score is `curate foretell`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curate.arguments.methods import method_of
from curate.arguments.trainings import model_choice_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.executor import Executor, Tasks
from curate.kinds.weighting import Weighting
from curate.methods.executors.local import Local
from curate.models.choice import ModelChoice
from curate.numerics.datamodels import ceiling, of_mean, reliability, standard_error
from curate.progress import Progress
from curate.results import Result
from curate.runs.config import shaping
from curate.runs.trial import TRAINED, TrialSpec, TrialWorker, drawn, opened, spec_of
from curate.store.commits import Parts
from curate.store.contents import enter
from curate.store.files import remove_leftovers
from curate.store.ledger import Meters
from curate.store.locks import lock
from curate.store.recipes import write_recipe
from curate.store.trial_recipe import TrialRecipe
from curate.store.workspace import Workspace, __version__, pool_fingerprint
from curate.tables import sql
from curate.tables.inputs import load_target, method_recipe, model_of, model_recipe, pool_recipe, target_fingerprint
from curate.tables.trials import StoredTrial, gains_of
from curate.training.settings import TrainSettings


@dataclass
class Trialed(Result):
    """The result of a trial. samples: that may be drawn; left_out: reason -> samples that cannot be trained on. base,
    mean, spread: the target's mean loss before training, over the subsets, and its standard deviation over them.
    reliability: the share of that variance that is the subset's and not the seed's (None: no subset was repeated).
    error: the standard error of a rank correlation over so many subsets."""

    name: str
    trainings: int
    trainings_now: int = 0
    subsets: int = 0
    samples: int = 0
    base: float | None = None
    mean: float | None = None
    spread: float | None = None
    reliability: float | None = None
    error: float | None = None
    flops: float = 0.0
    warnings: list[str] = field(default_factory=list)


def trial(
    ws: AnyWorkspace,
    name: str,
    spec: TrialSpec | None = None,
    *,
    model: ModelChoice | str | None = None,
    target: str | None = None,
    weighting: Weighting | str = "uniform",
    settings: TrainSettings | None = None,
    of: str = "",
    executor: Executor | str | None = None,
    wait: float | None = None,
    **fields: Any,
) -> Trialed:
    """Draw random subsets of the pool, train on each from the same model, and store every target example's loss.

    spec: what the trial is, or the rest in its place: model, target, weighting, settings, and the fields of a TrialSpec
    (subsets=64, share=0.5). of: a trial that kept its checkpoints (keep_checkpoints=True), on which another target's
    losses are measured: `target`, and `split`, alone are given. The same call goes on with a killed trial. executor:
    runs the trainings (default: local); the table does not depend on it.

    Raises CurateError for another trial under that name, or one whose pool is not what it was, a target without the
    split, or samples none of which can be trained on; CurateFailure if a loss diverges.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, pinned=True, wait=wait)
    if of:
        spec = _measured_on(ws, of, target, spec, model, fields)
    if spec is None:
        if model is None or target is None:
            raise CurateError(
                "a trial needs --model, which every training starts from, and --target, whose loss tells."
            )
        chosen = model_choice_of(model)
        spec = TrialSpec(chosen, target, method_of(Weighting, weighting), settings or TrainSettings(), **fields)
    spec = replace(spec, model=model_of(ws, spec.model))
    ws.check_name(name, "trial")
    ws.require_pool()
    load_target(ws, spec.target, (spec.split,))
    stored = StoredTrial(ws, name)
    runs_on = method_of(Executor, executor) if executor is not None else Local()
    with ExitStack() as stack:
        stack.enter_context(lock(ws, f"trial {name}"))
        remove_leftovers(stored.folder, mine=True)
        columns = {"methods": [spec.weighting.name], "name": name, "model": spec.model.name}
        meters = Meters(ws.path, "trial", {phase: phase for phase in TRAINED}, stack, **columns)
        if stored.recipe is None:
            _begin(stored, spec, meters)
        else:
            _refuse_other(stored, spec)
        result = _run(stored, spec, runs_on, meters)
    return _summed_up(stored, result)


def _measured_on(
    ws: Workspace, of: str, target: str | None, spec: TrialSpec | None, model: Any, fields: dict[str, Any]
) -> TrialSpec:
    """What a trial on another's checkpoints is. Raises CurateError if more than the target is given."""
    if target is None or spec is not None or model is not None or fields.keys() - {"split"}:
        raise CurateError(
            f"a trial on the checkpoints of '{of}' has its model, its subsets and its settings; give --target, and "
            "--split if it is not val, and nothing else."
        )
    return spec_of(ws, of, target, fields.get("split", "val"))


def _begin(stored: StoredTrial, spec: TrialSpec, meters: Meters) -> None:
    """Draw the subsets of the samples that can be trained on, and measure the model before any training."""
    from curate.training.subsets import SubsetTrainer

    ws = stored.ws
    source = StoredTrial(ws, spec.of) if spec.of else None
    rows = source.rows if source else _rows(ws, spec.where)
    training = opened(ws, stored.name, spec, rows, meters)
    if round(spec.share * len(training.rows)) < 1:
        raise CurateError(
            f"--share {spec.share:g} of {len(training.rows)} samples is none; a subset has one or more: a larger share."
        )
    sources = None
    if spec.stratify and source is None:
        source_of = sql.fetch(ws, "SELECT source FROM samples ORDER BY row")["source"].to_numpy(zero_copy_only=False)
        sources = np.unique(source_of[training.rows].astype(str), return_inverse=True)[1]
    members = source.members if source else drawn(len(training.rows), sources, spec)
    trainer = SubsetTrainer(training.model, training.data, spec.settings, spec.weighting, training.asked)
    base, usage = trainer.base()
    meters.charge("evaluate", len(base), usage)
    parts = stored.drawn
    seeds = [spec.seed + 1000 * i for i in range(spec.subsets)]
    packed = [row.tobytes() for row in np.packbits(members, axis=1)]
    parts.commit("rows", pa.table({"row": training.rows}))
    parts.commit("members", pa.table({"seed": seeds, "samples": members.sum(1), "members": packed}))
    parts.certify()
    write_recipe(stored.folder / "trial.json", _recipe(ws, spec, len(training.rows), base))
    enter(ws, "trial", stored.name)


def _rows(ws: Workspace, where: str) -> np.ndarray:
    """The rows of the pool that satisfy a condition. Raises CurateError if none does."""
    condition = f" WHERE ({where}\n)" if where else ""
    rows = sql.fetch(ws, f"SELECT row FROM samples{condition} ORDER BY row")["row"].to_numpy()
    if not len(rows):
        raise CurateError(f"no sample satisfies --where {where}.")
    return rows


def _recipe(ws: Workspace, spec: TrialSpec, samples: int, base: np.ndarray) -> TrialRecipe:
    return TrialRecipe(
        curate=__version__,
        model=model_recipe(spec.model),
        target=spec.target,
        split=spec.split,
        target_fingerprint=target_fingerprint(ws, spec.target, (spec.split,)),
        where=spec.where,
        stratify=spec.stratify,
        subsets=spec.subsets,
        share=spec.share,
        repeats=spec.repeats,
        repeated=spec.repeated,
        weighting=method_recipe(spec.weighting),
        settings=shaping(spec.settings),
        seed=spec.seed,
        pool=pool_recipe(ws, ws.shards()),
        samples=samples,
        base=[None if np.isnan(value) else float(value) for value in base],
        keep_checkpoints=spec.keep_checkpoints,
        of=spec.of,
    )


def _refuse_other(stored: StoredTrial, spec: TrialSpec) -> None:
    """Raises CurateError if the trial of that name is another one, or the pool that it was drawn from has changed."""
    ws, recipe = stored.ws, stored.require_recipe()
    if pool_fingerprint(ws.shards()[: recipe.pool.shards]) != recipe.pool.fingerprint:
        raise CurateError(
            f"the pool is not what the trial '{stored.name}' was drawn from; make the trial under another name."
        )
    base = np.array([np.nan if value is None else value for value in recipe.base])
    ours, theirs = _recipe(ws, spec, recipe.samples, base).as_json(), recipe.as_json()
    besides = ("curate", "pool")  # samples that were ingested since are in no subset
    differing = [k for k in sorted({*ours, *theirs} - {*besides}) if ours.get(k) != theirs.get(k)]
    if differing:
        told = ", ".join(f"{key} {theirs.get(key)!r}, not {ours.get(key)!r}" for key in differing[:3])
        raise CurateError(f"the trial '{stored.name}' is another one ({told}); make yours under another name.")


def _run(stored: StoredTrial, spec: TrialSpec, runs_on: Executor, meters: Meters) -> Trialed:
    """Train on every subset that has not been trained on."""
    every = stored.trainings()
    done = set(stored.losses.names())
    todo = [training for training in every if training.name not in done]
    result = Trialed(stored.name, len(every), len(todo), spec.subsets, len(stored.rows))
    worker = TrialWorker(str(stored.ws.path), stored.name, spec, stored.ws.trusted)
    tasks, first = Tasks(todo), "evaluate" if spec.of else "train"
    shown = Progress(f"trial {stored.name}", len(every), done=len(every) - len(todo), noun="trainings")
    with closing(runs_on.open()) as workers, _certified(stored.losses), shown:
        # What is begun is charged, so that a training that is killed and done again is counted twice.
        for training, outcome in workers.run(worker.run_task, tasks, lambda task: meters[first].begin(task.samples)):
            for phase, usage in outcome.result.items():
                meters.charge(phase, training.samples if phase != first else 0, usage)
                result.flops += usage.flops
            shown.finished(1)
    return result


@contextmanager
def _certified(parts: Parts) -> Iterator[None]:
    """What is committed in the body is on the folder's list afterwards, however it ends."""
    try:
        yield
    finally:
        parts.certify()


def _summed_up(stored: StoredTrial, result: Trialed) -> Trialed:
    """The result with what the trainings gave."""
    recipe = stored.require_recipe()
    gains, repeats = gains_of(stored)
    base = [value for value in recipe.base if value is not None]
    mean = -np.nanmean(gains, axis=1)
    result.base, result.mean, result.spread = float(np.mean(base)), float(mean.mean()), float(mean.std(ddof=1))
    once = reliability(repeats)
    result.reliability = None if np.isnan(once) else once
    result.error = standard_error(recipe.subsets)
    most = 1.0 if np.isnan(once) else ceiling(of_mean(once, recipe.repeats))
    if 2 * result.error > most:
        result.warnings.append(
            f"over {recipe.subsets} subsets a rank correlation is {result.error:.2f} off by chance, and the best that "
            f"any score can have here is {most:.2f}, so none can be told from chance; take more subsets, under another "
            "name"
        )
    if result.reliability is not None and result.reliability < 0.5:
        needed = of_mean(once, recipe.repeats)
        result.warnings.append(
            f"{1 - once:.0%} of what differs between subsets is the seed's (the reliability of one training is "
            f"{once:.2f}, of {recipe.repeats} {needed:.2f}): train longer, on smaller shares, or with a larger lr"
        )
    if result.mean is not None and abs(result.base - result.mean) < result.spread:
        result.warnings.append(
            f"training moves the target's loss from {result.base:.4f} to {result.mean:.4f}, less than subsets differ "
            f"({result.spread:.4f}): the model may know the target already, or learn nothing at this rate"
        )
    return result
