"""`curate foretell`: which scores foretell what training on a subset gives, by the subsets of a trial.

scores, weights, SQL ── sums over each subset ─┬─ rank correlation ── a row each, and a sentence
trial ── the target's loss after each subset ──┴─ the ceiling: repeats, and a regression on membership
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.executor import Executor, Tasks
from curate.methods.executors.local import Local
from curate.numerics.datamodels import (
    ceiling,
    foretold,
    lds,
    linear_datamodel,
    of_mean,
    predicted,
    reliability,
    shares_of_best,
    standard_error,
)
from curate.numerics.rank_agreement import spearman
from curate.numerics.statistics import adjusted
from curate.progress import Progress
from curate.results import Result
from curate.runs.counterfactual import CounterfactualWorker, arms, harm_and_help
from curate.runs.trial import TRAINED, TrialWorker, spec_in
from curate.store.files import remove_leftovers
from curate.store.ledger import Meters
from curate.store.locks import lock
from curate.tables.trial_values import cost_of, values_of
from curate.tables.trials import StoredTrial, gains_of, require_trial

LEVEL = 0.05  # of the permutation control, adjusted for the scores that are looked at (Holm)


@dataclass
class Foretelling:
    """How well one score foretells. lds: the rank correlation with the target's mean loss over subsets, and its 95 %
    interval; p: how often dealt-out values do as well, adjusted: for all that are looked at; each: the mean over target
    examples of the correlation with the example's own loss; best: in what share of resampled subsets it is the best.
    samples: with a value, of those that may be drawn. flops, seconds: what it cost; None: not in the ledger.
    per_flop: lds for each of these FLOPs; None: it cost none, or that is not known. harm, help: mean, and 95 %
    interval, of how much more the target's loss is without the best samples than without random ones, and how much
    less on the best alone (None: not asked for)."""

    score: str
    lds: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    each: float | None
    best: float
    samples: int
    flops: float | None
    seconds: float | None
    per_flop: float | None = None
    harm: tuple[float, float, float] | None = None
    help: tuple[float, float, float] | None = None


@dataclass
class Foretold(Result):
    """The table of `curate foretell`, the best first. ceiling: what any score is expected to have at most, by the
    trial's repeats (None: nothing was repeated); datamodel: what regression on the other subsets foretells of each."""

    trial: str
    subsets: int
    samples: int
    error: float
    ceiling: float | None
    datamodel: float | None
    rows: list[Foretelling] = field(default_factory=list)
    reading: str = ""
    warnings: list[str] = field(default_factory=list)
    counterfactual: float = 0.0
    seeds: int = 0


def foretell(
    ws: AnyWorkspace,
    name: str,
    *scores: str,
    draws: int = 1000,
    seed: int = 0,
    allow_stale: bool = False,
    counterfactual: float = 0.0,
    seeds: int = 3,
    executor: Executor | str | None = None,
    wait: float | None = None,
) -> Foretold:
    """Compare scores by how well they foretell a trial: the linear datamodeling score, with its interval and control.

    scores: stored scores, manifests (their weights; 0 where a sample is not in one), or SQL expressions over `samples`,
    of which higher means better for the target. draws: of the bootstrap over subsets, and of values dealt out anew.
    counterfactual: a share of the samples; train by the trial's recipe without the best such share by each score, on
    it alone, and the same with random samples, `seeds` times each, by `executor` (default: local); their losses are
    kept.

    Raises CurateError for an unknown trial, or one that has not ended, for a score that is stale (unless allowed), or
    has no value in any subset.
    """
    ws = workspace_of(ws, wait=wait)
    stored = require_trial(ws, name)
    if not scores:
        raise CurateError("name what is to foretell it: scores, manifests, or SQL expressions over `samples`.")
    gains, repeats = gains_of(stored)
    usable_examples = np.isfinite(gains).all(0)
    gains, members = gains[:, usable_examples], stored.members
    recipe = stored.require_recipe()
    once = reliability(repeats)
    most = ceiling(of_mean(once, _times(stored)))
    mean = gains.mean(1)
    fitted = spearman(linear_datamodel(members, mean[:, None])[:, 0], mean)
    error = standard_error(recipe.subsets)
    result = Foretold(name, recipe.subsets, recipe.samples, error, _known(most), _known(fitted))
    values = {}
    for score in dict.fromkeys(scores):
        values[score], warnings = values_of(ws, stored, score, allow_stale)
        result.warnings += warnings
    summed = np.stack([predicted(each, members) for each in values.values()])
    won = shares_of_best(summed, gains, draws, seed)
    for i, (score, each) in enumerate(values.items()):
        found = foretold(each, members, gains, draws, seed)
        own = lds(each, members, gains) if np.isfinite(found.mean) else np.array([np.nan])
        flops, seconds = cost_of(ws, [score])
        result.rows.append(
            Foretelling(
                score=score,
                lds=_known(found.mean),
                low=_known(found.low),
                high=_known(found.high),
                p=_known(found.p),
                adjusted=None,
                each=_known(float(np.nanmean(own))),
                best=float(won[i]),
                samples=int(np.sum(~np.isnan(each))),
                flops=flops,
                seconds=seconds,
                per_flop=float(found.mean / flops) if flops and np.isfinite(found.mean) else None,
            )
        )
    _adjust(result.rows)
    if counterfactual:
        _counter(stored, values, counterfactual, seeds, executor, result)
    result.rows.sort(key=lambda row: -(row.lds if row.lds is not None else -2.0))
    best = result.rows[0].lds
    if result.ceiling is not None and best is not None and best > result.ceiling:
        result.warnings.append(
            f"{result.rows[0].score} has {best:.2f}, and by the repeats {result.ceiling:.2f} is to be had at most: "
            f"{repeats.shape[1]} subsets that were trained on again do not tell it; repeat more of them (--repeated)"
        )
    result.reading = _reading(result)
    return result


