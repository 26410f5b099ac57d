"""Every arm at a learning rate of its own: the same few rates are tried by each with its first seed, the one with the
lowest validation loss is taken for all seeds, and what the trials cost is told beside the arm.

A rate that suits trainings of all parameters moves a twentieth of them hardly at all, so one rate for all arms measures
the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from equal_flops import SEED, Job, train_all  # pyright: ignore[reportMissingImports]

import curate
from curate.methods.metrics.loss import Loss
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace

TRIAL = "rate"


@dataclass(frozen=True)
class Rates:
    """What the trials of one arm found. tried: rate -> the target's validation loss after it. runs: their names. flops:
    of all trials."""

    tried: Mapping[float, float]
    runs: Sequence[str]
    flops: float

    @property
    def best(self) -> float:
        return min(self.tried, key=lambda rate: self.tried[rate])


def tried(
    ws: Workspace,
    arms: Mapping[str, TrainingSpec],
    target: str,
    evals: Sequence[EvalSpec],
    workers: int,
    factors: Sequence[float],
) -> dict[str, Rates]:
    """The trials of every arm, whose training has the rate that the factors multiply. evals: what else is measured of a
    trial, on test questions; no rate is chosen by it."""
    val = EvalSpec(target, Loss(), split="val")
    jobs, rate_of = [], dict[str, tuple[str, float]]()
    for arm, training in arms.items():
        for factor in factors:
            name = f"{TRIAL}{factor:g}_{arm}".replace(".", "p")
            rate_of[name] = arm, training.settings.lr * factor
            its = replace(training, settings=replace(training.settings, lr=training.settings.lr * factor))
            jobs.append(Job(str(ws.path), name, its, (val, *evals)))
    train_all(jobs, workers)
    query = f"""SELECT run, value FROM evaluations e WHERE target = '{target}' AND split = 'val' AND metric = 'loss'
        AND step = (SELECT max(step) FROM evaluations WHERE run = e.run)"""
    losses = {row["run"]: row["value"] for row in curate.sql(ws, query)}
    flops = {
        row["run"]: row["flops"]
        for row in curate.sql(
            ws, "SELECT run, sum(flops) AS flops FROM ledger WHERE phase <> 'evaluate' AND run IS NOT NULL GROUP BY run"
        )
    }
    found: dict[str, Rates] = {}
    for arm in arms:
        names = [name for name, (its, _) in rate_of.items() if its == arm]
        by_rate = {rate_of[name][1]: float(losses[name]) for name in names}
        found[arm] = Rates(by_rate, names, sum(float(flops[name]) for name in names))
    return found


def one_rate(arms: Mapping[str, TrainingSpec]) -> dict[str, Rates]:
    """Where no rate is looked for, the one that every arm's training has."""
    return {arm: Rates({training.settings.lr: float("nan")}, (), 0.0) for arm, training in arms.items()}


def at_best(
    trainings: Mapping[str, Sequence[TrainingSpec]], rates: Mapping[str, Rates]
) -> list[tuple[str, TrainingSpec]]:
    """Every arm's trainings, one per seed, at its own rate: the run's name, and the training."""
    most = max(map(len, trainings.values()))
    return [
        (f"{arm}{SEED}{specs[i].seed}", replace(specs[i], settings=replace(specs[i].settings, lr=rates[arm].best)))
        for i in range(most)
        for arm, specs in trainings.items()
        if i < len(specs)
    ]
