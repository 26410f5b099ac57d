"""What a cell of an audit measured, read from the workspace that it was computed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from curate.kinds.metric import Metric
from curate.models.choice import ModelChoice
from curate.numerics.long_horizon.measures import Measures
from curate.numerics.long_horizon.updates import concentration, stability
from curate.runs.audit_spec import Audit, Scoring
from curate.runs.documents import documents_of
from curate.runs.samples import TrainingRows, rows_of
from curate.store.encoding import read_json
from curate.store.ledger import charged
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.training.settings import TrainSettings


def sign_of(metric: Metric) -> float:
    """By what a metric's value is multiplied so that higher is better."""
    return 1.0 if metric.better == "higher" else -1.0


def performance(evaluations: Sequence[dict[str, Any]], metric: Metric) -> dict[str, float | None]:
    """target -> performance, higher is better; None if no question could be evaluated."""
    sign = sign_of(metric)
    return {row["target"]: None if row["value"] is None else sign * row["value"] for row in evaluations}


def during(ws: Workspace, run: str, metric: Metric) -> dict[str, list[tuple[int, float | None]]]:
    """target -> (step, performance) at every evaluation before the last step; empty without any (eval_every)."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    query = f"SELECT target, step, value FROM evaluations WHERE run = '{run}' ORDER BY target, step"
    rows = list(sql.rows(ws, query, [run]))
    last, sign = max((row["step"] for row in rows), default=0), sign_of(metric)
    for row in rows:
        if row["step"] < last:
            value = None if row["value"] is None else sign * row["value"]
            found.setdefault(row["target"], []).append((row["step"], value))
    return found


def chosen_in(ws: Workspace, manifest: str, measures: Measures) -> dict[str, Any]:
    """The samples of a manifest: ids by rank, how many of each skill, tokens, and what is to be said of the choice."""
    warnings = read_json(ws.manifest_path(manifest).with_suffix(".json"))["result"]["warnings"]
    ids = sql.fetch(ws, f"SELECT id FROM {manifest} ORDER BY rank")["id"].to_pylist()
    return {"ids": ids, **_profile(ws, f"SELECT id FROM {manifest}", measures), "warnings": warnings}


def chosen_by(ws: Workspace, run: str, measures: Measures) -> dict[str, Any]:
    """The same of the samples that a run gave a weight within its steps, by the order in which it first did."""
    its = f"SELECT row, min(step) AS step FROM trained WHERE run = '{run}' AND weight <> 0 GROUP BY row"
    query = f"SELECT id FROM pool JOIN ({its}) USING (row)"
    ids = sql.fetch(ws, f"{query} ORDER BY step, row", runs=[run])["id"].to_pylist()
    return {"ids": ids, **_profile(ws, query, measures, [run]), "warnings": []}


def _profile(ws: Workspace, chosen: str, measures: Measures, runs: Sequence[str] | None = None) -> dict[str, Any]:
    query = f"""SELECT skill, count(*) FILTER (id IN ({chosen})) AS n
        FROM (SELECT id, ({measures.clusters}\n)::VARCHAR AS skill FROM samples) GROUP BY skill ORDER BY skill"""
    counts = {str(row["skill"]): row["n"] for row in sql.rows(ws, query, runs)}
    tokens = sql.fetch(ws, f"SELECT sum(n_chars) / 4.0 AS t FROM pool WHERE id IN ({chosen})", runs=runs)
    return {"clusters": counts, "tokens": float(tokens["t"][0].as_py() or 0.0)}


def steadiness(ws: Workspace, run: str, window: int) -> dict[str, Any]:
    """How steady a training was, and its steps; None for what is not known."""
    rows = list(sql.rows(ws, f"SELECT loss, grad_norm FROM metrics WHERE run = '{run}' ORDER BY step", [run]))
    measured = asdict(stability([row["loss"] for row in rows], [row["grad_norm"] for row in rows], window))
    return {**{key: value if np.isfinite(value) else None for key, value in measured.items()}, "steps": len(rows)}


def update_concentration(
    ws: Workspace, manifest: str, chosen: Sequence[str] | None, model: ModelChoice, plan: Audit
) -> float | None:
    """Concentration of the gradients of a random subset of the chosen samples, under the model that scored them.

    chosen: ids, of samples that are no manifest; None: those of the manifest.
    """
    if not plan.measures.gradients:
        return None
    from curate.gradients.backward import Backward
    from curate.gradients.sketches import gram
    from curate.models.language_model import LanguageModel

    rows = rows_of(ws, manifest if chosen is None else None, None, False)
    lm = LanguageModel(model)
    documents = documents_of(ws, rows, plan.settings, lm)
    usable = documents.first_of(np.flatnonzero((documents.left_out(rows) == "") & _among(rows, chosen)))
    drawn = np.random.default_rng(0).permutation(len(usable))[: plan.measures.gradients]
    inner_products, usage = gram(Backward.of(lm), [usable.encoded(i) for i in drawn], plan.measures.projection)
    with charged(ws.path, "audit", methods=[], name=manifest, phase="concentration", model=model.name) as meter:
        meter.begin(len(drawn))
        meter.add(usage)
    return concentration(inner_products)


def _among(rows: TrainingRows, chosen: Sequence[str] | None) -> np.ndarray:
    return np.ones(len(rows.row), bool) if chosen is None else np.isin(rows.id.to_pylist(), chosen)


def curve(ws: Workspace, run: str, start: float | None, metric: Metric) -> dict[str, Any]:
    """The learning curve of a branch. start: the metric's value before its first step."""
    evaluations = sql.rows(ws, f"SELECT step, value FROM evaluations WHERE run = '{run}' ORDER BY step", [run])
    metrics = sql.rows(ws, f"SELECT step, tokens FROM metrics WHERE run = '{run}' ORDER BY step", [run])
    tokens = np.cumsum([0, *(row["tokens"] for row in metrics)])
    points = [(0, start), *((row["step"], row["value"]) for row in evaluations)]
    return {
        "steps": [step for step, _ in points],
        "tokens": [float(tokens[step]) for step, _ in points],
        "values": [None if value is None else sign_of(metric) * value for _, value in points],
    }


