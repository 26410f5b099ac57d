"""`curate select --replay`: repeat the selection that a manifest records, and say what has changed since."""

from __future__ import annotations

import os
from pathlib import Path

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.registry import find
from curate.store.manifests import manifest_recipe
from curate.store.recipes import SelectionRecipe, read_manifest_recipe
from curate.verbs.select import Selected, SelectionSpec, select


def replay(
    ws: AnyWorkspace,
    name: str,
    file: str | os.PathLike[str],
    *,
    allow_stale: bool = False,
    fresh: bool = False,
    wait: float | None = None,
) -> Selected:
    """Repeat the selection that a manifest's JSON describes, under a new or the same name.

    allow_stale: true if given now or in the original. fresh: as for `select`. If the rows differ from the original's, a
    warning states why.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, pinned=True, wait=wait)
    path = Path(file)
    if not path.is_file():
        raise CurateError(f"{file}: there is no such file; a manifest's JSON is manifests/NAME.json.")
    try:
        recipe = read_manifest_recipe(path)
    except CurateError as error:
        raise CurateError(f"{file}: this is no manifest's JSON (manifests/NAME.json): {error}") from None
    if not isinstance(recipe, SelectionRecipe):
        raise CurateError(f"{file}: this manifest was made by `curate weigh` or `curate mix`; name one of a selection.")
    before = {"frac_of": "valued"}  # earlier versions took the share of those with a value, and did not say so
    spec = SelectionSpec(**{**before, **recipe.choice, "allow_stale": recipe.choice["allow_stale"] or allow_stale})
    result = select(ws, name, find("selector", recipe.selector.name)(**recipe.selector.settings), spec, fresh=fresh)
    repeated = manifest_recipe(ws, name)
    assert isinstance(repeated, SelectionRecipe)
    if repeated.sha256 != recipe.sha256:
        result.warnings.append(
            f"the rows differ from the replayed manifest's: {_what_changed(recipe, repeated)} has changed since"
        )
    return result


def _what_changed(old: SelectionRecipe, new: SelectionRecipe) -> str:
    """What made a repeated selection differ from the original."""
    fingerprints = {name: score.fingerprint for name, score in new.scores.items()}
    if changed := [name for name, score in old.scores.items() if fingerprints.get(name) != score.fingerprint]:
        return f"the score (or vectors) {', '.join(changed)}"
    if new.target != old.target:
        return f"the target '{new.choice['target']}'"
    return "curate's selector" if new.pool.fingerprint == old.pool.fingerprint else "the pool"
