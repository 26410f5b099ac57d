"""What in a workspace was made from what, asked before something is replaced or removed.

A manifest, mask, target, table or run is named in the recipes of what was made from it. To replace or remove it makes
these stale, or impossible to repeat, so that it is refused unless it is asked for. A manifest that runs were trained on
is then kept beside, under its stamp (curate.store.manifests).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, DamagedError, WorkspaceBusy
from curate.kinds.registry import find
from curate.store.contents import entered
from curate.store.locks import lock
from curate.store.manifests import (
    keep_manifest,
    kept_manifests,
    kept_path,
    manifest_recipe,
    remove_kept,
    stamp_of,
    stamped,
    write_manifest,
)
from curate.store.mask_file import read_mask
from curate.store.object_store import Location
from curate.store.recipes import (
    ManifestRecipe,
    ManifestStep,
    MixtureRecipe,
    RunRecipe,
    SelectionRecipe,
    TableRecipe,
    WeightsRecipe,
    known,
)
from curate.store.run_record import require_run, run_behind
from curate.store.trial_recipe import TrialRecipe
from curate.store.workspace import TABLES, Workspace
from curate.tables.inputs import table_recipe
from curate.tables.trials import require_trial
from curate.tables.vector_table import target_vectors

KINDS = (
    *TABLES,
    "manifest",
    "mask",
    "run",
    "trial",
)  # what is made from something else, in the order in which it is named

_SHOWN = 160  # characters of the command that made a manifest
_Input = tuple[str, str]  # the kind and the name of an object


def dependents(ws: Workspace, kind: str, name: str, readable: bool = False) -> dict[str, list[str]]:
    """Kind -> names of all that was made from an object, directly or by way of others; empty if nothing was.

    kind: target, manifest, mask, run, trial, or one of TABLES. readable: only of what has a recipe that can be read.
    Raises CurateError for a recipe that cannot, otherwise.
    """
    inputs = dict[_Input, set[_Input]]()
    for made in ((k, n) for k in KINDS for n in ws.having(k) if (k, n) != (kind, name)):
        try:
            inputs[made] = set(_inputs(ws, *made))
        except CurateError:
            if not readable and made[1] in ws.having(made[0]):  # else another process dropped it
                raise
    found, reached = set[_Input](), {(kind, name)}
    while reached:
        reached = {made for made, needed in inputs.items() if made not in found and needed & reached}
        found |= reached
    return {k: names for k in KINDS if (names := sorted(n for found_kind, n in found if found_kind == k))}


def named(found: Mapping[str, list[str]]) -> str:
    """Objects in words: 'the scores a, b and the run c'."""
    parts = [f"the {kind if len(names) == 1 else _plural(kind)} {', '.join(names)}" for kind, names in found.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _plural(kind: str) -> str:
    return kind if kind == "vectors" else f"{kind}s"


# --- what an object was made from --------------------------------------------------------------------------


def _inputs(ws: Workspace, kind: str, name: str) -> Iterator[_Input]:
    if kind in TABLES:
        yield from _of_table(ws, table_recipe(ws, kind, name))
        if kind == "vectors":
            yield from (("target", target) for target in target_vectors(ws.table_folder(kind, name)).names())
    elif kind == "manifest":
        yield from _of_manifest(manifest_recipe(ws, name))
    elif kind == "mask":
        recipe = read_mask(ws, name).recipe
        yield from (("score", score) for score in recipe.scores or {})
        yield from _of_models(ws, [recipe.model.name])
    elif kind == "trial":
        yield from _of_trial(ws, require_trial(ws, name).require_recipe())
    else:
        run = require_run(ws, name)
        yield from _of_run(ws, run.require_recipe())
        for record in run.evaluations.records().values():
            yield "target", record["evaluation"]["target"]


def _of_table(ws: Workspace, recipe: TableRecipe) -> Iterator[_Input]:
    if recipe.target:
        yield "target", recipe.target
    if recipe.vectors:
        yield "vectors", recipe.vectors
    yield from (("run", name) for name in recipe.checkpoints_given)
    yield from _of_models(ws, [model.name for model in recipe.models.values()])


def _of_manifest(recipe: ManifestRecipe) -> Iterator[_Input]:
    yield from _of_step(recipe.step())
    if isinstance(recipe, SelectionRecipe):
        yield from (found for name in recipe.history for found in (("manifest", name), ("target", name)))


def _of_step(step: ManifestStep) -> Iterator[_Input]:
    yield from (found for name in step.scores or {} for found in (("score", name), ("vectors", name)))
    if step.choice and step.choice.get("target"):
        yield "target", step.choice["target"]
    if step.manifest:
        yield "manifest", step.manifest.name
    if step.proxy:
        yield from (("target", judge.target) for judge in step.proxy.judges)


def _of_run(ws: Workspace, recipe: RunRecipe) -> Iterator[_Input]:
    if recipe.manifest:
        yield "manifest", recipe.manifest
    if recipe.target:
        yield "target", recipe.target
    if recipe.mask:
        yield "mask", recipe.mask.name
    if recipe.pruned:
        yield "run", recipe.pruned.run
    yield from (("score", name) for name in recipe.scores)
    yield from _of_models(ws, [recipe.model.name, *([recipe.reference.name] if recipe.reference else [])])


def _of_trial(ws: Workspace, recipe: TrialRecipe) -> Iterator[_Input]:
    yield "target", recipe.target
    if recipe.of:
        yield "trial", recipe.of
    yield from _of_models(ws, [recipe.model.name])


def _of_models(ws: Workspace, models: list[str]) -> Iterator[_Input]:
    yield from (("run", run) for model in models if (run := run_behind(ws, model) or model))


# --- replacing ---------------------------------------------------------------------------------------------


def refuse_other(ws: Workspace, kind: str, name: str, wanted: Mapping[str, Any], fresh: bool) -> None:
    """Raises CurateError if there is a manifest or mask of the name that was made in another way, unless fresh.

    wanted: the entries of a recipe that say how, as JSON.
    """
    if fresh or name not in ws.having(kind):
        return
    recipe = manifest_recipe(ws, name) if kind == "manifest" else read_mask(ws, name).recipe
    stored = recipe.as_json()
    if any(_said(_as_now(key, stored.get(key), value)) != _said(value) for key, value in wanted.items()):
        raise CurateError(f"the {kind} '{name}' exists, {_made_by(recipe)}{_refusal(ws, kind, name)}")


def replace_manifest(ws: Workspace, name: str, table: pa.Table, recipe: ManifestRecipe, fresh: bool) -> None:
    """Write a manifest. If one of that name has other samples, and something was made from it, it is replaced only if
    `fresh`, and kept beside. Requires holding its lock. Raises CurateError otherwise."""
    if name in ws.manifest_names() and not (fresh and _is_torn(ws, name)):
        new, old = stamp_of(stamped(table, recipe)), stamp_of(manifest_recipe(ws, name))
        found = dependents(ws, "manifest", name) if new != old else {}
        if found and not fresh:
            raise CurateError(
                f"the manifest '{name}' would get other samples, as its scores or the pool have changed"
                f"{_refusal(ws, 'manifest', name, found)}"
            )
        if found:
            keep_manifest(ws, name)
    write_manifest(ws, name, table, recipe)


def refuse_other_mask(ws: Workspace, name: str, selected: Mapping[str, np.ndarray], fresh: bool) -> None:
    """Raises CurateError if there is a mask of the name with other elements that something was made from, unless
    fresh."""
    if fresh or name not in ws.mask_names():
        return
    old = read_mask(ws, name).selected
    new = {parameter: elements for parameter, elements in selected.items() if len(elements)}
    if old.keys() == new.keys() and all(np.array_equal(old[key], new[key]) for key in new):
        return
    if found := dependents(ws, "mask", name):
        raise CurateError(f"the mask '{name}' would get other elements{_refusal(ws, 'mask', name, found)}")


def release_kept(ws: Workspace) -> None:
    """Remove the kept manifests that no run or manifest was made from any more; none while a recipe is damaged, of
    which nobody knows what it needs."""
    try:
        needed = _needed(ws)
    except CurateError:
        return
    for stamp in kept_manifests(ws):
        if stamp not in needed:
            remove_kept(ws, stamp)


def _needed(ws: Workspace) -> set[str]:
    """The stamps of the manifests that runs and manifests were made from. Raises CurateError if one cannot be read."""
    needed = {known(require_run(ws, run).require_recipe().manifest_sha256) for run in ws.run_names()}
    for name in ws.manifest_names():
        recipe = manifest_recipe(ws, name)
        needed |= {step.manifest.sha256 for step in [recipe.step()] if step.manifest}
        needed |= set(recipe.history.values()) if isinstance(recipe, SelectionRecipe) else set()
    return needed


def kept_leftovers(ws: Workspace) -> list[Location]:
    """Tables of manifests that a killed command left without their recipe, and that nothing needs: what was made from
    those in manifests/replaced, if anything, has them under their own name; of these, no more is counted where a run or
    manifest cannot be read."""
    return [*_own_without_recipe(ws), *_kept_without_recipe(ws)]


def _own_without_recipe(ws: Workspace) -> list[Location]:
    """Those that are not in contents.json; none without one, as then nobody knows whether the recipe was lost."""
    try:
        listed = entered(ws)
    except DamagedError:
        return []
    known = listed.get("manifest", {})
    return [path for path in _without_recipe(ws.path / "manifests") if path.stem not in known] if listed else []


def _without_recipe(folder: Location) -> list[Location]:
    return sorted(path for path in folder.glob("*.parquet") if not path.with_suffix(".json").exists())


def _kept_without_recipe(ws: Workspace) -> list[Location]:
    torn = _without_recipe(kept_path(ws, "").parent)
    if not torn:
        return []
    try:
        lost = _needed(ws) - {stamp_of(manifest_recipe(ws, name)) for name in ws.manifest_names()}
    except CurateError:
        return []
    return sorted(path for path in torn if path.stem not in lost)


def remove_kept_leftovers(ws: Workspace) -> list[Location]:
    """Remove these, but those of a manifest that another process is writing; returns them."""
    removed: list[Location] = []
    if not kept_leftovers(ws):
        return removed
    with ExitStack() as stack, suppress(WorkspaceBusy):
        left = {path.stem for path in _own_without_recipe(ws)}
        for name in sorted({*ws.manifest_names(), *left}):  # whoever keeps or writes one now holds it
            stack.enter_context(lock(ws, f"manifest {name}", wait=0.0))
        for path in kept_leftovers(ws):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _is_torn(ws: Workspace, name: str) -> bool:
    try:
        manifest_recipe(ws, name)
    except CurateError:
        return True
    return False


def _refusal(ws: Workspace, kind: str, name: str, found: Mapping[str, list[str]] | None = None) -> str:
    found = dependents(ws, kind, name) if found is None else found
    stands = f"; made from it: {named(found)}" if found else ""
    kept = " (runs keep a copy of it)" if kind == "manifest" and "run" in found else ""
    return f"{stands}; choose another name, or --fresh to replace it{kept}."


def _made_by(recipe: Any) -> str:
    if isinstance(recipe, SelectionRecipe):
        words = recipe.command
        return f"made by `{words if len(words) <= _SHOWN else words[:_SHOWN] + '…'}`"
    if isinstance(recipe, WeightsRecipe):
        return f"made by `curate weigh {recipe.name} --by '{recipe.by}' --weighting {recipe.weighting.name}`"
    if isinstance(recipe, MixtureRecipe):
        return f"made by `curate mix` with the mixer {recipe.mixer.name}"
    return f"made by `curate mask` with the method {recipe.mask.name} and --frac {recipe.frac:g}"


def _as_now(kind: str, stored: Any, wanted: Any) -> Any:
    """An entry of a stored recipe; of the method that is wanted, with the settings that there were not when it was
    written, which have their default."""
    if not (isinstance(wanted, Mapping) and "settings" in wanted and stored and stored["name"] == wanted["name"]):
        return stored
    return {**stored, "settings": {**find(kind, stored["name"])().settings(), **stored["settings"]}}


def _said(value: Any) -> Any:
    """An entry of a recipe without what leaves the result as it is, and what says nothing."""
    if isinstance(value, Mapping):
        silent = ("allow_stale", "version", "sha256")
        return {k: said for k, v in value.items() if k not in silent and (said := _said(v)) not in (None, False, {})}
    return list(value) if isinstance(value, tuple) else value
