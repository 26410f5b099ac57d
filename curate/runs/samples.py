"""The training samples of a run, looked up in a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import ids_as_integers
from curate.store.encoding import read_table
from curate.store.manifests import read_any
from curate.store.recipes import ManifestRecipe, MixtureRecipe
from curate.store.workspace import Workspace, pool_fingerprint
from curate.tables.lookup import column_of, scores_of, texts_of
from curate.tables.state import usable

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.mixture_sampler import Draws


@dataclass(frozen=True)
class TrainingRows:
    """The samples of a training, in the manifest's rank order if there is one: row, id, weight, repeats, and column.

    draws: how often each domain is drawn from, if the manifest is a mixture; domains: their names. kept: if given, a
    place for what was looked up of their tokens, for several trainings with the same model and settings.
    """

    row: np.ndarray
    id: pa.ChunkedArray
    weight: np.ndarray
    repeats: np.ndarray
    column: np.ndarray | None
    recipe: ManifestRecipe | None
    warnings: list[str]
    draws: Draws | None = None
    domains: Sequence[str] = ()
    kept: dict[str, Any] | None = None


def rows_of(ws: Workspace, manifest: str | None, by: str | None, allow_stale: bool, seed: int = 0) -> TrainingRows:
    """The rows of a manifest, or of the whole pool, with weights of mean 1. by: SQL expression for their column. seed:
    of a mixture's draws. Raises CurateError for unusable weights and scores."""
    recipe = None
    if manifest:
        table, recipe = read_any(ws, manifest)
        if isinstance(recipe, MixtureRecipe):
            return _drawn(ws, table, recipe, by, allow_stale, seed)
        row, ids = table["row"].to_numpy(), table["id"]
        weight, repeats = table["weight"].to_numpy().astype(np.float64), table["repeats"].to_numpy()
        _refuse_weights(manifest, weight, ids)
    else:
        row, ids = np.arange(ws.n_rows()), pool_ids(ws)
        weight, repeats = np.ones(len(row)), np.ones(len(row), np.int64)
    column, warnings = None, list[str]()
    if by:
        warnings = usable(scores_of(ws, by), allow_stale)
        column = column_of(ws, by, row)
    mean = float((weight * repeats).sum() / max(repeats.sum(), 1))
    return TrainingRows(row, ids, weight / mean, repeats, column, recipe, warnings)


def _drawn(
    ws: Workspace, table: pa.Table, recipe: MixtureRecipe, by: str | None, allow_stale: bool, seed: int
) -> TrainingRows:
    """All samples that a mixture may draw."""
    from curate.training.mixture_sampler import Draws

    _refuse_changed(ws, recipe)
    rows = rows_of(ws, recipe.manifest.name if recipe.manifest else None, by, allow_stale)
    if not recipe.manifest:  # samples appended to the pool since are not drawn
        rows = _first(rows, recipe.pool.rows)
    names = table["source"].to_pylist()
    domain = places_of(texts_of(ws, recipe.domain, rows.row), names)
    keys, share = ids_as_integers(rows.id.to_pylist()), table["rows"].to_numpy().astype(np.float64)
    if not recipe.exact:
        share = np.array(recipe.share)
    draws = Draws(domain, keys, share / share.sum(), int(table["rows"].to_numpy().sum()), recipe.exact, seed)
    require_drawable(draws, names)
    return replace(rows, recipe=recipe, draws=draws, domains=names)


def _refuse_changed(ws: Workspace, recipe: MixtureRecipe) -> None:
    """Raises CurateError if the data that a mixture draws from has changed since it was made."""
    base, pool, changed = recipe.manifest, recipe.pool, ""
    if base and (base.name not in ws.manifest_names() or read_any(ws, base.name)[1].sha256 != base.sha256):
        changed = f"the manifest '{base.name}'"
    elif pool_fingerprint(ws.shards()[: pool.shards]) != pool.fingerprint:
        changed = "the pool"
    for state in scores_of(ws, recipe.domain):
        if state.name not in recipe.scores or state.recipe.fingerprint != recipe.scores[state.name].fingerprint:
            changed = f"the score '{state.name}', by which samples have their domains,"
    if changed:
        raise CurateError(f"{changed} is not what the mixture '{recipe.name}' was mixed of; mix it again.")


def _first(rows: TrainingRows, count: int) -> TrainingRows:
    column = rows.column if rows.column is None else rows.column[:count]
    columns = {"row": rows.row[:count], "id": rows.id[:count], "weight": rows.weight[:count]}
    return replace(rows, **columns, repeats=rows.repeats[:count], column=column)


def require_drawable(draws: Draws, names: Sequence[str]) -> None:
    """Raises CurateError if a domain with a positive share has no samples."""
    counts = np.bincount(draws.domain[draws.domain >= 0], minlength=len(names))
    for name, share, count in zip(names, draws.share, counts, strict=True):
        if share > 0 and not count:
            raise CurateError(
                f"the mixture draws {share:.1%} from the domain '{name}', which has no sample left to train on; mix "
                "again without it."
            )


def places_of(found: Sequence[str | None], names: Sequence[str]) -> np.ndarray:
    """Positions of domains in `names`, int64; -1 for an unknown domain or None."""
    position_of = {name: i for i, name in enumerate(names)}
    return np.array([position_of.get(name or "", -1) for name in found], np.int64)


def pool_ids(ws: Workspace) -> pa.ChunkedArray:
    """The ids of the pool, in its order."""
    columns = [read_table(shard.path, ["id"])["id"] for shard in ws.shards() if shard.rows]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _refuse_weights(manifest: str, weight: np.ndarray, ids: pa.ChunkedArray) -> None:
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(bad):
        first, value = ids[int(bad[0])], weight[bad[0]]
        raise CurateError(
            f"the manifest '{manifest}' weighs the sample {first} {value}; a weight is a number of 0 or more: weigh "
            "again."
        )
    if not weight.any():
        raise CurateError(f"the weights of the manifest '{manifest}' are all 0, so there is nothing to train on.")
