"""`curate status` and `curate ledger`: the contents of a workspace, what is stale, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.results import Result
from curate.store.contents import Lost, lost, marker_of
from curate.store.files import leftovers
from curate.store.half_removed import half_removed
from curate.store.manifests import kept_manifests, kept_path, manifest_recipe, stamp_of
from curate.store.mask_file import read_mask
from curate.store.recipes import MixtureRecipe, SelectionRecipe, WeightsRecipe, known
from curate.store.run_record import require_run
from curate.store.token_files import kept_tokens
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.dependents import kept_leftovers
from curate.tables.index import index_words
from curate.tables.state import score_state, table_state
from curate.tables.trials import require_trial, trial_state
from curate.tables.vector_table import target_vectors
from curate.tables.views import run_rows

_RUN = (  # columns of the table `runs`
    *("name", "model", "manifest", "weighting", "mask", "trainable", "optimizer_bytes", "peak_bytes"),
    *("seed", "steps", "samples", "state"),
)


@dataclass
class Status(Result):
    """The contents of a workspace."""

    path: str
    rows: int
    shards: int
    copies: int
    rejects: int
    sources: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    vectors: list[dict[str, Any]] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)  # kept for trainings, by tokenizer and rules
    damaged: list[str] = field(default_factory=list)  # what cannot be read, or is gone
    leftovers: int = 0  # temporary files of killed commands, which `verify` removes


def status(ws: AnyWorkspace) -> Status:
    """The pool by source, targets by split, scores and vectors with what is missing or stale, and the rest."""
    ws = workspace_of(ws, pinned=True)
    sources = "SELECT source, count(*) AS rows, sum(copies)::BIGINT AS copies, sum(n_chars)::BIGINT AS chars FROM pool"
    by_source = list(sql.rows(ws, f"{sources} GROUP BY source ORDER BY rows DESC, source"))
    targets = """SELECT target, count(*) FILTER (split = 'val') AS val, count(*) FILTER (split = 'test') AS test,
        count(DISTINCT nullif(subtask, '')) AS subtasks FROM targets GROUP BY target ORDER BY target"""
    damaged = [f"the {one.kind} '{one.name}' {one.what}; `curate verify` says what can be done" for one in _lost(ws)]
    of_runs = {row["name"]: {key: row.get(key) for key in _RUN} for row in run_rows(ws)}
    return Status(
        path=str(ws.path),
        rows=ws.n_rows(),
        shards=len([shard for shard in ws.shards() if shard.rows]),
        copies=sum(row["copies"] for row in by_source),
        rejects=next(sql.rows(ws, "SELECT count(*) AS n FROM rejects"))["n"],
        sources=by_source,
        targets=list(sql.rows(ws, targets)),
        scores=_each(ws, _score, ws.score_names(), damaged, "score"),
        vectors=_each(ws, _vectors, ws.vectors_names(), damaged, "vectors"),
        manifests=_each(ws, _manifest, ws.manifest_names(), damaged, "manifest"),
        masks=_each(ws, _mask, ws.mask_names(), damaged, "mask"),
        runs=_each(
            ws,
            lambda ws, name: {**of_runs[name], "note": _manifest_note(ws, name)},
            [n for n in of_runs if n in ws.run_names()],
            damaged,
            "run",
        ),
        trials=_each(ws, _trial, ws.trial_names(), damaged, "trial"),
        tokens=kept_tokens(ws),
        damaged=damaged,
        leftovers=len([*leftovers(ws.path), *kept_leftovers(ws), *half_removed(ws)]),
    )


def _each(
    ws: Workspace,
    described: Callable[[Workspace, str], dict[str, Any]],
    names: Sequence[str],
    damaged: list[str],
    kind: str,
) -> list[dict[str, Any]]:
    """What can be said of the objects of a kind; those that are damaged are said to be so, and the others are shown."""
    found = []
    for name in names:
        try:
            found.append(described(ws, name))
        except CurateError as error:
            if name in ws.having(kind):  # else another process dropped it
                damaged.append(f"the {kind} '{name}' is damaged: {error}")
    return found


def _lost(ws: Workspace) -> list[Lost]:
    """What is gone; that something has other bytes is `verify`'s to find, or said by what cannot read it."""
    return [one for one in lost(ws) if not marker_of(ws, one.kind, one.name).exists()]


