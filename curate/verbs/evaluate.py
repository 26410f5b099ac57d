"""`curate evaluate`: metrics of a run's model, or of any other model, on targets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from curate.arguments.trainings import evals_of, model_choice_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.metric import Metric
from curate.models.choice import ModelChoice
from curate.results import Result
from curate.runs.evaluation import EvalSpec, by_subtask, evaluate_model, questions
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
    evals: Sequence[EvalSpec | str],
    *,
    metrics: Sequence[Metric | str] = ("loss",),
    split: str = "test",
    shots: int = 0,
    limit: int = 0,
    average: Literal["micro", "macro"] = "micro",
    model: ModelChoice | str | None = None,
    allow_val: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    wait: float | None = None,
) -> Evaluated:
    """Evaluate the latest checkpoint of a run, and store the results.

    evals: metrics on targets, or targets' names, for which `metrics`, `split`, `shots`, `limit` and `average`
    (over questions, or over sub-tasks) say how.
    model: evaluate this model instead, stored under the name `run` as a run without training: a baseline. Existing
    results on the same questions are re-used. allow_val: allow the split val, which is used for selection. precision:
    of the matrix products of such a model, as in `curate train`; a run has its own.

    Raises CurateError for an unknown run, target or split, and for the split val unless that is allowed.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    how: dict[str, Any] = {"split": split, "shots": shots, "limit": limit, "average": average}
    ws, specs = workspace_of(ws, wait=wait), evals_of(evals, metrics, **how)
    if not specs:
        raise CurateError(
            "name a target to evaluate on: --target NAME, with --metric METHOD; `curate methods metric` lists them."
        )
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
                "methods": [eval_spec.metric.name for eval_spec in specs],
                "name": run,
                "model": name,
                "run": run,
            }
            with charged(ws.path, "evaluate", phase="evaluate", **columns) as meter, objective.precision():
                results = evaluate_model(ws, opened.evaluations, specs, lm, step, stamp, meter)
    return Evaluated(run, step, results, by_subtask(opened.evaluations, specs, step))


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
