"""`curate combine`: a weighted sum of scores that foretells a trial, as an SQL expression.

scores, weights, SQL ── means over each subset ─┬─ ridge regression ── a weight each ── an expression
trial ── the target's loss after each subset ───┴─ what the other subsets foretell of each: the held-out LDS
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.numerics.combination import fitted
from curate.numerics.datamodels import predicted
from curate.numerics.rank_agreement import spearman
from curate.results import Result
from curate.tables.trial_values import cost_of, values_of
from curate.tables.trials import gains_of, require_trial


@dataclass
class Weighted:
    """One score in a combination. weight: what the target's gain rises by where a subset's mean of it is one standard
    deviation of its values higher; low, high: its 95 % bootstrap interval over subsets. lds: its own, alone."""

    score: str
    weight: float
    low: float
    high: float
    lds: float


@dataclass
class Combined(Result):
    """A combination of scores. expression: its SQL over `samples`. held_out: the rank correlation of what the other
    subsets foretell of each subset with its gain, and its 95 % interval; best_alone: the score that foretells most by
    itself, one way or the other, and its LDS, for which nothing was fitted. flops, seconds: what all scores cost,
    None if the ledger has nothing."""

    trial: str
    subsets: int
    expression: str
    held_out: float
    low: float
    high: float
    best_alone: str
    best_lds: float
    flops: float | None
    seconds: float | None
    rows: list[Weighted] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def combine(
    ws: AnyWorkspace, name: str, *scores: str, draws: int = 1000, seed: int = 0, allow_stale: bool = False
) -> Combined:
    """Fit a weighted sum of scores to what the trainings of the trial `name` gained (ridge regression on the subsets'
    means, its penalty by subsets that are left out one by one), and give it as an SQL expression over `samples` for
    `--by`, `curate foretell` and all else that takes one.

    scores: two or more stored scores, or SQL expressions. Each is taken in standard deviations from its mean over the
    trial's samples; a sample without a value has the mean. draws: of the bootstrap. On the trial that it was fitted to
    the expression looks better than it is: `held_out` is what counts, or another trial.

    Raises CurateError for an unknown trial, or one that has not ended, fewer than two scores, a manifest, or a score
    that is stale (unless allowed) or says the same of all samples.
    """
    ws = workspace_of(ws)
    stored = require_trial(ws, name)
    scores = tuple(dict.fromkeys(scores))
    if draws < 1:
        raise CurateError(f"--draws {draws}: the intervals are made of 1 or more.")
    if len(scores) < 2:
        raise CurateError("name at least two scores, or SQL expressions over `samples`, to combine.")
    if manifests := sorted(set(scores) & set(ws.manifest_names())):
        raise CurateError(f"'{manifests[0]}' is a manifest, and a combination is of scores, which SQL can add up.")
    gains, _ = gains_of(stored)
    mean = gains[:, np.isfinite(gains).all(0)].mean(1)
    warnings, found = list[str](), []
    for score in scores:
        values, said = values_of(ws, stored, score, allow_stale)
        if np.nanstd(values) == 0:
            raise CurateError(f"{score} says the same of all samples of the trial '{name}'; leave it out.")
        found.append(values)
        warnings += said
    if len(mean) <= len(scores) + 1:
        warnings.append(f"{len(mean)} subsets tell little of {len(scores)} weights; a trial of more subsets would")
    columns = np.stack(found)
    result = fitted(columns, stored.members, mean, draws, seed)
    alone = [spearman(predicted(values, stored.members), mean) for values in columns]
    rows = [
        Weighted(score, float(w), float(a), float(b), float(own))
        for score, w, a, b, own in zip(
            scores, result.weights, result.weights_low, result.weights_high, alone, strict=True
        )
    ]
    best = max(rows, key=lambda row: np.nan_to_num(abs(row.lds)))
    flops, seconds = cost_of(ws, scores)
    if result.held_out <= abs(best.lds):
        warnings.append(
            f"{best.score} alone foretells as well ({best.lds:.2f}): the combination does not pay for the others"
        )
    return Combined(
        trial=name,
        subsets=len(mean),
        expression=_expression(scores, result.weights, result.center, result.scale),
        held_out=result.held_out,
        low=result.low,
        high=result.high,
        best_alone=best.score,
        best_lds=best.lds,
        flops=flops,
        seconds=seconds,
        rows=sorted(rows, key=lambda row: -abs(row.weight)),
        warnings=warnings,
    )


def _expression(scores: tuple[str, ...], weights: np.ndarray, center: np.ndarray, scale: np.ndarray) -> str:
    """The sum in SQL; a sample without a value of a score counts as its mean."""
    terms = [
        f"{w / s:.12g} * CASE WHEN isfinite(({score})::DOUBLE) THEN ({score})::DOUBLE - ({c:.12g}) ELSE 0 END"
        for score, w, c, s in zip(scores, weights, center, scale, strict=True)
    ]
    return " + ".join(terms)
