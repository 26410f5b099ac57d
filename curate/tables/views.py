"""The SQL of each view over a workspace's Parquet files. Functions return a SELECT unless stated otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, DamagedError
from curate.store.commits import Parts
from curate.store.contents import missing, require_none_missing
from curate.store.later_meta import meta_files
from curate.store.ledger_files import read_entries
from curate.store.object_store import Location
from curate.store.recipes import TableRecipe
from curate.store.run_record import Run
from curate.store.schema import EVALUATIONS, POOL, REJECTS, RUNS, TARGET
from curate.store.workspace import Shard, Workspace
from curate.tables.inputs import sample_columns, score_recipe, scores_in
from curate.tables.state import TableState, score_state

_RUN_FIGURES = ("manifest", "seed", "steps", "samples", "trainable", "optimizer_bytes", "peak_bytes")  # of run.json
_BY_NAME = ", union_by_name = true"  # of files of several versions
_TYPES = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
    "list<item: string>": "VARCHAR[]",
    "list<element: string>": "VARCHAR[]",
}
_AS_MAP = "map_from_entries(subtasks)"
_MESSAGES = "STRUCT(role VARCHAR, content VARCHAR, extra VARCHAR)[]"


def pool(ws: Workspace) -> str:
    """The view `pool`: samples in order, with `row`, and all copies counted."""
    return f"SELECT * FROM ({_with_later_meta(ws, _with_copies(ws, _pool_rows(ws, POOL.names)))})"


def _pool_rows(ws: Workspace, columns: Sequence[str]) -> str:
    """The stored rows in order, with their position `row`."""
    files = _pool_files([shard for shard in ws.shards() if shard.rows], columns)
    return f"SELECT p.*, r.range AS row FROM ({files}) p POSITIONAL JOIN range({ws.n_rows()}) r"


def _pool_files(shards: Sequence[Shard], columns: Sequence[str]) -> str:
    """The stored rows of shards; columns that a shard of an earlier version lacks are NULL."""
    selects = []
    for lacking, group in groupby(shards, lambda shard: [name for name in columns if name not in shard.columns]):
        listed = ", ".join(f"NULL::{_type(POOL, n)} AS {_quoted(n)}" if n in lacking else _quoted(n) for n in columns)
        selects.append(f"SELECT {listed} FROM {_files([shard.path for shard in group])}")
    return " UNION ALL ".join(selects) or read_files([], POOL, columns)


def in_files(ws: Workspace, columns: Sequence[str], condition: str) -> str:
    """Stored rows of the pool that satisfy a condition on them, with their position `row`, in no order.

    Each file counts its own rows, so that only those parts of a file are unpacked that a row is in; a view has to line
    all rows up.
    """
    return _in_files([shard for shard in ws.shards() if shard.rows], columns, lambda _: condition)


def at_rows(ws: Workspace, columns: Sequence[str], rows: np.ndarray) -> str | None:
    """Rows of the pool by their position `row`, in no order, with all copies counted (columns: id among them); None if
    the pool has none of them."""
    places = {s.name: rows[(rows >= s.start) & (rows < s.start + s.rows)] - s.start for s in ws.shards()}
    shards = [shard for shard in ws.shards() if len(places[shard.name])]
    listed = {name: ", ".join(map(str, inside.tolist())) for name, inside in places.items()}
    if not shards:
        return None
    found = _with_copies(ws, _in_files(shards, columns, lambda shard: f"file_row_number IN ({listed[shard.name]})"))
    return _with_later_meta(ws, found) if "meta" in columns else found


def _in_files(shards: Sequence[Shard], columns: Sequence[str], condition: Callable[[Shard], str]) -> str:
    selects = []
    for shard in shards:
        listed = ", ".join(n if n in shard.columns else f"NULL::{_type(POOL, n)} AS {n}" for n in columns)
        file = _files([shard.path], ", file_row_number = true")
        selects.append(f"SELECT {shard.start} + file_row_number AS row, {listed} FROM {file} WHERE {condition(shard)}")
    return " UNION ALL ".join(selects)


def _with_copies(ws: Workspace, select: str) -> str:
    """Add the copies that were found after a row was stored; their counts are stored beside the pool."""
    records = ws.pool.records()
    later_files = [ws.path / "pool" / "copies" / f"{n}.parquet" for n, r in records.items() if "copies" in r["beside"]]
    if not later_files:
        return select
    counted = f"SELECT id, sum(copies)::INTEGER AS later FROM {_files(later_files)} GROUP BY id"
    return (
        f"SELECT s.* REPLACE (s.copies + coalesce(c.later, 0) AS copies) FROM ({select}) s "
        f"LEFT JOIN ({counted}) c USING (id)"
    )


def _with_later_meta(ws: Workspace, select: str) -> str:
    """Replace the metadata of samples that were read again with other fields (curate.store.later_meta)."""
    files = meta_files(ws)
    if not files:
        return select
    parts = [f"SELECT id, meta AS later, {i} AS part FROM {_files([file])}" for i, file in enumerate(files)]
    last = f"SELECT id, arg_max(later, part) AS later FROM ({' UNION ALL '.join(parts)}) GROUP BY id"
    return f"SELECT s.* REPLACE (coalesce(m.later, s.meta) AS meta) FROM ({select}) s LEFT JOIN ({last}) m USING (id)"


def targets(ws: Workspace) -> str:
    """The view `targets`: the samples of all targets."""
    selects = [f"SELECT {literal(n)} AS target, * FROM {_files([ws.targets.intact(n)])}" for n in ws.target_names()]
    # By name, since targets of an earlier version lack a column.
    return " UNION ALL BY NAME ".join([f"SELECT ''::VARCHAR AS target, * FROM ({read_files([], TARGET)})", *selects])


def rejects(ws: Workspace) -> str:
    """The view `rejects`: the refused records of all ingests and targets."""
    folder, records = ws.path / "rejects", ws.pool.records()
    files = [folder / f"{n}.parquet" for n, record in records.items() if "rejects" in record["beside"]]
    return read_files([*files, *sorted(folder.glob("target-*.parquet"))], REJECTS)


def score(ws: Workspace, state: TableState) -> str:
    """The view of a score: the shards that are computed."""
    parts = Parts(ws.score_folder(state.name))
    selects = []
    for pairs, names in groupby((shard.name for shard in state.done), lambda name: _has_pairs(parts, name, state)):
        replaced = f" REPLACE ({_AS_MAP} AS subtasks)" if pairs else ""
        selects.append(f"SELECT *{replaced} FROM {_files([parts.intact(name) for name in names])}")
    return " UNION ALL ".join(selects) or _nothing({"id": "VARCHAR", **_table_columns(state.recipe)})


def _has_pairs(parts: Parts, name: str, state: TableState) -> bool:
    """Whether a part has sub-tasks as pairs, which SQL shows as a map; parts of earlier versions have maps."""
    record = parts.record(name) if state.recipe.keeps_subtasks else None
    return record is not None and record["schema"]["subtasks"].startswith("list")


def vectors(ws: Workspace, state: TableState) -> str:
    """The view of vectors: the shards that are computed."""
    parts = Parts(ws.table_folder("vectors", state.name))
    paths = [parts.intact(shard.name) for shard in state.done]
    columns = {"id": "VARCHAR", "vector": "FLOAT[]", "norm": "FLOAT", "error": "VARCHAR"}
    return f"SELECT * FROM {_files(paths)}" if paths else _nothing(columns)


def runs(ws: Workspace, names: Sequence[str] | None) -> pa.Table:
    """The table `runs` (run_rows)."""
    return pa.Table.from_pylist(run_rows(ws, names), schema=RUNS)


def run_rows(ws: Workspace, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of the table `runs`, one for each of the named runs; None: of all, also of those that are gone. A damaged
    run's row has its name and state alone."""
    rows: list[dict[str, Any]] = []
    listed = sorted([*ws.run_names(), *missing(ws, "run")]) if names is None else names
    for run in map(partial(Run, ws), listed):
        try:
            recipe, checkpoints = run.require_recipe(), run.checkpoints()
        except CurateError:  # which `status` and `verify` say, and every command that uses the run
            rows.append({"name": run.name, "state": "damaged"})
            continue
        state = (
            "complete"
            if run.is_complete() or not recipe.weighting
            else f"{checkpoints[-1].step if checkpoints else 0} of {recipe.steps} steps"
        )
        rows.append(
            {
                "name": run.name,
                "state": state,
                "model": recipe.model.name,
                "weighting": recipe.weighting.name if recipe.weighting else None,
                "mask": recipe.mask.name if recipe.mask else None,
                **{key: getattr(recipe, key) for key in _RUN_FIGURES},
                "config": json.dumps(recipe.as_json()),
            }
        )
    return rows


