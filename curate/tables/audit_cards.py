"""Audits of a workspace, read: the scorecard of each, and the tables `audits` and `audit_cells`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, nearest
from curate.numerics.long_horizon.measures import Measures
from curate.numerics.long_horizon.scorecard import LATER, NOW, Scorecard, scorecard
from curate.store.audit_recipe import BASE, AuditRecipe
from curate.store.encoding import read_json
from curate.store.recipes import read_recipe
from curate.store.schema import AUDIT_CELLS, AUDITS
from curate.store.workspace import Workspace


def audit_names(ws: Workspace) -> list[str]:
    """The names of all audits that have begun."""
    return sorted(path.parent.name for path in (ws.path / "audits").glob("[a-z]*/audit.json"))


def audit_recipe(ws: Workspace, name: str) -> AuditRecipe:
    """What an audit was made of. Raises CurateError, suggesting the most similar name, if there is none."""
    if name not in audit_names(ws):
        raise CurateError(f"{ws.path} has no audit '{name}': {nearest(name, audit_names(ws))}")
    return read_recipe(ws.path / "audits" / name / "audit.json", AuditRecipe)


def card_of(ws: Workspace, name: str) -> Scorecard | None:
    """The scorecard of an audit; None if it has not ended."""
    folder = ws.path / "audits" / name
    if not (folder / "summed.json").exists():
        return None
    summary = read_json(folder / "summed.json")
    covered = {*map(tuple, summary["ways"]), (BASE, 0)}
    card = scorecard(
        [cell for cell in cells_of(ws, name) if (cell["selector"], cell["seed"]) in covered],
        summary["selectors"],
        [(stage, target) for stage, target in summary["stages"]],
        summary["elsewhere"],
        summary["seeds"],
        Measures(**summary["measures"]),
    )
    card.missing = [*summary.get("notes", ()), *card.missing]
    return card


def cells_of(ws: Workspace, name: str) -> Iterator[dict[str, Any]]:
    """The results of an audit's cells so far."""
    for path in sorted((ws.path / "audits" / name / "cells").glob("*.json")):
        yield read_json(path)


def conditions(recipe: AuditRecipe) -> dict[str, str]:
    """Under what an audit was made, in words: its budget, the order of its stages, and what is trained."""
    ((unit, amount),) = recipe.budget.items()
    budget = f"{100 * amount:g} %" if unit == "frac" else f"{amount:,.0f} {'samples' if unit == 'top' else 'tokens'}"
    rank = recipe.training.get("lora_r", 0)
    trained = f"LoRA {rank}, {recipe.adapter or 'begun alike'}" if rank else "all"
    return {"budget": budget, "stages": ", ".join(stage["name"] for stage in recipe.stages), "trained": trained}


def audits(ws: Workspace) -> pa.Table:
    """The table `audits`: a row for every selector and seed of every audit that has ended."""
    rows: list[dict[str, Any]] = []
    for name in audit_names(ws):
        if card := card_of(ws, name):
            under = conditions(audit_recipe(ws, name))
            rows += [{"audit": name, **under, **row} for row in _by_seed(card)]
    return pa.Table.from_pylist(rows, schema=AUDITS)


def _by_seed(card: Scorecard) -> Iterator[dict[str, Any]]:
    for k, selector in enumerate(card.selectors):
        at = card.ranked.index(selector) if selector in card.ranked else -1
        its = card.myopia if at >= 0 else None
        ranks = {"rank_now": float(its.now[at]), "rank_later": float(its.later[at])} if its else {}
        for seed in range(card.seeds):
            values = {measure: _known(card.measures[measure][k, seed]) for measure in (*NOW, *LATER)}
            yield {"selector": selector, "seed": seed, **values, **ranks}


def audit_cells(ws: Workspace) -> pa.Table:
    """The table `audit_cells`: a row for every performance that an audit measured, as far as it has come."""
    rows: list[dict[str, Any]] = []
    for name in audit_names(ws):
        stages = audit_recipe(ws, name).stages
        names, targets = ["", *(stage["name"] for stage in stages)], [stage["target"] for stage in stages]
        for cell in cells_of(ws, name):
            head = {key: cell[key] for key in ("selector", "seed", "stage")}
            head |= {"audit": name, "stage_name": names[cell["stage"]]}
            rows += [{**head, **row} for row in _performances(cell, targets)]
    return pa.Table.from_pylist(rows, schema=AUDIT_CELLS)


def _performances(cell: dict[str, Any], targets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a cell measured: within its stage (eval_every), at its end, and in the branch after it. targets: of the
    stages."""
    for target, points in (cell.get("during") or {}).items():
        for step, value in points:
            yield {"kind": "during", "target": target, "step": step, "value": value}
    for target, value in cell["performance"].items():
        yield {"kind": "end", "target": target, "step": cell.get("steps"), "value": value}
    curve = cell.get("curve") or {"steps": (), "values": ()}
    for step, value in zip(curve["steps"], curve["values"], strict=True):
        yield {"kind": "branch", "target": targets[cell["stage"]], "step": step, "value": value}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def joined(ws: Workspace, names: Sequence[str]) -> list[tuple[str, AuditRecipe, Scorecard]]:
    """Audits that have ended, by name, to be put into one table. Raises CurateError for one that has not, or that
    measured something else than the first."""
    found: list[tuple[str, AuditRecipe, Scorecard]] = []
    for name in dict.fromkeys(names):
        recipe, card = audit_recipe(ws, name), card_of(ws, name)
        if card is None:
            raise CurateError(
                f"the audit '{name}' has not ended; the same `curate audit {name} --plan …` goes on with it."
            )
        if found and recipe.metric != found[0][1].metric:
            raise CurateError(
                f"the audits '{found[0][0]}' and '{name}' measured by {found[0][1].metric[0]} and {recipe.metric[0]}, "
                "or with other settings, and are not to be compared; join those of one metric."
            )
        found.append((name, recipe, card))
    return found
