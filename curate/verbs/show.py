"""`curate show`: one sample as a reader sees it; or an object of the workspace: what it was made of, its first rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, nearest
from curate.results import Result
from curate.runs.recipe_words import (
    manifest_command,
    manifest_words,
    mask_command,
    mask_words,
    run_command,
    run_words,
    table_words,
    trial_command,
    trial_words,
)
from curate.store.encoding import read_table
from curate.store.manifests import manifest_recipe, read_any
from curate.store.marks import read_marks
from curate.store.mask_file import read_mask
from curate.store.recipes import MixtureRecipe
from curate.store.run_record import Run
from curate.store.workspace import TABLES, Workspace
from curate.tables import sql
from curate.tables.chats import contents_at
from curate.tables.inputs import sample_columns
from curate.tables.lookup import find_sample, words
from curate.tables.state import TableState, score_state, table_state
from curate.tables.trials import require_trial, trial_state
from curate.tables.views import literal

_KINDS = ("score", "vectors", "manifest", "mask", "target", "run", "trial")


@dataclass
class Sample(Result):
    """A sample: its contents as `curate.tables.chats.as_read` has them, its values under every score (None: not scored,
    or without a value), and the manifests that contain it.

    scores: score, value, state, and what else the method told of the sample. manifests: name, rank, weight, repeats.
    mark: 'good' or 'bad', as marked in `curate explore`; '' without.
    """

    id: str
    row: int
    source: str
    copies: int
    n_chars: int
    wanted: bool | None
    turns: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    text: str | None
    tools: list[Any]
    documents: list[Any]
    template: dict[str, Any]
    meta: Any
    scores: list[dict[str, Any]] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    mark: str = ""


@dataclass
class Described(Result):
    """An object of the workspace. about: what it was made of, in words. command: makes it again; None if that is not
    recorded. state: 'complete', or what is wrong. rows: its first rows; of a score the highest. recipe: as stored."""

    name: str
    kind: str
    about: str
    command: str | None = None
    state: str = "complete"
    rows: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def show(ws: AnyWorkspace, name: str, *, n: int = 5) -> Sample | Described:
    """A sample by its id, or by the first digits of it; or an object by its name: a score, vectors, a manifest, a mask,
    a target, a run or a trial.

    n: of an object, how many rows to show. Raises CurateError if nothing has that name and no sample that id, or if
    several samples' ids begin so.
    """
    ws = workspace_of(ws, pinned=True)
    kinds = [kind for kind in _KINDS if name in ws.having(kind)]
    if kinds:
        described = _DESCRIBE[kinds[0]](ws, name, n)
        described.warnings += [f"there is also a {kind} '{name}'" for kind in kinds[1:]]
        return described
    found = find_sample(ws, name)
    if found is None:
        known = [one for kind in _KINDS for one in ws.having(kind)]
        raise CurateError(
            f"{ws.path} has no sample whose id begins with '{name}', and no {', '.join(_KINDS[:-1])} or {_KINDS[-1]} "
            f"of that name: {nearest(name, known)}"
        )
    return _sample(ws, *found)


def _sample(ws: Workspace, row: int, sample_id: str) -> Sample:
    (contents,) = contents_at(ws, [row])
    return Sample(**contents, scores=_scores(ws, row), manifests=_containing(ws, row),
                  mark=read_marks(ws).get(sample_id, ""))  # fmt: skip


def _scores(ws: Workspace, row: int) -> list[dict[str, Any]]:
    """Every score's row of a sample; only the part of the table that has it is read."""
    scores = []
    for name in ws.score_names():
        state = score_state(ws, name)
        values: dict[str, Any] = {}
        for shard in state.done:
            if shard.start <= row < shard.start + shard.rows:
                offset = row - shard.start
                path = ws.score_folder(name) / f"{shard.name}.parquet"
                columns = list(sample_columns(name, state.recipe))
                values = read_table(path, columns, (offset, offset + 1)).to_pylist()[0]
        value = values.pop("score", None)
        more = {key: given for key, given in values.items() if given is not None}
        scores.append({"score": name, "value": value, "state": state.problem() or "complete", **more})
    return scores