def of_runs(ws: Workspace, kind: str, schema: pa.Schema, names: Sequence[str] | None) -> str:
    """A view of the parts of the named runs (None: all), with the run's name as the first column."""
    if names is None:
        require_none_missing(ws, "run")
        names = ws.run_names()
    selects = []
    for name in names:
        parts = Parts(ws.run_folder(name) / kind)
        if files := [parts.intact(part) for part in parts.records()]:
            selects.append(f"SELECT {literal(name)} AS run, * FROM ({_with_later_columns(files, schema)})")
    return " UNION ALL ".join(selects) or f"SELECT ''::VARCHAR AS run, * FROM ({read_files([], schema)})"


def evaluations(ws: Workspace, names: Sequence[str] | None) -> pa.Table:
    """The table `evaluations`: one row per named run (None: all), checkpoint, target and metric."""
    if names is None:
        require_none_missing(ws, "run")
        names = ws.run_names()
    return evaluations_of(ws, names)


def evaluations_of(ws: Workspace, names: Sequence[str]) -> pa.Table:
    """The rows of `evaluations` of some runs."""
    rows = []
    for run in map(partial(Run, ws), names):
        rows += [{"run": run.name, **record["evaluation"]} for record in run.evaluations.records().values()]
    return pa.Table.from_pylist(rows, schema=EVALUATIONS)


