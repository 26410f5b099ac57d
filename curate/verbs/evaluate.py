"""`curate evaluate`: metrics of a run's model, or of any other model, on targets."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from curate.arguments.trainings import evals_of, model_choice_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.metric import Metric
from curate.models.choice import ModelChoice
from curate.results import Result
from curate.runs.evaluation import EvalSpec, by_subtask, evaluate_model, questions
from curate.runs.harness_results import attach as attach_file
from curate.runs.harness_results import store
from curate.store.commits import Parts
from curate.store.files import remove_leftovers
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.recipes import RunRecipe
from curate.store.run_record import Run, require_run
from curate.store.workspace import Workspace, __version__
from curate.tables.inputs import model_choice, model_of, model_recipe
from curate.training.settings import TrainSettings


@dataclass
class Evaluated(Result):
    """The values of the metrics: one row per EvalSpec, as in the table `evaluations`. subtasks: a row for every one of
    those targets that have several."""

    run: str
    step: int
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    subtasks: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    ws: AnyWorkspace,
    run: str,
    evals: Sequence[EvalSpec | str] = (),
    *,
    metrics: Sequence[Metric | str] = ("loss",),
    split: str = "test",
    shots: int = 0,
    limit: int = 0,
    average: Literal["micro", "macro"] = "micro",
    model: ModelChoice | str | None = None,
    allow_val: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    tasks: Sequence[str] = (),
    task_dir: str | os.PathLike[str] | None = None,
    attach: str | os.PathLike[str] | None = None,
    wait: float | None = None,
) -> Evaluated:
    """Evaluate the latest checkpoint of a run, and store the results.

    evals: metrics on targets, or targets' names, for which `metrics`, `split`, `shots`, `limit` and `average`
    (over questions, or over sub-tasks) say how.
    model: evaluate this model instead, stored under the name `run` as a run without training: a baseline. Existing
    results on the same questions are re-used. allow_val: allow the split val, which is used for selection. precision:
    of the matrix products of such a model, as in `curate train`; a run has its own.

    tasks: of lm-evaluation-harness, run as they are, by name: those in the folder `task_dir`, else those that come with
    it; `shots` (0: what the task says) and `limit` hold for them, too. attach: instead of evaluating anything, store
    the values in a JSON file that `lm_eval --output_path` wrote for the model of this run, as values of its latest
    checkpoint.

    Raises CurateError for an unknown run, target, split or task, for the split val unless that is allowed, and for a
    file that has no such values.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    how: dict[str, Any] = {"split": split, "shots": shots, "limit": limit, "average": average}
    ws, specs = workspace_of(ws, wait=wait), evals_of(evals, metrics, **how)
    if attach is not None:
        if specs or tasks or task_dir is not None or model or shots or limit:
            raise CurateError(
                "--attach stores values made elsewhere, and evaluates nothing; give only the run with it."
            )
        return _attached(ws, run, Path(attach))
    if shots < 0 or limit < 0:
        raise CurateError(f"--shots and --limit are 0 or more, not {shots} and {limit}.")
    if not specs and not tasks:
        raise CurateError(
            "name a target to evaluate on: --target NAME, with --metric METHOD; `curate methods metric` lists them. Or "
            "a task of lm-evaluation-harness: --task NAME."
        )
    manager = _manager(tasks, task_dir)
    for eval_spec in specs:
        _refuse_val(eval_spec, allow_val)
        questions(ws, eval_spec)
    chosen = model_of(ws, model_choice_of(model)) if model else None
    recipe = _as_it_is(ws, run, chosen) if chosen else None
    opened = Run(ws, run) if chosen else require_run(ws, run)
    from curate.models.language_model import LanguageModel
    from curate.training.objective import Objective

    with lock(ws, f"run {run}"):
        remove_leftovers(opened.folder, mine=True)
        recipe = opened.recipe or recipe or opened.require_recipe()
        checkpoint = opened.latest() if recipe.weighting else None
        choice = chosen or model_choice(recipe.model, ws.trusted)  # the device and the like are not stored
        with checkpoint.local() if checkpoint else nullcontext() as folder:
            dtype = "float32" if choice.dtype == "auto" else choice.dtype  # as in training
            lm = LanguageModel(replace(choice, name=str(folder or choice.name), dtype=dtype))
            if opened.recipe is None:  # only after the model has loaded
                opened.begin(recipe)
            settings = TrainSettings(**{"precision": precision, **recipe.settings})
            objective = Objective(lm, settings.in_bfloat16(lm.device.type))
            stamp = fingerprint(opened.stamp(checkpoint.step if checkpoint else 0), objective.arithmetic())
            step, name = checkpoint.step if checkpoint else 0, choice.name
            columns = {
                "methods": [*(eval_spec.metric.name for eval_spec in specs), *(["lm_eval"] if tasks else [])],
                "name": run,
                "model": name,
                "run": run,
            }
            with charged(ws.path, "evaluate", phase="evaluate", **columns) as meter, objective.precision():
                results = evaluate_model(ws, opened.evaluations, specs, lm, step, stamp, meter)
                if tasks:
                    results += _of_tasks(opened.evaluations, lm, tasks, manager, step, stamp, meter, shots, limit)
    return Evaluated(run, step, results, by_subtask(opened.evaluations, specs, step))