def _counter(
    stored: StoredTrial,
    values: dict[str, np.ndarray],
    share: float,
    seeds: int,
    executor: Executor | str | None,
    result: Foretold,
) -> None:
    """Train without the best samples, and on them alone, and set what that does. Raises CurateError for a share that
    leaves nothing, or fewer than two seeds."""
    if not 0 < share < 1 or seeds < 2:
        raise CurateError(
            f"--counterfactual {share:g} is a share of the samples, between 0 and 1, and --seeds {seeds} 2 or more, of "
            "which the interval is made."
        )
    ws, recipe = stored.ws, stored.require_recipe()
    by_score = {score: arms(each, share, seeds, recipe.seed) for score, each in values.items()}
    every = {t.name: t for its in by_score.values() for each in its.values() for t in each.values()}
    runs_on = method_of(Executor, executor) if executor is not None else Local()
    with ExitStack() as stack:
        stack.enter_context(lock(ws, f"trial {stored.name}"))
        parts = stored.counterfactuals
        remove_leftovers(parts.folder, mine=True)
        stack.callback(parts.certify)
        done = set(parts.names())
        todo = [training for name, training in every.items() if name not in done]
        columns = {"methods": [recipe.weighting.name], "name": stored.name, "model": recipe.model.name}
        meters = Meters(ws.path, "trial", {phase: phase for phase in TRAINED}, stack, **columns)
        worker = CounterfactualWorker(TrialWorker(str(ws.path), stored.name, spec_in(ws, recipe), ws.trusted))
        shown = stack.enter_context(
            Progress(f"foretell {stored.name}", len(every), done=len(done & every.keys()), noun="trainings")
        )
        workers = stack.enter_context(closing(runs_on.open()))
        for training, outcome in workers.run(
            worker.run_task, Tasks(todo), lambda task: meters["train"].begin(task.samples)
        ):
            for phase, usage in outcome.result.items():
                meters.charge(phase, training.samples if phase != "train" else 0, usage)
            shown.finished(1)
    result.counterfactual, result.seeds = share, seeds
    for row in result.rows:
        harm, gain = harm_and_help(stored, by_score[row.score])
        row.harm, row.help = ((m.mean, *(m.interval() or (m.mean, m.mean))) for m in (harm, gain))


def _times(stored: StoredTrial) -> float:
    """How often a subset was trained on, in the mean."""
    recipe = stored.require_recipe()
    return len(stored.trainings()) / recipe.subsets


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _adjust(rows: list[Foretelling]) -> None:
    """Set the adjusted p of each."""
    known = [row for row in rows if row.p is not None]
    for row, p in zip(known, adjusted(np.array([row.p for row in known], np.float64)), strict=True):
        row.adjusted = float(p)


def _reading(result: Foretold) -> str:
    """A sentence: which score to use here, and how sure that is."""
    first = result.rows[0]
    if first.lds is None or first.adjusted is None or first.adjusted > LEVEL:
        return (
            f"None foretells more than chance (the best is {first.score}); over {result.subsets} subsets a correlation "
            f"below {2 * result.error:.2f} is hardly told from none."
        )
    told = f"Here {first.score} foretells best: {first.lds:.2f} ({first.low:.2f} to {first.high:.2f})"
    told += f" where {result.ceiling:.2f} is to be had" if result.ceiling and result.ceiling > first.lds else ""
    if len(result.rows) == 1:
        return told + "."
    second = result.rows[1]
    sure = f"it is ahead of all others in {first.best:.0%} of resampled trials"
    return f"{told}; {sure}" + (f" ({second.score} in {second.best:.0%})." if second.best else ".")
