"""The two-level scorecard: how each selector does now and later, over seeds, and whether the selectors are myopic.

A cell is the result of one selector and seed at one stage (curate.verbs.audit): a dictionary of plain values. Whatever
needs a value that a cell lacks (its path ended earlier, or the value is None) is NaN; the rest is unaffected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from curate.numerics.long_horizon.curves import area, reached
from curate.numerics.long_horizon.matrix import (
    current_scores,
    forgetting,
    forward_transfer,
    imbalance,
    immediate_gains,
    long_utility,
    normalized,
    scaled,
    worst_task,
)
from curate.numerics.long_horizon.measures import Measures
from curate.numerics.long_horizon.myopia import Myopia, myopia
from curate.numerics.long_horizon.updates import entropy
from curate.numerics.statistics import Mean

NOW = {  # measure -> which way is better
    "gain": "higher",
    "score": "higher",
    "tokens": "",
    "seconds": "lower",
    "flops": "lower",
    "spread": "lower",
    "spikes": "lower",
    "norm_range": "lower",
    "entropy": "",
}
LATER = {
    "utility": "higher",
    "adaptation": "higher",
    "early": "lower",
    "forgetting": "lower",
    "transfer": "higher",
    "worst": "higher",
    "out_of_domain": "higher",
    "imbalance": "lower",
    "concentration": "lower",
    "drift": "",
}
WORDS = {
    "gain": "immediate gain, mean over stages",
    "score": "score of the current stage, mean over stages",
    "tokens": "tokens chosen, all stages",
    "seconds": "seconds of scoring, choosing and training",
    "flops": "FLOPs of the same",
    "spread": "spread of the loss around its running mean",
    "spikes": "share of steps with a spike of the loss",
    "norm_range": "longest gradient over the median",
    "entropy": "capability entropy of the choice",
    "utility": "long-horizon utility",
    "adaptation": "future-adaptation AUC, mean over stages",
    "early": "tokens to the early threshold on the next stage (all of the branch, where it is never reached)",
    "forgetting": "forgetting after the last stage",
    "transfer": "forward transfer",
    "worst": "worst task in the end",
    "out_of_domain": "out-of-domain performance in the end",
    "imbalance": "imbalance of the tasks in the end, each from the worst selector to the best",
    "concentration": "update concentration",
    "drift": "drift of a stage's update from those before",
}


@dataclass
class Scorecard:
    """The measures of K selectors over seeds and T stages.

    measures: name -> [K, seeds]. matrices: for each selector and seed, the performance after every stage on every
    stage's target, [K, seeds, T + 1, T]. curves: for each selector, the branch on the next stage for every stage but
    the last, (tokens, values) averaged over seeds; None if unknown. myopia: None if fewer than two selectors have both
    ranks. ranked: those that have. missing: what is unknown, in words.
    """

    selectors: list[str]
    stages: list[tuple[str, str]]
    seeds: int
    measures: dict[str, np.ndarray]
    matrices: np.ndarray
    curves: dict[str, list[tuple[np.ndarray, np.ndarray] | None]]
    myopia: Myopia | None
    ranked: list[str]
    missing: list[str] = field(default_factory=list)


def scorecard(
    cells: Sequence[Mapping[str, Any]],
    selectors: Sequence[str],
    stages: Sequence[tuple[str, str]],
    elsewhere: Sequence[str],
    seeds: int,
    settings: Measures,
) -> Scorecard:
    """Sum up the cells of an audit. stages: name and target of each. settings: how measures are defined."""
    by_key = {(cell["selector"], cell["seed"], cell["stage"]): cell for cell in cells}
    start = next((cell["performance"] for cell in cells if cell["stage"] == 0), {})
    shape = (len(selectors), seeds)
    matrices = np.full((*shape, len(stages) + 1, len(stages)), np.nan)
    measures = {name: np.full(shape, np.nan) for name in (*NOW, *LATER)}
    paths = {(k, s): [by_key.get((name, s, t + 1), {}) for t in range(len(stages))] for k, name in enumerate(selectors)
            for s in range(seeds)}  # fmt: skip
    levels = _levels(paths, len(stages), seeds, settings)
    for (k, s), path in paths.items():
        performances = [start, *(cell.get("performance", {}) for cell in path)]
        for t, performance in enumerate(performances):
            matrices[k, s, t] = [_number(performance.get(target)) for _, target in stages]
        targets, last = [target for _, target in stages], performances[-1]
        for name, value in _measured(path, matrices[k, s], last, targets, elsewhere, levels, settings).items():
            measures[name][k, s] = value
    ends = np.array([[_outside(paths[k, s][-1], elsewhere) for s in range(seeds)] for k in range(len(selectors))])
    areas = np.array([[_areas(paths[k, s], settings) for s in range(seeds)] for k in range(len(selectors))])
    branched = any("curve" in cell for path in paths.values() for cell in path)
    measures |= _utilities(matrices, areas if branched else areas[..., :0], ends, settings)
    for s in range(seeds):
        final = matrices[:, s, -1]
        complete = np.isfinite(final).all(1)
        scores = normalized(final[complete]) if settings.normalizer == "minmax" and complete.any() else final[complete]
        if settings.normalizer == "none" or complete.sum() > 1:  # min-max scaling needs at least two selectors
            measures["imbalance"][complete, s] = [imbalance(row, settings.ddof) for row in scores]
    ranks, ranked = _ranks(measures, selectors)
    curves = {name: _curves([paths[k, s] for s in range(seeds)], len(stages)) for k, name in enumerate(selectors)}
    return Scorecard(list(selectors), list(stages), seeds, measures, matrices, curves, ranks, ranked,
                     _missing(start, paths, selectors, stages))  # fmt: skip


def _measured(
    path: Sequence[Mapping[str, Any]],
    a: np.ndarray,
    last: Mapping[str, Any],
    targets: Sequence[str],
    elsewhere: Sequence[str],
    levels: Sequence[float],
    settings: Measures,
) -> dict[str, float]:
    """The measures of one selector and seed, but those that may need all selectors."""
    areas, outside = _areas(path, settings), _outside({"performance": last}, elsewhere)
    early = [_early(cell.get("curve"), level) for cell, level in zip(path, levels, strict=False)]
    return {
        "score": float(np.mean(current_scores(a))),
        "adaptation": float(np.mean(areas)) if len(areas) else float("nan"),
        "early": float(np.mean(early)) if early else float("nan"),
        "forgetting": forgetting(a, None, settings.window, settings.with_last, settings.clip),
        "transfer": forward_transfer(a, targets),
        "worst": worst_task(a),
        "out_of_domain": float(np.mean(outside)) if len(outside) else float("nan"),
        **{name: sum(_number(cell.get(name)) for cell in path) for name in ("tokens", "seconds", "flops")},
        **{
            name: _mean(cell.get(name) for cell in path) for name in ("spread", "spikes", "norm_range", "concentration")
        },
        "drift": _mean(cell.get("drift") for cell in path[1:]),
        "entropy": _mean(_entropy(cell.get("clusters"), settings) for cell in path),
    }


def _utilities(
    matrices: np.ndarray, areas: np.ndarray, outside: np.ndarray, settings: Measures
) -> dict[str, np.ndarray]:
    """Gain and utility, [K, seeds]. matrices: [K, seeds, T + 1, T]; areas: [K, seeds, T - 1], or none without
    branches; outside: the final performance on each out-of-domain target, [K, seeds, targets]."""
    if settings.utilities == "normalized":
        matrices, areas, outside = scaled(matrices, (0, 1, 2)), scaled(areas, (0, 1)), scaled(outside, (0, 1))
    gain, utility = np.full(matrices.shape[:2], np.nan), np.full(matrices.shape[:2], np.nan)
    weights = (settings.alpha, settings.beta, settings.gamma)
    how = (settings.window, settings.with_last, settings.clip, settings.forgetting)
    for k, s in np.ndindex(*gain.shape):
        elsewhere = float(np.mean(outside[k, s])) if outside.shape[2] else 0.0
        gain[k, s] = np.mean(immediate_gains(matrices[k, s]))
        utility[k, s] = long_utility(matrices[k, s], areas[k, s], elsewhere, weights, *how)
    return {"gain": gain, "utility": utility}


def _areas(path: Sequence[Mapping[str, Any]], settings: Measures) -> np.ndarray:
    """The area under the branch after every stage but the last, float64 [T - 1]; NaN where it is not known."""
    return np.array([_area(cell.get("curve"), settings) for cell in path[:-1]])


def _outside(last: Mapping[str, Any], elsewhere: Sequence[str]) -> np.ndarray:
    """The final performance on each out-of-domain target, float64 [targets]."""
    performance = last.get("performance", {})
    return np.array([_number(performance.get(target)) for target in elsewhere], np.float64)


def _entropy(counts: Mapping[str, int] | None, settings: Measures) -> float | None:
    if not counts or not sum(counts.values()):
        return None
    return entropy(list(counts.values()), settings.log_base or None, settings.normalize_entropy)


def _area(curve: Mapping[str, Any] | None, settings: Measures) -> float:
    """The area under a branch's curve, from before its first step or from the first evaluation after it."""
    first = 0 if settings.from_start else 1
    if not curve or len(curve["values"]) < first + 2:
        return float("nan")
    return area(np.array(curve[settings.axis], float)[first:], np.array([_number(v) for v in curve["values"]])[first:])