def _containing(ws: Workspace, row: int) -> list[dict[str, Any]]:
    names = [name for name in ws.manifest_names() if not isinstance(manifest_recipe(ws, name), MixtureRecipe)]
    selects = [f"SELECT {literal(n)} AS name, rank, weight, repeats FROM {n} WHERE row = {row}" for n in names]
    return list(sql.rows(ws, " UNION ALL ".join(selects))) if selects else []


# --- objects ---------------------------------------------------------------------------------------------


def _table(ws: Workspace, kind: str, name: str, n: int, query: str) -> Described:
    state: TableState = table_state(ws, kind, name)
    problem, total = state.problem(), state.rows
    about = f"{table_words(state.recipe)[:-1]}; {total:,} samples, {state.nulls:,} of them without a value."
    rows = list(sql.rows(ws, f"{query} LIMIT {n}"))
    return Described(name, kind, about, state.command(), problem or "complete", rows, state.recipe.as_json())


def _score(ws: Workspace, name: str, n: int) -> Described:
    return _table(ws, "score", name, n, f"SELECT * FROM {name} ORDER BY score DESC NULLS LAST, id")


def _vectors(ws: Workspace, name: str, n: int) -> Described:
    return _table(ws, "vectors", name, n, f"SELECT id, norm, error FROM {name}")


def _manifest(ws: Workspace, name: str, n: int) -> Described:
    recipe, state = manifest_recipe(ws, name), "complete"
    try:
        read_any(ws, name)
        order = "" if isinstance(recipe, MixtureRecipe) else " ORDER BY rank"
        rows = list(sql.rows(ws, f"SELECT * FROM {name}{order} LIMIT {n}"))
    except CurateError as error:
        state, rows = str(error), []
    return Described(name, "manifest", manifest_words(recipe), manifest_command(recipe), state, rows, recipe.as_json())


def _mask(ws: Workspace, name: str, n: int) -> Described:
    recipe = read_mask(ws, name).recipe
    about = f"{recipe.selected:,} parameters: {mask_words(recipe)}"
    rows = list(recipe.result.get("by_kind", []))[:n]
    return Described(name, "mask", about, mask_command(recipe), "complete", rows, recipe.as_json())


def _target(ws: Workspace, name: str, n: int) -> Described:
    table = ws.target_rows(name).to_pylist()
    splits = {split: sum(row["split"] == split for row in table) for split in ("val", "test")}
    subtasks = {row["subtask"] for row in table if row["subtask"]}
    told = ", ".join(f"{count:,} {split}" for split, count in splits.items() if count)
    about = f"{told} samples{f' of {len(subtasks)} sub-tasks' if subtasks else ''}."
    rows = [{**{key: row[key] for key in ("id", "split", "subtask")}, "text": words(row)} for row in table[:n]]
    return Described(name, "target", about, None, "complete", rows)


def _run(ws: Workspace, name: str, n: int) -> Described:
    run = Run(ws, name)
    recipe = run.require_recipe()
    state = next(sql.rows(ws, f"SELECT state FROM runs WHERE name = {literal(name)}"))["state"]
    rows = list(sql.rows(ws, f"SELECT * EXCLUDE (run) FROM evaluations WHERE run = {literal(name)} LIMIT {n}", [name]))
    return Described(name, "run", run_words(recipe), run_command(recipe), state, rows, recipe.as_json())


def _trial(ws: Workspace, name: str, n: int) -> Described:
    stored = require_trial(ws, name)
    recipe = stored.require_recipe()
    state = trial_state(len(stored.losses.names()), len(stored.trainings()))
    query = f"""SELECT subset, repeat, avg(loss) AS loss, any_value(samples) AS samples, any_value(steps) AS steps
        FROM trials WHERE trial = {literal(name)} GROUP BY ALL ORDER BY subset, repeat LIMIT {n}"""
    rows = list(sql.rows(ws, query))
    return Described(name, "trial", trial_words(recipe), trial_command(recipe, name), state, rows, recipe.as_json())


_DESCRIBE: dict[str, Callable[[Workspace, str, int], Described]] = {
    "score": _score,
    "vectors": _vectors,
    "manifest": _manifest,
    "mask": _mask,
    "target": _target,
    "run": _run,
    "trial": _trial,
}
assert set(TABLES) < set(_DESCRIBE)
