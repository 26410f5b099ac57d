"""`curate audit`: does a selector that wins today harm the stages that come after?

    model ── stage 1: score, select, train ── evaluate on all targets ─┬─ stage 2 … ── stage T ── scorecard
                                                                       └─ a short branch on stage 2's samples

Every selector, with every seed, follows its own path through the stages; a cell is one stage of one path. The results
of a cell are one small file, written when all of it is known, so a killed audit resumes at the cell that it had
reached, and re-uses what the verbs of that cell had stored. One model is in memory at a time; of each path only the
latest model is kept. A cell that failed is reported, and retried by the next call.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.models.choice import ModelChoice
from curate.models.load import save_plain
from curate.numerics.long_horizon.scorecard import Scorecard
from curate.numerics.long_horizon.scorecard import rows as rows_of_level
from curate.numerics.long_horizon.updates import drift
from curate.progress import Progress
from curate.results import Result, Rows
from curate.runs import audit_measured as measured_by
from curate.runs.audit_checks import Checked, begin, check, sum_up
from curate.runs.audit_pools import mixed_pool, remember, replayed, stage_pool, working_copy
from curate.runs.audit_spec import PAST, PROBE, Audit, Contender, Scoring
from curate.runs.audit_toml import read_plan
from curate.runs.carried import carry
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.model_updates import update_products
from curate.store.audit_recipe import BASE
from curate.store.encoding import read_json, write_json
from curate.store.files import remove_tree, replace_tree
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.workspace import Workspace, open_workspace
from curate.tables.audit_cards import card_of
from curate.tables.inputs import by_rule
from curate.verbs.evaluate import evaluate
from curate.verbs.score import score
from curate.verbs.select import SelectionSpec, select
from curate.verbs.train import train


@dataclass
class Audited(Result):
    """The result of an audit. sizes: samples of each stage. cells, cells_now: in total, and computed by this call."""

    name: str
    sizes: list[int]
    cells: int = 0
    cells_now: int = 0
    card: Scorecard | None = None
    warnings: list[str] = field(default_factory=list)
    planned: dict[str, float] | None = None

    def _tables(self) -> dict[str, Rows]:
        return {"now": rows_of_level(self.card, "now"), "later": rows_of_level(self.card, "later")} if self.card else {}


def audit(
    ws: AnyWorkspace,
    name: str,
    plan: Audit | str | os.PathLike[str],
    *,
    fresh: bool = False,
    dry_run: bool = False,
    wait: float | None = None,
) -> Audited:
    """Take every selector through the stages, measure its immediate and later effects, and summarise them.

    plan: a plan, or the path of one in TOML.

    The same call resumes a killed one; selectors and seeds may be added. fresh: start again, beside the audit of that
    name, and replace it when the new one is complete.

    Raises CurateError for stages that share samples or have fewer than the budget, a target without the required
    splits, a name that is taken, or an audit of other settings or data under that name. A failure in one cell (such as
    a diverging loss) ends that selector's path for that seed, is reported, and does not affect the others; the next
    call retries it. wait: seconds to wait for what another process writes; default: as `ws` was opened.
    """
    ws = workspace_of(ws, wait=wait)
    plan = read_plan(Path(plan), trusted=ws.trusted) if isinstance(plan, str | os.PathLike) else plan
    ws.check_name(name, "audit")
    if not isinstance(ws.path, Path):
        raise CurateError("an audit works in folders of this machine; take a workspace on its disk.")
    ws.require_pool()
    plan = replace(plan, model=by_rule(ws, plan.model))
    checked, paths = check(ws, plan), plan.paths()
    result = Audited(name, checked.sizes, len(plan.stages) * len(paths) + 1)
    if dry_run:
        trainings = len(paths) * (len(plan.stages) + (len(plan.stages) - 1) * bool(plan.probe.steps))
        return replace(result, planned={"cells": result.cells, "trainings": trainings})
    final = ws.path / "audits" / name
    folder = ws.path / "audits" / f".{name}.fresh" if fresh and final.exists() else final
    with lock(ws, f"audit {name}"):
        try:
            begin(folder, plan, checked)
        except CurateError:
            if folder == final:
                raise
            remove_tree(folder)  # left by an earlier, interrupted --fresh
            begin(folder, plan, checked)
        grid = _Grid(ws, folder, plan, checked)
        grid.retry()
        done_before = grid.done()
        grid.base()
        with Progress(f"audit {name}", len(paths), noun="ways", listens=False) as shown:
            for contender, seed in paths:
                grid.walk(contender, seed)
                shown.finished(1)
        result.cells_now = len(grid.done() - done_before)
        shutil.rmtree(folder / "work", ignore_errors=True)
        if folder != final:
            replace_tree(folder, final, marker="audit.json")
        sum_up(final, plan)
    result.card = card_of(ws, name)
    assert result.card is not None
    result.warnings = result.card.missing
    return result


class _Grid:
    """The cells of one audit, in its folder."""

    def __init__(self, ws: Workspace, folder: Path, plan: Audit, checked: Checked):
        self.ws, self.folder, self.plan, self.checked = ws, folder, plan, checked

    def done(self) -> set[str]:
        """The names of the cells that have results."""
        return {path.stem for path in (self.folder / "cells").glob("*.json")}

    def retry(self) -> None:
        """Remove failed cells, so that they are computed again: the model before them is still stored."""
        for path in (self.folder / "cells").glob("*.json"):
            if read_json(path)["error"]:
                path.unlink()

    def _cell(self, path: str, stage: int) -> Path:
        return self.folder / "cells" / f"{path}-t{stage}.json"

    def _model(self, path: str, stage: int) -> ModelChoice:
        """The model of a path after a stage; before the first stage it is the same for all paths."""
        folder = self.folder / "models" / (f"{path}-t{stage}" if stage else BASE)
        model = self.plan.model  # in bfloat16 a stage's update would be lost to rounding
        dtype = "float32" if model.dtype == "auto" else model.dtype
        return replace(model, name=str(folder.absolute()), dtype=dtype)

    def _begun(self, path: str, stage: int) -> tuple[ModelChoice, str | None]:
        """What a training after a stage begins with: a model, and the adapter that is carried on from that stage."""
        if not self.plan.carries:
            return self._model(path, stage), None
        carried = Path(self._model(path, stage).name) / "carried"
        return self._model("", 0), str(carried) if stage else None

    def _pool(self, stage: int) -> Path:
        return stage_pool(self.ws, self.plan, self.folder / "stages" / f"t{stage}", stage)

    def _bench(self, path: str, stage: int) -> Workspace:
        """The workspace of a cell: stage 1 is shared by all paths, since they start with the same model."""
        pool = self._pool(stage)
        return open_workspace(pool if stage == 1 else working_copy(pool, self.folder / "work" / f"{path}-t{stage}"))

    # --- the model before ------------------------------------------------------------------------------------

    def base(self) -> None:
        """Save the initial model in the layout of the later ones, and evaluate and score with it."""
        folder = Path(self._model("", 0).name)
        if not (folder / "complete").exists():
            save_plain(self.plan.model, folder)
            (folder / "complete").touch()
        cell = self._cell(BASE, 0)
        if not cell.exists():
            bench = self._bench(BASE, 1)
            precision = self.plan.settings.precision
            evaluations = evaluate(
                bench, BASE, self._evals(), model=self._model("", 0), precision=precision
            ).evaluations
            self._commit(cell, BASE, 0, 0, measured_by.performance(evaluations, self.plan.metric))
        for contender in self.plan.contenders:  # first, so that no cell is charged for them: all paths share them
            self._score(self._bench(BASE, 1), contender, self._model("", 0), past=False)

    def _evals(self) -> list[EvalSpec]:
        return [EvalSpec(target, self.plan.metric, limit=self.plan.limit) for target in self.plan.targets]

    # --- one way through the stages --------------------------------------------------------------------------

    def walk(self, contender: Contender, seed: int) -> None:
        """Take one selector with one seed through all stages, resuming at the first cell without results."""
        path = f"{contender.name}_s{seed}"
        for stage in range(1, len(self.plan.stages) + 1):
            cell = self._cell(path, stage)
            if not cell.exists():
                try:
                    self._work(contender, seed, stage)
                except CurateError as error:  # such as a diverging loss: this path ends here, the others continue
                    self._commit(cell, contender.name, seed, stage, {}, error=str(error))
            if read_json(cell)["error"]:
                return
            self._forget(path, stage)
        shutil.rmtree(self._model(path, len(self.plan.stages)).name, ignore_errors=True)

    def _forget(self, path: str, stage: int) -> None:
        """Remove what no later stage needs: the previous model, and the work files of the stage."""
        if stage > 1:
            shutil.rmtree(self._model(path, stage - 1).name, ignore_errors=True)
            for work in (f"{path}-t{stage}", f"{path}-t{stage}-mixed"):
                shutil.rmtree(self.folder / "work" / work, ignore_errors=True)
        else:
            shutil.rmtree(self._pool(1) / "runs" / path, ignore_errors=True)

    def _work(self, contender: Contender, seed: int, stage: int) -> None:
        path, plan = f"{contender.name}_s{seed}", self.plan
        bench, model = self._bench(path, stage), self._model(path, stage - 1)
        arena, manifest, chosen = self._choose(bench, contender, seed, stage, path, model, self._learnt(path, stage))
        training = self._training(contender, seed, stage, path, manifest)
        trained = train(arena, path, training, evals=self._evals())
        new_model = self._model(path, stage)
        if not (Path(new_model.name) / "complete").exists():
            shutil.rmtree(new_model.name, ignore_errors=True)
            save_plain(replace(model, name=trained.folder), Path(new_model.name))
            if plan.carries:
                carry(Path(trained.folder), Path(new_model.name) / "carried")
            (Path(new_model.name) / "complete").touch()
        performance = measured_by.performance(trained.evaluations, plan.metric)
        if contender.online:
            chosen = measured_by.chosen_by(arena, path, plan.measures)
        measured = {**chosen, **measured_by.steadiness(arena, path, plan.measures.running)}
        if during := measured_by.during(arena, path, plan.metric):
            measured["during"] = during
        of = chosen["ids"] if contender.online else None
        measured["concentration"] = measured_by.update_concentration(bench, f"{path}_data", of, model, plan)
        folders = [Path(self._model(path, s).name) for s in (0, stage - 1, stage)]
        update_drift = drift(update_products(*folders)) if stage > 1 else float("nan")
        measured["drift"] = update_drift if np.isfinite(update_drift) else None
        if stage < len(plan.stages) and plan.probe.steps:
            try:
                measured["curve"] = self._branch(contender, seed, stage, path, new_model, chosen["ids"])
            except CurateError as error:  # the trained model is valid, although the branch is missing
                measured |= {"curve": None, "branch": str(error)}
        scores, places = measured_by.score_tables(contender.scores), [bench] if arena is bench else [bench, arena]
        flops, seconds = np.sum([measured_by.cost(ws, path, scores) for ws in places], axis=0).tolist()
        cell = self._cell(path, stage)
        self._commit(cell, contender.name, seed, stage, performance, "", flops, seconds, measured)

    def _training(self, contender: Contender, seed: int, stage: int, path: str, manifest: str | None) -> TrainingSpec:
        """The training of a stage."""
        plan = self.plan
        begun, carried = self._begun(path, stage - 1)
        weighting, settings = contender.weighting or plan.weighting, plan.settings
        if contender.online:
            settings = measured_by.online_settings(settings, self.checked.samples(plan.budget, stage))
        target = contender.weighting_target
        drawn = plan.seed_of(seed, stage)
        return TrainingSpec(begun, weighting, settings, manifest, target, seed=drawn, carried=carried)

    # --- choosing --------------------------------------------------------------------------------------------

    def _choose(
        self,
        bench: Workspace,
        contender: Contender,
        seed: int,
        stage: int,
        path: str,
        model: ModelChoice,
        past_samples: list[tuple[Path, list[str]]],
    ) -> tuple[Workspace, str | None, dict[str, Any]]:
        """Score a stage's samples and select among them, as the manifest PATH_data. Returns the workspace and the
        manifest in it to train on (None: all its samples), and a summary of the choice; of one that is made within the
        steps, all of the stage and no summary."""
        if contender.online:
            return bench, None, {}
        name, share = f"{path}_data", contender.replay if past_samples else 0.0
        remember(bench, past_samples)
        self._score(bench, contender, model, past=bool(past_samples))
        if name not in bench.manifest_names():
            spec = SelectionSpec(
                contender.by,
                **self.checked.rows(self.plan.budget, stage, 1 - share),  # type: ignore[arg-type]
                seed=seed,
                vectors=contender.vectors,
                target=contender.target,
                history=contender.history if past_samples else None,
            )
            select(bench, name, contender.selector, spec)
        chosen = measured_by.chosen_in(bench, name, self.plan.measures)
        if not share:
            return bench, name, chosen
        whole, own = (self.checked.rows(self.plan.budget, stage, part) for part in (1.0, 1 - share))
        (unit,) = whole
        past = replayed(past_samples, {unit: whole[unit] - own[unit]}, seed)
        place = self.folder / "work" / f"{path}-t{stage}-mixed"
        chosen["replayed"] = past["id"].to_pylist()
        chosen["tokens"] += float(np.sum(past["n_chars"].to_numpy())) / 4
        return mixed_pool(bench, place, chosen["ids"], past), None, chosen

    def _score(self, bench: Workspace, contender: Contender, model: ModelChoice, past: bool) -> None:
        """Compute all scores that a selector needs of a stage's samples; scores of the same model share a pass."""
        groups: dict[str, list[Scoring]] = {}
        for needed in contender.scores:
            if past or needed.target != PAST:
                groups.setdefault(needed.model, []).append(needed)
        for which_model, needed in groups.items():
            models = model if which_model == "current" else self._model("", 0)
            targets = list(dict.fromkeys(scoring.target for scoring in needed if scoring.target))
            for i, target in enumerate(targets or [None]):
                scores = [
                    scoring.score for scoring in needed if scoring.target == target or scoring.target is None and not i
                ]
                usual_models = {
                    role: ModelChoice(name) for method in scores for role, name in type(method).usual_models.items()
                }
                needs_model = any(set(method.models) - set(type(method).usual_models) for method in scores)
                by_role = {**usual_models, **({"": models} if needs_model else {})}
                methods = list({method.name: method for method in scores}.values())
                score(bench, *methods, target=target, models=by_role or None)

    def _learnt(self, path: str, stage: int) -> list[tuple[Path, list[str]]]:
        """The samples that the path was trained on before a stage: (pool, ids) of each earlier stage."""
        return [(self._pool(s), read_json(self._cell(path, s))["ids"]) for s in range(1, stage)]

    # --- measuring -------------------------------------------------------------------------------------------

    def _branch(
        self, contender: Contender, seed: int, stage: int, path: str, model: ModelChoice, ids: list[str]
    ) -> dict[str, Any]:
        """A short training on the next stage, evaluated on its val samples at intervals: the learning curve."""
        plan, probe = self.plan, self.plan.probe
        bench, run, manifest = self._bench(path, stage + 1), f"{path}_branch", f"{path}_lot"
        weighting, target, arena = plan.weighting, None, bench
        if probe.data == "own":
            past_samples = [*self._learnt(path, stage), (self._pool(stage), ids)]
            arena, manifest, _ = self._choose(bench, contender, seed, stage + 1, path, model, past_samples)
            weighting, target = contender.weighting or weighting, contender.weighting_target
        elif manifest not in bench.manifest_names():
            budget = self.checked.rows(plan.budget, stage + 1)
            select(bench, manifest, plan.common, SelectionSpec(**budget, seed=seed))  # type: ignore[arg-type]
        settings, metric = measured_by.branch_settings(plan), plan.metric
        evaluated = PROBE if plan.divides else plan.stages[stage].target
        spec = EvalSpec(evaluated, metric, "val", limit=probe.limit)
        run_before, precision = f"{path}_before", settings.precision
        start = evaluate(bench, run_before, [spec], model=model, allow_val=True, precision=precision).evaluations
        (begun, carried), drawn = self._begun(path, stage), plan.seed_of(seed, stage + 1)
        train(
            arena,
            run,
            TrainingSpec(begun, weighting, settings, manifest, target, seed=drawn, carried=carried),
            evals=[spec],
        )
        return measured_by.curve(arena, run, start[0]["value"], metric)

    # --- accounts --------------------------------------------------------------------------------------------

    def _commit(
        self,
        cell: Path,
        selector: str,
        seed: int,
        stage: int,
        performance: dict[str, float | None],
        error: str = "",
        flops: float = 0.0,
        seconds: float = 0.0,
        measured: dict[str, Any] | None = None,
    ) -> None:
        """Write the results of a cell, and enter its cost in the workspace's ledger."""
        fields = {"selector": selector, "seed": seed, "stage": stage, "performance": performance, "error": error}
        write_json(cell, {**fields, **(measured or {}), "flops": flops, "seconds": seconds})
        name, phase = self.folder.name.removeprefix(".").removesuffix(".fresh"), f"stage {stage}"
        with charged(self.ws.path, "audit", methods=[selector], name=name, phase=phase) as meter:
            meter.begin(1)
            meter.through_model |= {"flops": flops, "seconds": seconds}
