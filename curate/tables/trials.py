"""A trial as stored in a workspace: random subsets of the pool, and what a training on each gave.

trials/NAME/trial.json                   the recipe, written when the subsets are drawn
            drawn/rows.parquet           the rows in the pool of the samples that may be drawn
                  members.parquet        of every subset its seed and its members, a bit for each of these samples
            checkpoints/00012-0.safetensors   the trained parameters, if they are kept
            losses/00012-0.parquet       what the first training on subset 12 gave; exists once its record does

A trial belongs to the pool as it was: samples that are ingested later are in no subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.store.commits import Parts
from curate.store.contents import require_intact
from curate.store.encoding import read_table
from curate.store.object_store import Location
from curate.store.recipes import read_recipe
from curate.store.schema import TRIALS
from curate.store.trial_recipe import TrialRecipe
from curate.store.workspace import Workspace


@dataclass(frozen=True)
class Training:
    """One training of a trial. samples: of its subset."""

    subset: int
    repeat: int
    samples: int

    cost = 1.0

    @property
    def name(self) -> str:
        """The name of its part."""
        return f"{self.subset:05d}-{self.repeat}"

    def __str__(self) -> str:
        return f"the subset {self.subset}" + (f", once more ({self.repeat})" if self.repeat else "")


@dataclass(frozen=True)
class StoredTrial:
    """A trial in a workspace."""

    ws: Workspace
    name: str

    @property
    def folder(self) -> Location:
        """Its folder."""
        return self.ws.trial_folder(self.name)

    @property
    def recipe(self) -> TrialRecipe | None:
        """trial.json; None if there is no such trial."""
        path = self.folder / "trial.json"
        return read_recipe(path, TrialRecipe) if path.exists() else None

    def require_recipe(self) -> TrialRecipe:
        """trial.json. Raises CurateError if there is none, and DamagedError if it is not what was written."""
        require_intact(self.ws, "trial", self.name)
        return read_recipe(self.folder / "trial.json", TrialRecipe)

    @property
    def drawn(self) -> Parts:
        """The samples that may be drawn (`rows`), and the subsets (`members`)."""
        return Parts(self.folder / "drawn")

    @property
    def counterfactuals(self) -> Parts:
        """A part for every training on samples that a score calls best, or without them."""
        return Parts(self.folder / "counterfactuals")

    @property
    def losses(self) -> Parts:
        """A part for every training: a row for every target example."""
        return Parts(self.folder / "losses")

    @property
    def checkpoints(self) -> Parts:
        """A part for every training whose trained parameters are kept, by their names."""
        return Parts(self.folder / "checkpoints", ".safetensors")

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows in the pool of the N samples that may be drawn, int64, ascending."""
        return read_table(self.drawn.intact("rows"))["row"].to_numpy()

    @cached_property
    def seeds(self) -> list[int]:
        """The seed of every subset's first training."""
        return read_table(self.drawn.intact("members"))["seed"].to_pylist()

    @cached_property
    def members(self) -> np.ndarray:
        """Which of these are in each subset, bool [K, N]."""
        packed = read_table(self.drawn.intact("members"))["members"].to_pylist()
        bits = np.stack([np.frombuffer(one, np.uint8) for one in packed])
        return np.unpackbits(bits, axis=1, count=len(self.rows)).astype(bool)

    def trainings(self) -> list[Training]:
        """All trainings of the trial: the first of every subset before any is repeated."""
        recipe, sizes = self.require_recipe(), self.members.sum(1).tolist()
        of_subset = [recipe.repeats if i < recipe.repeated else 1 for i in range(recipe.subsets)]
        return [
            Training(i, repeat, sizes[i])
            for repeat in range(recipe.repeats)
            for i in range(recipe.subsets)
            if repeat < of_subset[i]
        ]

    def loss(self, training: Training) -> np.ndarray | None:
        """The loss of every target example after a training, float64 [E]; None if it has not ended."""
        if self.losses.record(training.name) is None:
            return None
        return read_table(self.losses.intact(training.name), ["loss"])["loss"].to_numpy()


def require_trial(ws: Workspace, name: str) -> StoredTrial:
    """The trial of a name. Raises CurateError, suggesting the most similar name, if there is none."""
    ws.require("trial", name)
    return StoredTrial(ws, name)


def trial_state(ended: int, every: int) -> str:
    """How far a trial is, in words."""
    return "complete" if ended == every else f"{ended:,} of {every:,} trainings done"


def gains_of(stored: StoredTrial) -> tuple[np.ndarray, np.ndarray]:
    """The gains (negative losses) of the trainings that have ended: of every subset the mean over its trainings,
    float64 [K, E]; and the mean over examples of each training on the subsets that were repeated, float64 [R, K'].

    Raises CurateError if a subset has not been trained on."""
    recipe = stored.require_recipe()
    found: dict[int, list[np.ndarray]] = {}
    for training in stored.trainings():
        if (loss := stored.loss(training)) is not None:
            found.setdefault(training.subset, []).append(-loss)
    if missing := recipe.subsets - len(found):
        raise CurateError(
            f"{missing} of the {recipe.subsets} subsets of the trial '{stored.name}' are not trained on yet; the same "
            "`curate trial` goes on with them."
        )
    gains = np.stack([np.mean(found[i], axis=0) for i in range(recipe.subsets)])
    repeated = [found[i] for i in range(min(recipe.repeated, recipe.subsets)) if len(found[i]) == recipe.repeats]
    each = [[np.nanmean(one) for one in its] for its in repeated]
    return gains, np.array(each).T.reshape(recipe.repeats, len(each))


def trials(ws: Workspace) -> pa.Table:
    """The table `trials`: a row for every target example after every training that has ended."""
    tables = [_rows(ws, StoredTrial(ws, name)) for name in ws.trial_names()]
    return pa.concat_tables([TRIALS.empty_table(), *tables])


def _rows(ws: Workspace, stored: StoredTrial) -> pa.Table:
    recipe = stored.require_recipe()
    asked = ws.target_rows(recipe.target).select(["id", "subtask", "split"]).to_pylist()
    asked = [row for row in asked if row["split"] == recipe.split]
    tables = [TRIALS.empty_table()]
    for training in stored.trainings():
        record, loss = stored.losses.record(training.name), stored.loss(training)
        if record is None or loss is None or len(loss) != len(asked):
            continue
        figures: dict[str, Any] = {key: record[key] for key in ("seed", "samples", "steps", "flops", "seconds")}
        same = {"trial": stored.name, "subset": training.subset, "repeat": training.repeat, **figures}
        columns = {key: [value] * len(loss) for key, value in same.items()}
        columns |= {"id": [row["id"] for row in asked], "subtask": [row["subtask"] for row in asked]}
        columns |= {"loss": loss, "base": recipe.base}
        tables.append(pa.table({name: columns[name] for name in TRIALS.names}, schema=TRIALS))
    return pa.concat_tables(tables)
