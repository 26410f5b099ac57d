"""A trial: which random subsets of the pool are drawn, and how a worker trains on one of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, DivergedError
from curate.kinds.registry import find
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.numerics.apportion import largest_remainders
from curate.runs.config import TrainingSpec
from curate.runs.opened_training import OpenedTraining
from curate.store.ledger import Meters
from curate.store.run_record import Run
from curate.store.trial_recipe import TrialRecipe
from curate.store.workspace import Workspace, open_workspace
from curate.tables.inputs import load_target, model_choice
from curate.tables.trials import StoredTrial, Training, require_trial
from curate.training.settings import TrainSettings

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.subsets import SubsetTrainer


# The phases of a training, in the ledger.
TRAINED = ("train", "losses", "anchors", "candidates", "target", "selection", "base losses", "evaluate")


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is: K random subsets of a share of the samples, each trained on from the same model.

    where: SQL condition on samples that may be drawn; '': all that can be trained on. stratify: draw the same share of
    every source. repeats: how often each of the first `repeated` subsets is trained, with other seeds: what differs
    between these is noise. split: of the target, whose examples' losses are measured. keep_checkpoints: keep what was
    trained, so that another target can be measured on it. of: the trial whose checkpoints are measured, instead of
    training; '': none.
    """

    model: ModelChoice
    target: str
    weighting: Weighting
    settings: TrainSettings = field(default_factory=TrainSettings)
    subsets: int = 64
    share: float = 0.5
    where: str = ""
    stratify: bool = False
    repeats: int = 1
    repeated: int = 16
    split: str = "val"
    seed: int = 0
    keep_checkpoints: bool = False
    of: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise CurateError(f"--share {self.share:g} is a share of the samples, between 0 and 1.")
        if self.subsets < 2 or self.repeats < 1 or self.repeated < 0:
            raise CurateError(
                f"a trial has --subsets of 2 or more, --repeats of 1 or more and --repeated of 0 or more, not "
                f"{self.subsets}, {self.repeats} and {self.repeated}."
            )
        if self.split not in ("val", "test"):
            raise CurateError(f"the split '{self.split}' is neither val nor test.")


def spec_of(ws: Workspace, name: str, target: str, split: str) -> TrialSpec:
    """The trial `name`, with another target measured on what it has trained. Raises CurateError if its trainings have
    not all ended with a checkpoint."""
    source = require_trial(ws, name)
    recipe = source.require_recipe()
    if not recipe.keep_checkpoints:
        raise CurateError(
            f"the trial '{name}' has kept no checkpoints, on which another target could be measured; make one with "
            "--keep-checkpoints."
        )
    done, every = set(source.checkpoints.names()), source.trainings()
    if missing := sum(training.name not in done for training in every):
        raise CurateError(
            f"{missing} of the {len(every)} trainings of the trial '{name}' have not ended; the same `curate trial` "
            "goes on with them."
        )
    return replace(spec_in(ws, recipe), target=target, split=split, of=name)


def spec_in(ws: Workspace, recipe: TrialRecipe) -> TrialSpec:
    """The trainings of a stored trial, whether they were its own or another's."""
    weighting = find("weighting", recipe.weighting.name)(**recipe.weighting.settings)
    same = ("subsets", "share", "where", "stratify", "repeats", "repeated", "seed", "split")
    model, settings = model_choice(recipe.model, ws.trusted), TrainSettings(**recipe.settings)
    return TrialSpec(model, recipe.target, weighting, settings, **{key: getattr(recipe, key) for key in same})


def drawn(samples: int, sources: np.ndarray | None, spec: TrialSpec) -> np.ndarray:
    """The members of every subset, bool [K, N]: the given share of N samples; with the source of each, int64 [N], of
    every source's. A subset depends on the seed and its number alone."""
    members = np.zeros((spec.subsets, samples), bool)
    groups = [np.arange(samples)]
    if sources is not None:
        groups = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    sizes = np.array([len(group) for group in groups])
    taken = largest_remainders(sizes / sizes.sum(), round(spec.share * samples))
    for i, row in enumerate(members):
        rng = np.random.default_rng([spec.seed, i])
        for group, count in zip(groups, taken.tolist(), strict=True):
            row[rng.choice(group, min(int(count), len(group)), replace=False)] = True
    return members


