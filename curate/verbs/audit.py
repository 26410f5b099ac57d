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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.models.choice import ModelChoice
from curate.models.load import save_plain
from curate.numerics.long_horizon.scorecard import Scorecard
from curate.numerics.long_horizon.scorecard import rows as rows_of_level
from curate.numerics.long_horizon.updates import concentration, drift, stability
from curate.progress import Progress
from curate.results import Result, Rows
from curate.runs.audit_pools import remember, stage_pool, working_copy
from curate.runs.audit_spec import BASE, PAST, Audit, Checked, Contender, Scoring, begin, card_of, check, sum_up
from curate.runs.audit_toml import read_plan
from curate.runs.config import TrainingSpec
from curate.runs.documents import documents_of
from curate.runs.evaluation import EvalSpec
from curate.runs.model_updates import update_products
from curate.runs.samples import rows_of
from curate.store.encoding import read_json, write_json
from curate.store.files import remove_tree, replace_tree
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.workspace import Workspace, open_workspace
from curate.tables import sql
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
            self._commit(cell, BASE, 0, 0, self._performance(evaluations))
        for contender in self.plan.contenders:  # first, so that no cell is charged for them: all paths share them
            self._score(self._bench(BASE, 1), contender, self._model("", 0), past=False)

    def _evals(self) -> list[EvalSpec]:
        return [EvalSpec(target, self.plan.metric, limit=self.plan.limit) for target in self.plan.targets]

    def _performance(self, evaluations: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        """target -> performance, higher is better; None if no question could be evaluated."""
        sign = 1.0 if self.plan.metric.better == "higher" else -1.0
        return {row["target"]: None if row["value"] is None else sign * row["value"] for row in evaluations}

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
            shutil.rmtree(self.folder / "work" / f"{path}-t{stage}", ignore_errors=True)
        else:
            shutil.rmtree(self._pool(1) / "runs" / path, ignore_errors=True)

    def _work(self, contender: Contender, seed: int, stage: int) -> None:
        path, plan = f"{contender.name}_s{seed}", self.plan
        bench, model = self._bench(path, stage), self._model(path, stage - 1)
        selection = self._choose(bench, contender, seed, stage, path, model, self._learnt(path, stage))
        settings = replace(plan.settings, eval_every=0)
        training = TrainingSpec(model, plan.weighting, settings, manifest=f"{path}_data", seed=seed)
        trained = train(bench, path, training, evals=self._evals())  # at the end only
        new_model = self._model(path, stage)
        if not (Path(new_model.name) / "complete").exists():
            shutil.rmtree(new_model.name, ignore_errors=True)
            save_plain(replace(model, name=trained.folder), Path(new_model.name))
            (Path(new_model.name) / "complete").touch()
        performance = self._performance(trained.evaluations)
        measured = {**selection, **self._steadiness(bench, path)}
        measured["concentration"] = self._concentration(bench, f"{path}_data", model)
        folders = [Path(self._model(path, s).name) for s in (0, stage - 1, stage)]
        update_drift = drift(update_products(*folders)) if stage > 1 else float("nan")
        measured["drift"] = update_drift if np.isfinite(update_drift) else None
        if stage < len(plan.stages) and plan.probe.steps:
            try:
                measured["curve"] = self._branch(contender, seed, stage, path, new_model, selection["ids"])
            except CurateError as error:  # the trained model is valid, although the branch is missing
                measured |= {"curve": None, "branch": str(error)}
        cost = _cost(bench, path, {name for scoring in contender.scores for name in _tables(scoring)})
        self._commit(self._cell(path, stage), contender.name, seed, stage, performance, "", *cost, measured)

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
    ) -> dict[str, Any]:
        """Score a stage's samples and select among them, as the manifest PATH_data; returns a summary."""
        name = f"{path}_data"
        remember(bench, past_samples)
        self._score(bench, contender, model, past=bool(past_samples))
        if name not in bench.manifest_names():
            spec = SelectionSpec(
                contender.by,
                **self.checked.rows(self.plan.budget, stage),  # type: ignore[arg-type]
                seed=seed,
                vectors=contender.vectors,
                target=contender.target,
                history=contender.history if past_samples else None,
            )
            select(bench, name, contender.selector, spec)
        warnings = read_json(bench.manifest_path(name).with_suffix(".json"))["result"]["warnings"]
        ids = sql.fetch(bench, f"SELECT id FROM {name} ORDER BY rank")["id"].to_pylist()
        clusters = self.plan.measures.clusters
        query = f"""SELECT skill, count(*) FILTER (id IN (SELECT id FROM {name})) AS n
            FROM (SELECT id, ({clusters}\n)::VARCHAR AS skill FROM samples) GROUP BY skill ORDER BY skill"""
        counts = {str(row["skill"]): row["n"] for row in sql.rows(bench, query)}
        tokens = sql.fetch(bench, f"SELECT sum(n_chars) / 4.0 AS t FROM {name} JOIN pool USING (id)")["t"][0].as_py()
        return {"ids": ids, "clusters": counts, "tokens": float(tokens), "warnings": warnings}

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

    def _steadiness(self, bench: Workspace, run: str) -> dict[str, Any]:
        rows = list(sql.rows(bench, f"SELECT loss, grad_norm FROM metrics WHERE run = '{run}' ORDER BY step", [run]))
        measured = asdict(stability(
            [row["loss"] for row in rows], [row["grad_norm"] for row in rows], self.plan.measures.running
        ))  # fmt: skip
        return {**{key: value if np.isfinite(value) else None for key, value in measured.items()}, "steps": len(rows)}

    def _concentration(self, bench: Workspace, manifest: str, model: ModelChoice) -> float | None:
        """Concentration of the gradients of a random subset of the chosen samples, under the model that scored them."""
        measures = self.plan.measures
        if not measures.gradients:
            return None
        from curate.gradients.backward import Backward
        from curate.gradients.sketches import gram
        from curate.models.language_model import LanguageModel

        rows = rows_of(bench, manifest, None, False)
        lm = LanguageModel(model)
        documents = documents_of(bench, rows, self.plan.settings, lm)
        usable = documents.first_of(np.flatnonzero(documents.left_out(rows) == ""))
        drawn = np.random.default_rng(0).permutation(len(usable))[: measures.gradients]
        inner_products, usage = gram(Backward.of(lm), [usable.encoded(i) for i in drawn], measures.projection)
        with charged(bench.path, "audit", methods=[], name=manifest, phase="concentration", model=model.name) as meter:
            meter.begin(len(drawn))
            meter.add(usage)
        return concentration(inner_products)

    def _branch(
        self, contender: Contender, seed: int, stage: int, path: str, model: ModelChoice, ids: list[str]
    ) -> dict[str, Any]:
        """A short training on the next stage, evaluated on its val samples at intervals: the learning curve."""
        plan, probe = self.plan, self.plan.probe
        bench, run, common_manifest = self._bench(path, stage + 1), f"{path}_branch", f"{path}_lot"
        if probe.data == "own":
            past_samples = [*self._learnt(path, stage), (self._pool(stage), ids)]
            self._choose(bench, contender, seed, stage + 1, path, model, past_samples)
        elif common_manifest not in bench.manifest_names():
            budget = self.checked.rows(plan.budget, stage + 1)
            select(bench, common_manifest, plan.common, SelectionSpec(**budget, seed=seed))  # type: ignore[arg-type]
        settings = replace(plan.settings, steps=probe.steps, eval_every=probe.every, schedule="constant", warmup=0.0)
        eval_spec = EvalSpec(plan.stages[stage].target, plan.metric, "val", limit=probe.limit)
        manifest = f"{path}_data" if probe.data == "own" else common_manifest
        run_before, precision = f"{path}_before", settings.precision
        start = evaluate(bench, run_before, [eval_spec], model=model, allow_val=True, precision=precision).evaluations
        training = TrainingSpec(model, plan.weighting, settings, manifest=manifest, seed=seed)
        train(bench, run, training, evals=[eval_spec])
        evaluations = sql.rows(bench, f"SELECT step, value FROM evaluations WHERE run = '{run}' ORDER BY step", [run])
        metrics = sql.rows(bench, f"SELECT step, tokens FROM metrics WHERE run = '{run}' ORDER BY step", [run])
        steps = np.cumsum([0, *(row["tokens"] for row in metrics)])
        sign = 1.0 if plan.metric.better == "higher" else -1.0
        points = [(0, start[0]["value"]), *((row["step"], row["value"]) for row in evaluations)]
        return {
            "steps": [step for step, _ in points],
            "tokens": [float(steps[step]) for step, _ in points],
            "values": [None if value is None else sign * value for _, value in points],
        }

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


def _tables(scoring: Scoring) -> set[str]:
    """The names of a score, and of its vectors, in the ledger."""
    name = scoring.score.name
    return {name, f"{name}_{scoring.target}"} if scoring.target else {name}


def _cost(bench: Workspace, path: str, scores: set[str]) -> tuple[float, float]:
    """FLOPs and seconds of a cell: its scores at full cost, its selection and its training, including work lost to
    kills; without evaluations, the branch, and what is only measured."""
    totals = {"flops": 0.0, "seconds": 0.0}
    for row in sql.rows(bench, "SELECT stage, name, phase, flops, seconds FROM ledger WHERE phase <> 'evaluate'"):
        is_score = row["stage"] == "score" and scores & set(row["name"].split(", "))
        if is_score or row["stage"] in ("select", "train") and row["name"] in (path, f"{path}_data"):
            for key in totals:
                totals[key] += row[key] or 0.0
    return totals["flops"], totals["seconds"]