def score_tables(scores: Sequence[Scoring]) -> set[str]:
    """The names of scores, and of their vectors, in the ledger."""
    return {name for s in scores for name in (s.score.name, *([f"{s.score.name}_{s.target}"] if s.target else []))}


def cost(ws: Workspace, path: str, scores: set[str]) -> tuple[float, float]:
    """FLOPs and seconds of a cell: its scores at full cost, its selection and its training, including work lost to
    kills; without evaluations, the branch, and what is only measured."""
    totals = {"flops": 0.0, "seconds": 0.0}
    for row in sql.rows(ws, "SELECT stage, name, phase, flops, seconds FROM ledger WHERE phase <> 'evaluate'"):
        is_score = row["stage"] == "score" and scores & set(row["name"].split(", "))
        if is_score or row["stage"] in ("select", "train") and row["name"] in (path, f"{path}_data"):
            for key in totals:
                totals[key] += row[key] or 0.0
    return totals["flops"], totals["seconds"]


def online_settings(settings: TrainSettings, samples: float) -> TrainSettings:
    """The settings of a training that chooses within its steps: as many steps as a training on `samples` samples."""
    if settings.steps or settings.flops:
        return settings
    return replace(settings, steps=max(1, int(np.ceil(settings.epochs * samples / settings.batch_size - 1e-9))))


def branch_settings(plan: Audit) -> TrainSettings:
    """The settings of the branch by which adaptation is measured."""
    probe, whole = plan.probe, {"flops": 0.0, "eval_flops": 0.0, "schedule": "constant", "warmup": 0.0}
    return replace(plan.settings, steps=probe.steps, eval_every=probe.every, **whole)  # type: ignore[arg-type]
