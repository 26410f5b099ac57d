"""The recipe of a trial: what its trainings depend on, beside them as trials/NAME/trial.json."""

from __future__ import annotations

from typing import Any

from curate.store.recipes import FORMAT, MethodRecipe, ModelRecipe, PoolRecipe, Recipe


class TrialRecipe(Recipe, frozen=True, kw_only=True):
    """trial.json: what a trial depends on. where: which samples of the pool may be drawn; share: of them, in every
    subset. repeats: how often each of the first `repeated` subsets is trained. samples: that may be drawn. base: each
    target example's loss before training, as in the rows of the trainings. keep_checkpoints: whether what was trained
    is kept. of: the trial whose checkpoints these losses are of; '': it has trained itself."""

    format: int = FORMAT
    curate: str
    model: ModelRecipe
    target: str
    split: str
    target_fingerprint: str
    where: str
    stratify: bool
    subsets: int
    share: float
    repeats: int
    repeated: int
    weighting: MethodRecipe
    settings: dict[str, Any]
    seed: int
    pool: PoolRecipe
    samples: int
    base: list[float | None]
    keep_checkpoints: bool = False
    of: str = ""
