"""What scores, selections and SQL expressions say of the samples of a trial, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curate.errors import CurateError
from curate.store.manifests import read_any
from curate.store.recipes import MixtureRecipe, TableRecipe
from curate.store.workspace import Workspace
from curate.tables.lookup import column_of, scores_of
from curate.tables.run_costs import score_cost
from curate.tables.state import usable
from curate.tables.trials import StoredTrial


def values_of(ws: Workspace, stored: StoredTrial, score: str, allow_stale: bool) -> tuple[np.ndarray, list[str]]:
    """The values of the samples that may be drawn, float64 [N]; NaN where there is none. Raises CurateError if no
    sample has one."""
    if score in ws.manifest_names():
        table, recipe = read_any(ws, score)
        if isinstance(recipe, MixtureRecipe):
            raise CurateError(f"'{score}' is a mixture, which weighs domains and not samples; name a selection.")
        values = np.zeros(ws.n_rows())
        values[table["row"].to_numpy()] = table["weight"].to_numpy()
        return values[stored.rows], []
    warnings = usable(scores_of(ws, score), allow_stale)
    values = column_of(ws, score, stored.rows)
    values = np.where(np.isfinite(values), values, np.nan)
    missing = int(np.isnan(values).sum())
    if missing == len(values):
        raise CurateError(f"{score} has no value for any of the {missing:,} samples of the trial '{stored.name}'.")
    if missing:
        warnings.append(f"{score} has no value for {missing:,} of {len(values):,} samples, which add nothing to a sum")
    return values, warnings


def cost_of(ws: Workspace, names: Sequence[str]) -> tuple[float | None, float | None]:
    """FLOPs and seconds of the scores that these name, or that a manifest was made from, each counted once; None if
    they name none."""
    recipes: dict[str, TableRecipe] = {}
    for name in names:
        if name in ws.manifest_names():
            recipes |= read_any(ws, name)[1].scores or {}
        else:
            recipes |= {state.name: state.recipe for state in scores_of(ws, name)}
    return score_cost(ws, list(recipes.items())) if recipes else (None, None)
