"""The checkpoints that a score uses: of a run, of folders written by other trainers, or of a warm-up of its own.

A warm-up is a training on a random share of the pool. It is stored in prepared/FINGERPRINT/ like a run, identified by a
fingerprint of what determines it, so scores that ask for the same warm-up share it. A score keeps using its warm-up
when the pool grows; with --fresh a new one is trained on the grown pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from msgspec import structs

from curate.errors import CurateError
from curate.hashing import fingerprint, ids_as_integers, keyed_uniform
from curate.kinds.passes import Arrays
from curate.kinds.score import Score, Warmup
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.models.choice import CheckpointChoice, ModelChoice, weights_fingerprint
from curate.runs.account import Account
from curate.runs.checkpoints import checkpoints_of, checkpoints_of_run, origin_of
from curate.runs.config import TrainingSpec
from curate.runs.driver import run_training
from curate.runs.samples import TrainingRows, rows_of
from curate.store.locks import FOREVER, lock
from curate.store.recipes import TableRecipe, WarmupRecipe
from curate.store.run_record import Run
from curate.store.workspace import Workspace, pool_fingerprint
from curate.tables.inputs import CheckpointSet, table_recipe


@dataclass(frozen=True)
class Uniform(Weighting):
    """Every sample counts the same."""

    name = "uniform"

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        """Weights of one."""
        assert step.counts is not None
        return Weights(np.ones(len(step.counts))), state


def checkpoint_set_of(
    ws: Workspace,
    method: Score,
    model: ModelChoice | None,
    given: Sequence[str],
    vectors: str,
    *,
    fresh: bool = False,
    dry_run: bool = False,
) -> CheckpointSet:
    """The checkpoints that a method uses: the given ones; otherwise those of its warm-up, which is trained if needed;
    otherwise the model itself.

    model: the base model or, with given checkpoints, the model settings for them. vectors: the name of the vectors to
    be made. Raises CurateError if a method needs checkpoints and has none.
    """
    if given:
        checkpoints = checkpoints_of(ws, given, model or ModelChoice(""))
        origin = origin_of(ws, given[-1])
        return CheckpointSet(
            checkpoints if method.checkpoints == "each" else checkpoints[-1:], tuple(given), origin=origin
        )
    assert model is not None
    warmup = method.warm_up()
    if warmup is None and method.checkpoints == "each":
        raise CurateError(
            f"the score '{method.name}' uses the checkpoints of a training: add --checkpoints RUN (`curate train "
            "RUN … --set checkpoint_epochs=true --set keep_checkpoints=0` keeps some), or their folders."
        )
    if warmup is None:
        return CheckpointSet((CheckpointChoice(model),))
    return _warmed(ws, method, model, warmup, vectors, fresh, dry_run)


def _wanted(model: ModelChoice, warmup: Warmup) -> str:
    """A fingerprint of what determines a warm-up, apart from the pool."""
    return fingerprint(
        "warm-up", weights_fingerprint(model), model.shaping(), warmup.share, warmup.seed, dict(warmup.settings)
    )


def _warm_up_of(ws: Workspace, stamp: str) -> Run:
    """The warm-up for the current pool."""
    folder = ws.path / "prepared" / fingerprint(stamp, pool_fingerprint(ws.shards()))
    return Run(ws, f"warmup_{stamp}", place=folder)


def warm_up(ws: Workspace, model: ModelChoice, warmup: Warmup, account: Account) -> Run:
    """The warm-up for the current pool, trained unless it exists. account: how its cost is entered in the ledger.

    Raises CurateError for a workspace in an object store.
    """
    run = _warm_up_of(ws, _wanted(model, warmup))
    if not run.is_settled():
        _train(run, model, warmup, account)
    return run


def _warmed(
    ws: Workspace, method: Score, model: ModelChoice, warmup: Warmup, vectors: str, fresh: bool, dry_run: bool
) -> CheckpointSet:
    stamp = _wanted(model, warmup)
    run = _found(ws, vectors, stamp, fresh) or _warm_up_of(ws, stamp)
    recipe = WarmupRecipe(wanted=stamp, place=run.folder.name, share=warmup.share, seed=warmup.seed)
    if not run.is_settled():
        if dry_run:
            epochs = int(np.ceil(warmup.settings.get("epochs", 1.0)))
            return CheckpointSet((CheckpointChoice(model),), warmup=structs.replace(recipe, planned=epochs))
        account = Account("score", [method.name], vectors, {"train": "warm-up"}, warmup.in_papers)
        _train(run, model, warmup, account)
    checkpoints = tuple(checkpoints_of_run(run, "warm-up", model))
    return CheckpointSet(checkpoints if method.checkpoints == "each" else checkpoints[-1:], warmup=recipe, origin=model)


def last_checkpoint(ws: Workspace, recipe: TableRecipe, like: ModelChoice) -> CheckpointChoice:
    """The last checkpoint that a stored score used; the model itself, if nothing was trained. Raises CurateError if it
    is gone or has changed."""
    if not recipe.warmup and not recipe.checkpoints_given:
        if weights_fingerprint(like) != recipe.models["base"].weights:
            raise CurateError(f"the model that the score used, {like.name}, has been replaced; score --fresh.")
        return CheckpointChoice(like)
    run = Run(ws, "warmup", place=ws.path / "prepared" / recipe.warmup.place) if recipe.warmup else None
    checkpoints = (
        checkpoints_of_run(run, "warm-up", like) if run else checkpoints_of(ws, recipe.checkpoints_given, like)
    )
    if not checkpoints or weights_fingerprint(checkpoints[-1].model) != recipe.checkpoints[-1].weights:
        raise CurateError("the checkpoint that the score used is gone, or has been replaced; score --fresh.")
    return checkpoints[-1]


def rows_of_warmup(ws: Workspace, method: Score, checkpoint_set: CheckpointSet) -> np.ndarray:
    """The pool rows that a method's own warm-up was, or will be, trained on, int64; empty for given checkpoints."""
    warmup = method.warm_up()
    if not checkpoint_set.warmup or warmup is None:
        return np.zeros(0, np.int64)
    if checkpoint_set.planned:
        return drawn(ws, warmup).row
    run = Run(ws, "warmup", place=ws.path / "prepared" / checkpoint_set.warmup.place)
    rows = [run.trained.read(name)["row"].to_numpy() for name in run.trained.names()]
    return np.unique(np.concatenate(rows))