def _levels(paths: Mapping[tuple[int, int], Any], stages: int, seeds: int, settings: Measures) -> list[float]:
    """The early threshold of every branch: the first selector's starting value plus a share of its gain; NaN if it
    gained nothing."""
    levels = []
    for t in range(stages - 1):
        curves = [paths[0, s][t].get("curve") for s in range(seeds)]
        ends = [[_number(c["values"][i]) for c in curves if c] for i in (0, -1)]
        first, last = (float(np.mean(v)) if v else float("nan") for v in ends)
        levels.append(first + settings.threshold * (last - first) if last > first else float("nan"))
    return levels


def _early(curve: Mapping[str, Any] | None, level: float) -> float:
    """Tokens until a branch reaches the level; one that never does counts with all its tokens, an underestimate."""
    values = np.array([_number(v) for v in curve["values"]]) if curve else np.zeros(0)
    if not curve or not np.isfinite(level) or not np.isfinite(values).all():
        return float("nan")
    tokens = reached(np.array(curve["tokens"], float), values, level)
    return tokens if np.isfinite(tokens) else float(curve["tokens"][-1])


def _curves(paths: Sequence[Sequence[Mapping[str, Any]]], stages: int) -> list[tuple[np.ndarray, np.ndarray] | None]:
    curves: list[tuple[np.ndarray, np.ndarray] | None] = []
    for t in range(stages - 1):
        branches = [path[t]["curve"] for path in paths if path[t].get("curve")]
        same_length = bool(branches) and len({len(curve["values"]) for curve in branches}) == 1
        values = np.array([[_number(v) for v in curve["values"]] for curve in branches]) if same_length else None
        curves.append(None if values is None else (np.mean([c["tokens"] for c in branches], axis=0), values.mean(0)))
    return curves