def _attached(ws: Workspace, name: str, path: Path) -> Evaluated:
    """The values of a file, as those of a run's latest checkpoint."""
    run = require_run(ws, name)
    with lock(ws, f"run {name}"):
        remove_leftovers(run.folder, mine=True)
        step = run.latest().step if run.require_recipe().weighting else 0
        return Evaluated(name, step, attach_file(run, path, step))


def _manager(tasks: Sequence[str], folder: str | os.PathLike[str] | None) -> Any:
    """The harness's tasks. Raises CurateError for a folder without tasks named, and for a task that is not there."""
    if not tasks:
        if folder is not None:
            raise CurateError("--task-dir is the folder of lm-evaluation-harness's tasks; add --task NAME.")
        return None
    from curate.models.harness import require_tasks, task_manager

    manager = task_manager(None if folder is None else Path(folder))
    require_tasks(manager, tasks)
    return manager


def _of_tasks(
    parts: Parts,
    lm: Any,
    tasks: Sequence[str],
    manager: Any,
    step: int,
    stamp: str,
    meter: Any,
    shots: int,
    limit: int,
) -> list[dict[str, Any]]:
    """Run the harness's tasks on a model, and store what it finds."""
    from curate.models.harness import harness_version, run_harness

    started = time.perf_counter()
    results, usage = run_harness(lm, tasks, manager, shots=shots or None, limit=limit)
    usage.seconds = time.perf_counter() - started
    meter.begin(sum(len(samples) for samples in results["samples"].values()))
    meter.add(usage)
    return store(parts, results, step, stamp, harness_version())


def _refuse_val(eval_spec: EvalSpec, allowed: bool) -> None:
    if eval_spec.split == "val" and not allowed:
        raise CurateError(
            f"the split val of '{eval_spec.target}' is used for selection; evaluate on its split test, or add "
            "--allow-val."
        )


def _as_it_is(ws: Workspace, name: str, model: ModelChoice) -> RunRecipe:
    """The recipe of a run without training. Raises CurateError if the name belongs to a different run."""
    ws.check_name(name, "run")
    recipe = RunRecipe(
        name=name,
        curate=__version__,
        model=model_recipe(model),
        manifest=None,
        selection=None,
        weighting=None,
        by=None,
        target=None,
        settings={},
        changed={},
        scores={},
        seed=0,
        samples=0,
        steps=0,
    )
    existing = Run(ws, name).recipe
    if existing is not None and (existing.weighting, existing.model) != (None, recipe.model):
        raise CurateError(f"the run '{name}' exists, and is not the model {model.name} as it is; choose another name.")
    return recipe