def samples(ws: Workspace, words: set[str] | None) -> str:
    """The view `samples`: the pool and the named scores, aligned by position; NULL for shards not scored yet."""
    _require_scores(ws, words)
    joins = []
    for i, name in enumerate(scores_in(ws, words)):
        types = _score_columns(name, score_recipe(ws, name))
        columns = {c: t for c, t in types.items() if words is None or c in words}
        if columns:  # only the parts of named scores are read, so other scores cost nothing
            joins.append(f" POSITIONAL JOIN ({_in_pool_order(ws, score_state(ws, name), columns)}) s{i}")
    rows = f"SELECT * FROM ({_pool_rows(ws, POOL.names)}) p{''.join(joins)}"
    if words is None or "copies" in words:
        rows = _with_copies(ws, rows)
    return _with_later_meta(ws, rows) if words is None or "meta" in words else rows


def _require_scores(ws: Workspace, words: set[str] | None) -> None:
    """Raises DamagedError if a score is gone that these words name, or that is among all (None)."""
    gone = missing(ws, "score")
    if gone and words is not None:
        kept = {shown for n in scores_in(ws, words) for shown in sample_columns(n, score_recipe(ws, n)).values()}
        unknown = words - kept
        gone = [n for n in gone if any(word == n or word.startswith(f"{n}_") for word in unknown)]
    require_none_missing(ws, "score", gone)