# --- a worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialWorker:
    """What a worker needs to train on subsets: plain data, and what it has loaded."""

    path: str
    name: str
    spec: TrialSpec
    trusted: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been loaded, which a worker loads itself."""
        return {key: value for key, value in self.__dict__.items() if key not in ("loaded", "stored")}

    @cached_property
    def stored(self) -> StoredTrial:
        """The trial."""
        return StoredTrial(replace(open_workspace(self.path), trusted=self.trusted).with_pinned_pool(), self.name)

    @cached_property
    def loaded(self) -> SubsetTrainer:
        """The model, with the samples that the trial was made with."""
        from curate.training.subsets import SubsetTrainer

        nothing = Meters(self.stored.ws.path, "trial", {}, ExitStack())  # stored when the subsets were drawn
        found = opened(self.stored.ws, self.name, self.spec, self.stored.rows, nothing)
        if not np.array_equal(found.rows, self.stored.rows):
            raise CurateError(
                f"the samples that can be trained on are others than when the trial '{self.name}' was drawn; has its "
                "pool, or its tokenizer, been changed? Make it under another name."
            )
        return SubsetTrainer(found.model, found.data, self.spec.settings, self.spec.weighting, found.asked)

    def run_task(self, task: Training) -> dict[str, Any]:
        """Train on a subset, and commit what it gave. Returns the cost by phase."""
        from curate.training.step_weights import Diverged

        if self.spec.of:
            return self._measured(task)
        stored, trainer = self.stored, self.loaded
        seed = seed_of(stored.seeds[task.subset], task.repeat)
        try:
            found = trainer.train(stored.members[task.subset], seed)
        except Diverged as error:
            raise DivergedError(
                f"the trial '{self.name}' was stopped at {task}: {error}; use a smaller lr, or a clip above 0, and "
                "make it under another name."
            ) from None
        table = pa.table({"example": np.arange(len(found.loss), dtype=np.int32), "loss": found.loss})
        flops = sum(cost.flops for phase, cost in found.usage.items() if phase != "evaluate")
        seconds = sum(cost.seconds or 0.0 for phase, cost in found.usage.items() if phase != "evaluate")
        figures = {"steps": found.steps, "samples": found.samples, "flops": flops, "seconds": seconds}
        if self.spec.keep_checkpoints:  # first, so that what has its losses has its checkpoint
            stored.checkpoints.commit(task.name, trainer.parameters(), listed=False, **figures)
        stored.losses.commit(task.name, table, subset=task.subset, repeat=task.repeat, seed=seed, **figures)
        return dict(found.usage)

    def _measured(self, task: Training) -> dict[str, Any]:
        """Measure what another trial has trained on the same subset, and commit it. Returns the cost."""
        source = StoredTrial(self.stored.ws, self.spec.of)
        parameters, record = source.checkpoints.read(task.name), source.checkpoints.record(task.name)
        if parameters is None or record is None:
            raise CurateError(
                f"the checkpoint of {task} of the trial '{self.spec.of}' is gone, or damaged; make that trial again, "
                "under another name."
            )
        losses, usage = self.loaded.measure(parameters)
        table = pa.table({"example": np.arange(len(losses), dtype=np.int32), "loss": losses})
        seed = seed_of(self.stored.seeds[task.subset], task.repeat)
        trained = {key: record[key] for key in ("steps", "samples", "flops", "seconds")}
        self.stored.losses.commit(task.name, table, subset=task.subset, repeat=task.repeat, seed=seed, **trained)
        return {"evaluate": usage}


def seed_of(seed: int, repeat: int) -> int:
    """The seed of a training: a subset's own, and another each time it is repeated."""
    return seed + repeat


def opened(ws: Workspace, name: str, spec: TrialSpec, rows: np.ndarray, meters: Meters) -> OpenedTraining:
    """The trial's training, with the samples at some rows of the pool. meters: charged for losses of the base model, if
    the weighting needs them. Raises CurateError if no sample is usable."""
    training = TrainingSpec(spec.model, spec.weighting, spec.settings, seed=spec.seed)
    weighed = load_target(ws, spec.target) if spec.weighting.uses_target else None
    run = Run(ws, name, place=ws.path / "trials" / name / "prepared")
    return OpenedTraining.of(run, training, rows, weighed, load_target(ws, spec.target, (spec.split,)), meters)
