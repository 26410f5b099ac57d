"""Trainings without the samples that a score calls best, or on them alone: what a trial's subsets cannot show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import DivergedError
from curate.hashing import fingerprint
from curate.numerics.statistics import Mean, paired
from curate.runs.trial import TrialWorker
from curate.store.encoding import read_table
from curate.tables.trials import StoredTrial


@dataclass(frozen=True)
class Counterfactual:
    """A training of a trial on samples that were not drawn at random. members: which of the N that may be drawn, packed
    as bits. seed: of the training. samples: their number."""

    members: bytes
    seed: int
    samples: int

    cost = 1.0

    @classmethod
    def of(cls, members: np.ndarray, seed: int) -> Counterfactual:
        """members: bool [N]."""
        return cls(np.packbits(members).tobytes(), seed, int(members.sum()))

    @property
    def name(self) -> str:
        """The name of its part: the same for the same members and seed, whichever score they are from."""
        return f"{fingerprint(self.members.hex())}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.samples:,} samples, seed {self.seed}"


def loss_of(stored: StoredTrial, training: Counterfactual) -> np.ndarray:
    """The loss of every target example after it, float64 [E]."""
    return read_table(stored.counterfactuals.intact(training.name), ["loss"])["loss"].to_numpy()


def arms(values: np.ndarray, share: float, seeds: int, first: int) -> dict[str, dict[int, Counterfactual]]:
    """For each seed the training without the share of samples with the highest values, and on these alone; and the same
    with samples drawn at random by the seed. values: float64 [N], NaN counts as lowest; ties by order. first: the seed
    of the first trainings."""
    count = max(1, round(share * len(values)))
    top = np.zeros(len(values), bool)
    top[np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")[:count]] = True
    found: dict[str, dict[int, Counterfactual]] = {"without": {}, "only": {}, "random": {}, "only random": {}}
    for i in range(seeds):
        drawn = np.zeros(len(values), bool)
        drawn[np.random.default_rng([first, i, count]).choice(len(values), count, replace=False)] = True
        sets = {"without": ~top, "only": top, "random": ~drawn, "only random": drawn}
        for name, members in sets.items():
            found[name][i] = Counterfactual.of(members, first + i)
    return found


def harm_and_help(stored: StoredTrial, its: dict[str, dict[int, Counterfactual]]) -> tuple[Mean, Mean]:
    """How much more the target's loss is without the best samples than without random ones, and how much less on the
    best alone than on random ones, over the seeds, each of which seeds both trainings."""
    mean = {arm: {i: float(np.nanmean(loss_of(stored, t))) for i, t in each.items()} for arm, each in its.items()}
    harm, gain = paired(mean["without"], mean["random"]), paired(mean["only random"], mean["only"])
    assert harm is not None and gain is not None
    return harm, gain


@dataclass(frozen=True)
class CounterfactualWorker:
    """What a worker needs for such trainings."""

    trial: TrialWorker

    def run_task(self, task: Counterfactual) -> dict[str, Any]:
        """Train, and commit what it gave. Returns the cost by phase."""
        from curate.training.step_weights import Diverged

        stored, trainer = self.trial.stored, self.trial.loaded
        bits = np.unpackbits(np.frombuffer(task.members, np.uint8), count=len(stored.rows))
        try:
            found = trainer.train(bits.astype(bool), task.seed)
        except Diverged as error:
            raise DivergedError(
                f"the trial '{self.trial.name}' was stopped at {task}: {error}; use a smaller lr, or a clip above 0, "
                "and make it under another name."
            ) from None
        table = pa.table({"example": np.arange(len(found.loss), dtype=np.int32), "loss": found.loss})
        stored.counterfactuals.commit(task.name, table, seed=task.seed, samples=found.samples, steps=found.steps)
        return dict(found.usage)