def _found(ws: Workspace, vectors: str, stamp: str, fresh: bool) -> Run | None:
    """The warm-up that the vectors of that name were made with, if it matches the wanted one."""
    if fresh or vectors not in ws.vectors_names():
        return None
    recorded = table_recipe(ws, "vectors", vectors).warmup
    if recorded is None or recorded.wanted != stamp:
        return None
    run = Run(ws, f"warmup_{stamp}", place=ws.path / "prepared" / recorded.place)
    return run if run.is_complete() else None


def _train(run: Run, model: ModelChoice, warmup: Warmup, account: Account) -> None:
    from curate.training.distributed import Alone
    from curate.training.settings import TrainSettings

    if not isinstance(run.folder, Path):
        raise CurateError(
            f"{run.ws.path} is in an object store, where no gradients can be taken at checkpoints yet; work on a disk."
        )
    settings = TrainSettings(**warmup.settings, checkpoint_epochs=True, keep_checkpoints=0)
    rows = drawn(run.ws, warmup)
    training = TrainingSpec(model, Uniform(), settings, seed=warmup.seed)
    with lock(run.ws, f"prepared {run.folder.name}", wait=FOREVER) as held:
        if run.is_complete():
            run.remove_leftovers()
        else:
            run_training(replace(run, held=held), training, rows, None, Alone(), account=account)


def drawn(ws: Workspace, warmup: Warmup) -> TrainingRows:
    """The samples of a warm-up: those with the highest random numbers, which depend only on id and seed."""
    pool_rows = rows_of(ws, None, None, False)
    count = int(warmup.share * len(pool_rows.row))
    if not count:
        raise CurateError(
            f"a warm-up on {warmup.share:g} of {len(pool_rows.row)} samples has none; use a larger share."
        )
    numbers = keyed_uniform(ids_as_integers(pool_rows.id.to_pylist()), warmup.seed, "warm-up")
    drawn_rows = np.sort(np.argsort(-numbers, kind="stable")[:count])
    return replace(
        pool_rows,
        row=drawn_rows,
        id=pool_rows.id.take(drawn_rows),
        weight=np.ones(count),
        repeats=np.ones(count, np.int64),
    )
