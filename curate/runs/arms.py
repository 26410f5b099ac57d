"""Which runs are one arm of a comparison: those that differ in their seeds alone."""

from __future__ import annotations

from typing import Any

from curate.hashing import fingerprint
from curate.models.choice import without_seed
from curate.runs.config import EARLIER, HOW
from curate.store.recipes import ModelRecipe, RunMask, RunRecipe, known


def arm_key(recipe: RunRecipe, null: bool = True) -> str:
    """The identity of a run without its seeds; null: whether a control run counts as different."""
    given = {**EARLIER, **recipe.settings}  # a run of an earlier version is of the arm that it would be now
    settings = {k: v for k, v in given.items() if k not in HOW and (null or k != "shuffle_weights")}
    selection = _unseeded(recipe.selection.as_json(), null) if recipe.selection else None
    parts: list[Any] = [recipe.weighting and recipe.weighting.as_json(), recipe.by, known(recipe.target_fingerprint)]
    parts += [_unseeded_mask(recipe.mask)] if recipe.mask else []
    parts += [_start(recipe.reference)] if recipe.reference else []
    pruned = recipe.pruned
    while pruned:
        parts, pruned = [*parts, [pruned.pruner.as_json(), pruned.sparsity]], pruned.before
    data = recipe.manifest_sha256 if recipe.manifest and not selection else recipe.pool
    return fingerprint(_start(recipe.model), selection, parts, settings, known(data))


def _start(model: ModelRecipe) -> dict[str, Any]:
    """What a training began with; of a random start without what its seed decides."""
    is_random = (name := without_seed(model.name)) != model.name
    return {**model.shape(), "weights": model.config or name} if is_random else model.shape()


def _unseeded(value: Any, null: bool) -> Any:
    """How a manifest was made, without seeds, and without the names of intermediate manifests, which may have them."""
    if isinstance(value, dict):
        excluded = {"seed", "allow_stale", "sha256", "manifest", "proxies", "paid"} | (set() if null else {"null"})
        return {k: _unseeded(v, null) for k, v in value.items() if k not in excluded}
    return value


def _unseeded_mask(mask: RunMask) -> Any:
    """How a mask was made, without its seed; if its method has no seed, also the hash of the mask itself."""
    settings = {key: value for key, value in mask.method.settings.items() if key != "seed"}
    seeded = "seed" in mask.method.settings
    return [mask.method.name, settings, mask.selected, None if seeded else mask.sha256]
