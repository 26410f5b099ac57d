"""`curate audit`: does a selector that wins today harm the stages that come after?

    model ── stage 1: score, choose, train ── judge all targets ─┬─ stage 2 … ── stage T ── scorecard
                                                                 └─ a short branch on stage 2's samples

Every selector goes its own way through the stages, with every seed; a cell is one stage of one such way. What was found
of a cell is one small file, written when all of it is known, so a killed audit goes on with the cell it was at, and
there by what its verbs had stored. One model is in memory at a time; of a way only the latest model is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from curate import query
from curate.auditing import (
    PAST,
    Audit,
    Contender,
    Scoring,
    begin,
    check,
    remember,
    stage_pool,
    working_copy,
)
from curate.claims import claim
from curate.corpus import documents_of, left_out, rows_of
from curate.costs import charged
from curate.errors import CurateError, CurateFailure
from curate.horizon.scorecard import Scorecard, scorecard
from curate.horizon.updates import concentration, drift, stability, update_products
from curate.judging import Judge
from curate.models.load import ModelChoice, save_plain
from curate.plans import Training
from curate.shards import read_json, write_json
from curate.stages.evaluate import evaluate
from curate.stages.score import score
from curate.stages.select import Choice, select
from curate.stages.train import train
from curate.workspace import Workspace, open_workspace

BASE = "base"


@dataclass
class Audited:
    """What an audit found. sizes: samples of each stage. cells: how many there are, and how many were done now."""

    name: str
    sizes: list[int]
    cells: int = 0
    cells_now: int = 0
    failed: list[str] = field(default_factory=list)
    card: Scorecard | None = None
    warnings: list[str] = field(default_factory=list)
    planned: dict[str, float] | None = None


def audit(ws: Workspace, name: str, plan: Audit, *, fresh: bool = False, dry_run: bool = False) -> Audited:
    """Take every selector through the stages, measure what it does now and later, and sum that up.

    The same call goes on where a killed one stood; further selectors and seeds may join. fresh: begin anew.

    Raises CurateError for stages that share samples or have fewer than the budget, a target without its splits, a name
    that is taken, or an audit of other settings under that name. What fails in one cell (as a loss that diverges) ends
    that selector's way with that seed, is told, and leaves the others as they are.
    """
    ws.check_name(name, "audit")
    if not isinstance(ws.path, Path):
        raise CurateError("an audit works in folders of this machine; take a workspace on its disk.")
    ws.require_pool()
    result = Audited(name, check(ws, plan), len(plan.stages) * len(plan.paths()) + 1)
    if dry_run:
        result.planned = {"cells": result.cells, "trainings": (result.cells - 1) + len(plan.paths()) * (
            len(plan.stages) - 1) * bool(plan.probe.steps)}  # fmt: skip
        return result
    folder = ws.path / "audits" / name
    with claim(ws.path, f"audit {name}"):
        begin(folder, plan, fresh)
        its = _Grid(ws, folder, plan)
        before = its.done()
        its.base()
        for contender, seed in tqdm(plan.paths(), desc=f"audit {name}", unit=" ways", disable=None, leave=False):
            its.walk(contender, seed)
        result.cells_now = len(its.done() - before)
        shutil.rmtree(folder / "work", ignore_errors=True)
    cells = [read_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    wanted = {(contender.name, seed) for contender, seed in plan.paths()} | {(BASE, 0)}
    cells = [cell for cell in cells if (cell["selector"], cell["seed"]) in wanted]
    result.failed = [
        f"{c['selector']}, seed {c['seed']}, stage {c['stage']}: {c['error']}" for c in cells if c["error"]
    ]
    result.card = scorecard(
        cells,
        [contender.name for contender in plan.contenders],
        [(stage.name, stage.target) for stage in plan.stages],
        plan.elsewhere,
        plan.seeds,
        plan.measures,
    )
    return result


class _Grid:
    """The cells of one audit, in its folder."""

    def __init__(self, ws: Workspace, folder: Path, plan: Audit):
        self.ws, self.folder, self.plan = ws, folder, plan

    def done(self) -> set[str]:
        return {path.stem for path in (self.folder / "cells").glob("*.json")}

    def _cell(self, path: str, stage: int) -> Path:
        return self.folder / "cells" / f"{path}-t{stage}.json"

    def _model(self, path: str, stage: int) -> ModelChoice:
        """The model of a way after a stage; before the first it is the same for all."""
        place = self.folder / "models" / (f"{path}-t{stage}" if stage else BASE)
        return replace(self.plan.model, name=str(place.absolute()))

    def _pool(self, stage: int) -> Path:
        return stage_pool(self.ws, self.plan, self.folder / "stages" / f"t{stage}", stage)

    def _bench(self, path: str, stage: int) -> Workspace:
        """Where a cell is worked at: what all ways begin with is shared, as long as the model is."""
        pool = self._pool(stage)
        return open_workspace(pool if stage == 1 else working_copy(pool, self.folder / "work" / f"{path}-t{stage}"))

    # --- the model before ------------------------------------------------------------------------------------

    def base(self) -> None:
        """Keep the model that all begin with as one of a layout, and judge it."""
        place = Path(self._model("", 0).name)
        if not (place / "complete").exists():
            save_plain(self.plan.model, place)
            (place / "complete").touch()
        cell = self._cell(BASE, 0)
        if not cell.exists():
            bench = self._bench(BASE, 1)
            found = evaluate(bench, BASE, self._judges(), model=self._model("", 0)).evaluations
            self._commit(cell, BASE, 0, 0, self._performance(found))

    def _judges(self) -> list[Judge]:
        return [Judge(target, self.plan.metric, limit=self.plan.limit) for target in self.plan.targets]

    def _performance(self, found: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        """target -> how well it was answered, higher is better; null where nothing could be judged."""
        sign = 1.0 if self.plan.metric.better == "higher" else -1.0
        return {row["target"]: None if row["value"] is None else sign * row["value"] for row in found}

    # --- one way through the stages --------------------------------------------------------------------------

    def walk(self, contender: Contender, seed: int) -> None:
        path = f"{contender.name}_s{seed}"
        for stage in range(1, len(self.plan.stages) + 1):
            cell = self._cell(path, stage)
            if not cell.exists():
                try:
                    self._work(contender, seed, stage)
                except CurateFailure as error:  # as a loss that diverges: this way ends here, and the others go on
                    self._commit(cell, contender.name, seed, stage, {}, error=str(error))
            if stage > 1:
                self._forget(path, stage)
            if read_json(cell)["error"]:
                break
        self._forget(path, len(self.plan.stages) + 1)

    def _forget(self, path: str, stage: int) -> None:
        """Remove what no later stage needs: the model before, and where the stage was worked at."""
        shutil.rmtree(self.folder / "models" / f"{path}-t{stage - 1}", ignore_errors=True)
        shutil.rmtree(self.folder / "work" / f"{path}-t{stage}", ignore_errors=True)

    def _work(self, contender: Contender, seed: int, stage: int) -> None:
        path, plan = f"{contender.name}_s{seed}", self.plan
        bench, model = self._bench(path, stage), self._model(path, stage - 1)
        chosen = self._choose(bench, contender, seed, stage, path, model)
        settings = replace(plan.settings, eval_every=0)
        training = Training(model, plan.weighting, settings, manifest=f"{path}_data", seed=seed)
        trained = train(bench, path, training, judges=self._judges())  # at the end only
        after = self._model(path, stage)
        if not (Path(after.name) / "complete").exists():
            shutil.rmtree(after.name, ignore_errors=True)
            save_plain(replace(model, name=trained.folder), Path(after.name))
            (Path(after.name) / "complete").touch()
        found: dict[str, Any] = {"performance": self._performance(trained.evaluations), **chosen}
        found |= self._steadiness(bench, path)
        found["concentration"] = self._concentration(bench, f"{path}_data", model)
        places = [Path(self._model(path, s).name) for s in (0, stage - 1, stage)]
        moved = drift(update_products(*places)) if stage > 1 else float("nan")
        found["drift"] = moved if np.isfinite(moved) else None
        if stage < len(plan.stages) and plan.probe.steps:
            found["curve"] = self._branch(contender, seed, stage, path, after)
        cost = _cost(bench, path, {name for its in contender.scores for name in _tables(its)})
        self._commit(self._cell(path, stage), contender.name, seed, stage, **found, **cost)

    # --- choosing --------------------------------------------------------------------------------------------

    def _choose(
        self, bench: Workspace, contender: Contender, seed: int, stage: int, path: str, model: ModelChoice
    ) -> dict[str, Any]:
        """Score a stage's samples and choose among them, as the manifest PATH_data; what was chosen, in short."""
        name, learnt = f"{path}_data", self._learnt(path, stage)
        remember(bench, learnt)
        for its in contender.scores:
            if its.target != PAST or learnt:
                self._score(bench, its, model)
        if name not in bench.manifest_names():
            choice = Choice(
                contender.by,
                **self.plan.budget,  # type: ignore[arg-type]
                seed=seed,
                vectors=contender.vectors,
                target=contender.target,
                history=contender.history if learnt else None,
            )
            select(bench, name, contender.selector, choice)
        ids = query.fetch(bench, f"SELECT id FROM {name} ORDER BY rank")["id"].to_pylist()
        clusters = self.plan.measures.clusters
        counted = f"""SELECT skill, count(*) FILTER (id IN (SELECT id FROM {name})) AS n
            FROM (SELECT id, ({clusters}\n)::VARCHAR AS skill FROM samples) GROUP BY skill ORDER BY skill"""
        counts = {str(row["skill"]): row["n"] for row in query.rows(bench, counted)}
        tokens = query.fetch(bench, f"SELECT sum(n_chars) / 4.0 AS t FROM {name} JOIN pool USING (id)")["t"][0].as_py()
        return {"ids": ids, "clusters": counts, "tokens": float(tokens)}

    def _score(self, bench: Workspace, its: Scoring, model: ModelChoice) -> None:
        models = model if its.model == "current" else self._model("", 0)
        usual = {role: ModelChoice(name) for role, name in type(its.score).usual_models.items()}
        needs = set(its.score.models) - set(usual)
        score(bench, its.score, target=its.target, models={**usual, **({"": models} if needs else {})} or None)

    def _learnt(self, path: str, stage: int) -> list[tuple[Path, list[str]]]:
        """What the way has learnt before a stage: where the samples are, and which."""
        return [(self._pool(s), read_json(self._cell(path, s))["ids"]) for s in range(1, stage)]

    # --- measuring -------------------------------------------------------------------------------------------

    def _steadiness(self, bench: Workspace, run: str) -> dict[str, Any]:
        rows = list(query.rows(bench, f"SELECT loss, grad_norm FROM metrics WHERE run = '{run}' ORDER BY step"))
        its = stability([row["loss"] for row in rows], [row["grad_norm"] for row in rows])
        return {"spread": its.spread, "spikes": its.spikes, "norm_range": its.norm_range, "steps": len(rows)}

    def _concentration(self, bench: Workspace, manifest: str, model: ModelChoice) -> float | None:
        """Of the gradients of some of the chosen samples, by lot, under the model that they were chosen by."""
        measures = self.plan.measures
        if not measures.gradients:
            return None
        from curate.gradients.backward import Backward
        from curate.gradients.sketches import gram
        from curate.models.language_model import LanguageModel

        rows = rows_of(bench, manifest, None, False)
        lm = LanguageModel(replace(model, dtype="float32" if model.dtype == "auto" else model.dtype))
        documents = documents_of(bench, rows, self.plan.settings, lm)
        good = [some[0] for some, why in zip(documents, left_out(documents, rows), strict=True) if not why]
        lot = np.random.default_rng(0).permutation(len(good))[: measures.gradients]
        found, usage = gram(Backward.of(lm), [good[i] for i in lot], measures.projection)
        with charged(bench.path, "audit", methods=[], name=manifest, phase="concentration", model=model.name) as meter:
            meter.begin(len(lot))
            meter.add(usage)
        return concentration(found)

    def _branch(self, contender: Contender, seed: int, stage: int, path: str, model: ModelChoice) -> dict[str, Any]:
        """A short training on the next stage, judged on its val samples as it goes."""
        plan, probe = self.plan, self.plan.probe
        bench, run, lot = self._bench(path, stage + 1), f"{path}_branch", f"{path}_lot"
        if probe.data == "own":
            self._choose(bench, contender, seed, stage + 1, path, model)
        elif lot not in bench.manifest_names():
            select(bench, lot, plan.common, Choice(**plan.budget, seed=seed))  # type: ignore[arg-type]
        settings = replace(plan.settings, steps=probe.steps, eval_every=probe.every, schedule="constant", warmup=0.0)
        judge = Judge(plan.stages[stage].target, plan.metric, "val", limit=probe.limit)
        manifest = f"{path}_data" if probe.data == "own" else lot
        start = evaluate(bench, f"{path}_before", [judge], model=model, allow_val=True).evaluations
        training = Training(model, plan.weighting, settings, manifest=manifest, seed=seed)
        train(bench, run, training, judges=[judge])
        found = query.rows(bench, f"SELECT step, value FROM evaluations WHERE run = '{run}' ORDER BY step")
        seen = query.rows(bench, f"SELECT step, tokens FROM metrics WHERE run = '{run}' ORDER BY step")
        steps = np.cumsum([0, *(row["tokens"] for row in seen)])
        sign = 1.0 if plan.metric.better == "higher" else -1.0
        points = [(0, start[0]["value"]), *((row["step"], row["value"]) for row in found)]
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
        **found: Any,
    ) -> None:
        """Write what was found of a cell, and charge the workspace's ledger with it."""
        phase = f"stage {stage}"
        with charged(self.ws.path, "audit", methods=[selector], name=self.folder.name, phase=phase) as meter:
            meter.begin(1)
            meter.through_model |= {"flops": flops, "seconds": seconds}
        its = {"selector": selector, "seed": seed, "stage": stage, "performance": performance, "error": error}
        write_json(cell, {**its, **found, "flops": flops, "seconds": seconds})


def _tables(its: Scoring) -> set[str]:
    """The names that a score, and its vectors, go by in the ledger."""
    name = its.score.name
    return {name, f"{name}_{its.target}"} if its.target else {name}


def _cost(bench: Workspace, path: str, scores: set[str]) -> dict[str, float]:
    """FLOPs and seconds of a cell: its scores at their full price, its choice and its training; not its judges, its
    branch or what only measures."""
    found = {"flops": 0.0, "seconds": 0.0}
    for row in query.rows(bench, "SELECT stage, name, phase, flops, seconds FROM ledger WHERE phase <> 'evaluate'"):
        mine = row["stage"] == "score" and scores & set(row["name"].split(", "))
        if mine or row["stage"] in ("select", "train") and row["name"] in (path, f"{path}_data"):
            for key in found:
                found[key] += row[key] or 0.0
    return found