def _ranks(measures: Mapping[str, np.ndarray], selectors: Sequence[str]) -> tuple[Myopia | None, list[str]]:
    """The myopia of the selectors that have both a gain and a utility for at least one seed, and their names."""
    both = np.isfinite(measures["gain"]) & np.isfinite(measures["utility"])
    rows = np.flatnonzero(both.any(1))
    ranked = [selectors[int(k)] for k in rows]
    if len(rows) < 2:
        return None, ranked
    gain, utility = (np.where(both, measures[name], np.nan)[rows] for name in ("gain", "utility"))
    return myopia(gain, utility), ranked


def _missing(
    start: Mapping[str, Any], paths: Mapping[tuple[int, int], Any], selectors: Sequence[str], stages: Sequence[Any]
) -> list[str]:
    """What is unknown, and what deviated from the request."""
    problems = (
        [f"before the first stage nothing could be evaluated on {', '.join(unevaluated)}"]
        if (unevaluated := _nulls(start))
        else []
    )
    for (k, s), path in paths.items():
        for t, cell in enumerate(path):
            name = f"{selectors[k]}, seed {s}, stage {t + 1} ({stages[t][0]})"
            if cell.get("error"):
                problems.append(f"{name}: {cell['error']}")
                continue
            if unknown := _nulls(cell.get("performance", {})):
                problems.append(f"{name}: nothing could be evaluated on {', '.join(unknown)}")
            curve = cell.get("curve") or {}
            if "curve" in cell and (not curve or None in curve["values"]):
                problems.append(f"{name}: its branch is not known{': ' + cell['branch'] if cell.get('branch') else ''}")
            problems += [f"{name}: {warning}" for warning in cell.get("warnings", ())]
    return problems


def _nulls(performance: Mapping[str, Any]) -> list[str]:
    return [target for target, value in performance.items() if value is None]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: Any) -> float:
    """Mean of the known values; NaN if there are none."""
    finite = [float(v) for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def rows(card: Scorecard, level: Literal["now", "later"]) -> list[dict[str, str]]:
    """The scorecard's rows for one level: a row per selector, a column per measure, each a mean over seeds with its
    standard error."""
    names = [name for name in (NOW if level == "now" else LATER) if np.isfinite(card.measures[name]).any()]
    found = []
    for k, selector in enumerate(card.selectors):
        row = {"selector": selector, **{name: _told(card.measures[name][k]) for name in names}}
        if level == "later" and card.myopia:
            at = card.ranked.index(selector) if selector in card.ranked else -1
            its = card.myopia
            row["ranks"] = f"{its.now[at]:g} -> {its.later[at]:g}" if at >= 0 else ""
            row["gap"] = f"{its.each[at]:.2f}" if at >= 0 else ""
            row["myopic_p"] = f"{its.myopic[at]:.2g}" if at >= 0 and np.isfinite(its.myopic[at]) else ""
        found.append(row)
    return found


def _told(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return str(Mean.of(known.tolist())) if len(known) else "-"