def _in_pool_order(ws: Workspace, state: TableState, columns: dict[str, str]) -> str:
    """Score columns under their names in `samples`, one row per row of the pool, in its order."""
    parts, done = Parts(ws.score_folder(state.name)), {shard.name for shard in state.done}
    stored = {shown: column for column, shown in sample_columns(state.name, state.recipe).items()}
    nulls = ", ".join(f'NULL::{t} AS "{name}"' for name, t in columns.items())
    with_subtasks = "subtasks" in {stored[name] for name in columns}

    def kind(shard: Shard) -> tuple[bool, bool]:
        is_done = shard.name in done
        return is_done, is_done and with_subtasks and _has_pairs(parts, shard.name, state)

    selects: list[str] = []
    for (is_done, pairs), group in groupby(ws.shards(), kind):
        shards = list(group)
        if not is_done:
            selects.append(f"SELECT {nulls} FROM range({sum(shard.rows for shard in shards)})")
            continue
        sources = {name: _AS_MAP if pairs and stored[name] == "subtasks" else _quoted(stored[name]) for name in columns}
        values = ", ".join(f"{source} AS {_quoted(name)}" for name, source in sources.items())
        selects.append(f"SELECT {values} FROM {_files([parts.intact(shard.name) for shard in shards])}")
    return " UNION ALL ".join(selects) or f"SELECT {nulls} FROM range(0)"


def _table_columns(recipe: TableRecipe) -> dict[str, str]:
    """The columns of a score's table, except the id, and their SQL types."""
    kinds = {"f": "FLOAT", "i": "INTEGER", "u": "UINTEGER", "b": "BOOLEAN"}
    types = {"score": "FLOAT"}
    for name, dtype in (recipe.columns or {}).items():
        special = {"float64": "DOUBLE", "int64": "BIGINT", "id": "VARCHAR"}
        types[name] = special.get(dtype) or kinds[np.dtype(dtype).kind]
    if recipe.keeps_subtasks:
        types["subtasks"] = "MAP(VARCHAR, FLOAT)"
    return {**types, "error": "VARCHAR"}


def _score_columns(name: str, recipe: TableRecipe) -> dict[str, str]:
    """The columns of a score in `samples`, by their names there (NAME, NAME_COLUMN), and their SQL types."""
    types = _table_columns(recipe)
    return {shown: types[column] for column, shown in sample_columns(name, recipe).items()}


def ledger(ws: Workspace) -> pa.Table:
    """The table `ledger`: one row per pass in the order in which they ended, with the name of each entry, by which
    recipes refer to it. Raises DamagedError if some of it was lost."""
    entries = read_entries(ws.path)
    if problem := entries.problem(ws.path):
        raise DamagedError(problem)
    return entries.table


def read_files(files: Sequence[Location], schema: pa.Schema, columns: Sequence[str] = ()) -> str:
    """A SELECT of the named columns (default: all) from Parquet files; without files, one that returns no rows."""
    names = columns or schema.names
    if files:
        return f"SELECT {', '.join(map(_quoted, names))} FROM {_files(files)}"
    return _nothing({n: _type(schema, n) for n in names})


def _with_later_columns(files: Sequence[Location], schema: pa.Schema) -> str:
    """A SELECT of a schema's columns from files of any version, NULL where a file lacks one."""
    columns = ", ".join(map(_quoted, schema.names))
    return f"SELECT {columns} FROM ({read_files([], schema)} UNION ALL BY NAME SELECT * FROM {_files(files, _BY_NAME)})"


def _type(schema: pa.Schema, column: str) -> str:
    return _TYPES.get(str(schema.field(column).type), _MESSAGES)


def _quoted(name: str) -> str:
    return f'"{name}"'


def _nothing(columns: dict[str, str]) -> str:
    nulls = ", ".join(f'NULL::{t} AS "{name}"' for name, t in columns.items())
    return f"SELECT {nulls} WHERE false"


def _files(paths: Sequence[Location], options: str = "") -> str:
    # The path must not be read as data, even if it looks like a hive partition (…/score=5/…).
    return f"read_parquet([{', '.join(literal(str(p)) for p in paths)}], hive_partitioning = false{options})"


def literal(value: str) -> str:
    """A value as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"