def _score(ws: Workspace, name: str) -> dict[str, Any]:
    state = score_state(ws, name)
    return {
        "name": name,
        "method": state.recipe.method,
        "target": state.recipe.target,
        "rows": state.rows,
        "nulls": state.nulls,
        "state": state.problem() or "complete",
        "command": state.command() if state.problem() else None,
    }


def _vectors(ws: Workspace, name: str) -> dict[str, Any]:
    state = table_state(ws, "vectors", name)
    problem = state.problem()
    return {
        "name": name,
        "method": state.recipe.method,
        "model": ", ".join(model.name for model in state.recipe.models.values()),
        "targets": ", ".join(target_vectors(ws.table_folder("vectors", name)).records()),
        "rows": state.rows,
        "nulls": state.nulls,
        "index": index_words(ws, name),
        "state": problem or "complete",
        "command": state.command() if problem else None,
    }


def _manifest(ws: Workspace, name: str) -> dict[str, Any]:
    recipe = manifest_recipe(ws, name)
    if isinstance(recipe, WeightsRecipe):
        made_by, by = recipe.weighting, recipe.by
    else:
        made_by = recipe.mixer if isinstance(recipe, MixtureRecipe) else recipe.selector
        by = recipe.choice["by"]
    return {"name": name, "made_by": made_by.name, "by": by, "rows": recipe.result["rows"]}


def _manifest_note(ws: Workspace, run: str) -> str:
    """A sentence if the manifest that a run was trained on has other samples now, or is gone; else ''."""
    recipe = require_run(ws, run).require_recipe()
    name, stamp = recipe.manifest, known(recipe.manifest_sha256)
    if not name or stamp is None:
        return ""
    try:
        if name in ws.manifest_names() and stamp_of(manifest_recipe(ws, name)) == stamp:
            return ""
    except CurateError:
        return f"run {run}: its manifest {name} is damaged."
    changed = "was replaced since" if name in ws.manifest_names() else "was removed"
    kept = kept_manifests(ws).get(stamp)
    path = ws.manifest_path(name).parent / "replaced" / f"{stamp}.json"
    if isinstance(kept, SelectionRecipe):
        as_it_was = f"`curate select NEW --replay {path}` repeats it as it was"
    elif kept:
        as_it_was = f"it is kept as {path}"
    elif kept_path(ws, stamp).exists():
        as_it_was = f"the copy that was kept is damaged, as {path} is gone"
    else:
        as_it_was = "no copy of it is kept"
    return f"run {run}: its manifest {name} {changed}; {as_it_was}."


def _mask(ws: Workspace, name: str) -> dict[str, Any]:
    recipe = read_mask(ws, name).recipe
    made_by, model = recipe.mask.name, recipe.model.name
    return {"name": name, "made_by": made_by, "model": model, "frac": recipe.frac, "selected": recipe.selected}


def _trial(ws: Workspace, name: str) -> dict[str, Any]:
    stored = require_trial(ws, name)
    recipe, ended, every = stored.require_recipe(), len(stored.losses.names()), len(stored.trainings())
    described = {"name": name, "model": recipe.model.name, "target": recipe.target, "subsets": recipe.subsets}
    return {**described, "trainings": every, "state": trial_state(ended, every)}


def ledger(ws: AnyWorkspace) -> list[dict[str, Any]]:
    """Costs summed by stage, method, name and phase, ordered by first occurrence."""
    ws = workspace_of(ws, pinned=True)
    return list(
        sql.rows(
            ws,
            """SELECT stage, array_to_string(methods, ' ') AS methods, name, phase, count(*) AS runs,
            sum(samples)::BIGINT AS samples, sum(tokens)::BIGINT AS tokens, sum(flops) AS flops,
            sum(seconds) AS seconds, max(peak_bytes) AS peak_bytes
            FROM ledger GROUP BY ALL ORDER BY min(sequence)""",
        )
    )
