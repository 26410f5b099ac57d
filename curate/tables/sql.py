"""SQL over a workspace by DuckDB: the tables as views, built per query from the names the query uses.

`samples` is the pool with every score the query names beside it, aligned by row position: the shards of a score
have the rows of the pool's shards in the same order, so no ids are joined.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curate.errors import CurateError, CurateFailure, nearest
from curate.store.commits import Parts, read_json
from curate.store.files import Location, ObjectPath
from curate.store.manifests import schema_of
from curate.store.run_record import Run
from curate.store.schema import EVALUATIONS, LEDGER, METRICS, POOL, REJECTS, RUNS, TARGET, TRAINED, VIEWS
from curate.store.workspace import Workspace
from curate.tables.state import TableState, sample_columns, score_recipe, score_state, table_state

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
    "list<item: string>": "VARCHAR[]",
    "list<element: string>": "VARCHAR[]",
}
_MESSAGES = "STRUCT(role VARCHAR, content VARCHAR, extra VARCHAR)[]"


def connect(ws: Workspace, query: str) -> duckdb.DuckDBPyConnection:
    """A connection that has the views `query` names. Raises CurateError unless it is one SELECT."""
    connection = duckdb.connect()
    connection.execute(f"SET temp_directory = {_text(tempfile.gettempdir() + '/curate-sql')}")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")  # our variables are no tables
    if isinstance(ws.path, ObjectPath):
        connection.register_filesystem(ws.path.filesystem())
    words = _words_of(connection, query)
    tables = {
        "pool": _pool,
        "targets": _targets,
        "rejects": _rejects,
        "ledger": _ledger,
        "metrics": lambda ws: _of_runs(ws, "metrics", METRICS),
        "trained": lambda ws: _of_runs(ws, "trained", TRAINED),
        "samples": lambda ws: _samples(ws, words),
    }
    for name, view in tables.items():
        if words is None or name in words:
            _create(connection, name, view(ws))
    for name, table in {"runs": _runs, "evaluations": _evaluations}.items():
        if words is None or name in words:
            connection.register(name, table(ws))
    for name in ws.score_names():
        if words is None or name in words:
            _create(connection, name, _score(ws, score_state(ws, name)))
    for name in ws.vectors_names():
        if words is None or name in words:
            _create(connection, name, _vectors(ws, table_state(ws, "vectors", name)))
    for name in ws.manifest_names():
        if words is None or name in words:
            path = ws.manifest_path(name)
            _create(connection, name, _read([path], schema_of(read_json(path.with_suffix(".json")))))
    return connection


def run(ws: Workspace, query: str) -> duckdb.DuckDBPyRelation:
    """The result of one SELECT over the workspace. Raises CurateError with DuckDB's own sentence otherwise."""
    connection = connect(ws, query)
    try:
        return connection.sql(query)
    except duckdb.Error as error:
        raise _sentence(ws, error) from None


def fetch(ws: Workspace, query: str) -> pa.Table:
    """The whole result as an Arrow table."""
    relation = run(ws, query)
    try:
        table = relation.to_arrow_table()
    except duckdb.Error as error:
        raise _sentence(ws, error) from None
    return table.rename_columns(_distinct(table.column_names))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none comes twice: a, b, a_1."""
    out: list[str] = []
    for name in names:
        k, new = 0, name
        while new in out:
            k, new = k + 1, f"{name}_{k + 1}"
        out.append(new)
    return out


def rows(ws: Workspace, query: str) -> Iterator[dict[str, Any]]:
    """The result as dictionaries of plain Python values."""
    yield from fetch(ws, query).to_pylist()


def save(ws: Workspace, query: str, path: Path, fmt: str) -> None:
    """Write the result as 'parquet' or 'csv' without holding it in memory."""
    connection = connect(ws, query)
    options = "FORMAT parquet, COMPRESSION zstd" if fmt == "parquet" else "FORMAT csv, HEADER"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        connection.execute(f"COPY ({query.strip().rstrip(';')}\n) TO {_text(str(temporary))} ({options})")
        temporary.replace(path)
    except duckdb.Error as error:
        raise _sentence(ws, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def samples_columns(ws: Workspace) -> list[str]:
    """Every column `samples` can have."""
    columns = [*POOL.names, "row"]
    for name in ws.score_names():
        columns += sample_columns(name, score_recipe(ws, name)).values()
    return columns


def scores_named(ws: Workspace, *expressions: str | None) -> list[str]:
    """The scores whose columns SQL expressions use."""
    words = {word.lower() for text in expressions if text for word in _WORD.findall(text)}
    return [n for n in ws.score_names() if words & set(sample_columns(n, score_recipe(ws, n)).values())]


# --- the views -------------------------------------------------------------------------------------------


def _create(connection: duckdb.DuckDBPyConnection, name: str, select: str) -> None:
    try:
        connection.execute(f'CREATE VIEW "{name}" AS {select}')
    except duckdb.Error as error:
        raise CurateFailure(f"the table {name} cannot be read: {_first_line(error)}.") from None


def _pool(ws: Workspace) -> str:
    return f"SELECT * FROM ({_with_copies(ws, _pool_rows(ws, POOL.names))})"


def _pool_rows(ws: Workspace, columns: Sequence[str]) -> str:
    """The stored rows in order, with their position `row`."""
    files = _read([s.path for s in ws.shards() if s.rows], POOL, columns)
    return f"SELECT p.*, r.range AS row FROM ({files}) p POSITIONAL JOIN range({ws.n_rows()}) r"


def _with_copies(ws: Workspace, select: str) -> str:
    """Adds the copies found after a row was stored; they lie beside the pool."""
    records = ws.pool.records()
    later = [ws.path / "pool" / "copies" / f"{n}.parquet" for n, r in records.items() if "copies" in r["beside"]]
    if not later:
        return select
    counted = f"SELECT id, sum(copies)::INTEGER AS later FROM {_files(later)} GROUP BY id"
    return (
        f"SELECT s.* REPLACE (s.copies + coalesce(c.later, 0) AS copies) FROM ({select}) s "
        f"LEFT JOIN ({counted}) c USING (id)"
    )


def _targets(ws: Workspace) -> str:
    each = [f"SELECT {_text(n)} AS target, * FROM {_files([ws.target_path(n)])}" for n in ws.target_names()]
    return " UNION ALL ".join(each) or f"SELECT ''::VARCHAR AS target, * FROM ({_read([], TARGET)})"


def _rejects(ws: Workspace) -> str:
    folder, records = ws.path / "rejects", ws.pool.records()
    files = [folder / f"{n}.parquet" for n, record in records.items() if "rejects" in record["beside"]]
    return _read([*files, *sorted(folder.glob("target-*.parquet"))], REJECTS)


def _score(ws: Workspace, state: TableState) -> str:
    parts = Parts(ws.score_folder(state.name))
    done = [parts.path(shard.name) for shard in state.done]
    return f"SELECT * FROM {_files(done)}" if done else _nothing({"id": "VARCHAR", **_table_columns(state.recipe)})


def _vectors(ws: Workspace, state: TableState) -> str:
    parts = Parts(ws.table_folder("vectors", state.name))
    done = [parts.path(shard.name) for shard in state.done]
    columns = {"id": "VARCHAR", "vector": "FLOAT[]", "norm": "FLOAT", "error": "VARCHAR"}
    return f"SELECT * FROM {_files(done)}" if done else _nothing(columns)


def _runs(ws: Workspace) -> pa.Table:
    rows = []
    for run in map(partial(Run, ws), ws.run_names()):
        recipe = run.recipe or {}
        done = run.checkpoints()
        state = (
            "complete"
            if run.is_complete() or not recipe["weighting"]
            else f"{done[-1].step if done else 0} of {recipe['steps']} steps"
        )
        own = {key: recipe[key] for key in ("manifest", "seed", "steps", "samples")}
        what = {"model": recipe["model"]["name"], "weighting": (recipe["weighting"] or {}).get("name")}
        what |= {"mask": (recipe.get("mask") or {}).get("name")}
        what |= {key: recipe.get(key) for key in ("trainable", "optimizer_bytes", "peak_bytes")}
        rows.append({"name": run.name, "state": state, **what, **own, "config": json.dumps(recipe)})
    return pa.Table.from_pylist(rows, schema=RUNS)


def _of_runs(ws: Workspace, kind: str, schema: pa.Schema) -> str:
    """A table that every run has parts of, with the run's name before."""
    each = []
    for name in ws.run_names():
        parts = Parts(ws.run_folder(name) / kind)
        if files := [parts.path(part) for part in parts.names()]:
            each.append(f"SELECT {_text(name)} AS run, * FROM ({_read(files, schema)})")
    return " UNION ALL ".join(each) or f"SELECT ''::VARCHAR AS run, * FROM ({_read([], schema)})"


def _evaluations(ws: Workspace) -> pa.Table:
    rows = []
    for run in map(partial(Run, ws), ws.run_names()):
        rows += [{"run": run.name, **record["evaluation"]} for record in run.evaluations.records().values()]
    return pa.Table.from_pylist(rows, schema=EVALUATIONS)


def _samples(ws: Workspace, words: set[str] | None) -> str:
    """The pool and the named scores, side by side by position; a shard not scored yet gives nulls."""
    beside = []
    for i, name in enumerate(ws.score_names()):
        types = _score_columns(name, score_recipe(ws, name))
        columns = {c: t for c, t in types.items() if words is None or c in words}
        if columns:  # only now are the score's parts looked at: a hundred scores cost what the named ones do
            beside.append(f" POSITIONAL JOIN ({_in_pool_order(ws, score_state(ws, name), columns)}) s{i}")
    rows = f"SELECT * FROM ({_pool_rows(ws, POOL.names)}) p{''.join(beside)}"
    return _with_copies(ws, rows) if words is None or "copies" in words else rows


def _in_pool_order(ws: Workspace, state: TableState, columns: dict[str, str]) -> str:
    """Score columns under their names in `samples`, one row for every row of the pool."""
    parts, done = Parts(ws.score_folder(state.name)), {shard.name for shard in state.done}
    stored = {shown: column for column, shown in sample_columns(state.name, state.recipe).items()}
    values = ", ".join(f'"{stored[name]}" AS "{name}"' for name in columns)
    nulls = ", ".join(f'NULL::{t} AS "{name}"' for name, t in columns.items())
    pieces: list[str] = []
    run_of_parts: list[Location] = []
    for shard in ws.shards():
        if shard.name in done:
            run_of_parts.append(parts.path(shard.name))
            continue
        if run_of_parts:
            pieces.append(f"SELECT {values} FROM {_files(run_of_parts)}")
        run_of_parts = []
        pieces.append(f"SELECT {nulls} FROM range({shard.rows})")
    if run_of_parts:
        pieces.append(f"SELECT {values} FROM {_files(run_of_parts)}")
    return " UNION ALL ".join(pieces) or f"SELECT {nulls} FROM range(0)"


def _table_columns(recipe: dict[str, Any]) -> dict[str, str]:
    """The columns of a score's table and their SQL types, but for the id."""
    kinds = {"f": "FLOAT", "i": "INTEGER", "u": "UINTEGER", "b": "BOOLEAN"}
    types = {"score": "FLOAT"}
    for name, dtype in recipe["columns"].items():
        known = {"float64": "DOUBLE", "int64": "BIGINT", "id": "VARCHAR"}
        types[name] = known.get(dtype) or kinds[np.dtype(dtype).kind]
    if recipe["keeps_subtasks"]:
        types["subtasks"] = "MAP(VARCHAR, FLOAT)"
    return {**types, "error": "VARCHAR"}


def _score_columns(name: str, recipe: dict[str, Any]) -> dict[str, str]:
    """The columns a score gives `samples`, by their names there (NAME, NAME_COLUMN), and their SQL types."""
    types = _table_columns(recipe)
    return {shown: types[column] for column, shown in sample_columns(name, recipe).items()}


def _ledger(ws: Workspace) -> str:
    """With the name of each entry, by which it can be pointed at."""
    parts = sorted((ws.path / "ledger").glob("part-*.parquet"))
    none = f"SELECT *, ''::VARCHAR AS entry FROM ({_read([], LEDGER)})"
    files = _files(parts, ", union_by_name = true, filename = true") if parts else ""
    entries = f"SELECT * EXCLUDE (filename), parse_filename(filename, true) AS entry FROM {files}"
    return f"{none} UNION ALL BY NAME {entries}" if parts else none


def _read(files: Sequence[Location], schema: pa.Schema, columns: Sequence[str] = ()) -> str:
    """A SELECT of the named columns (default all) from Parquet files; of no rows where there are none."""
    names = columns or schema.names
    if files:
        listed = ", ".join(f'"{name}"' for name in names)
        return f"SELECT {listed} FROM {_files(files)}"
    return _nothing({n: _TYPES.get(str(schema.field(n).type), _MESSAGES) for n in names})


def _nothing(columns: dict[str, str]) -> str:
    nulls = ", ".join(f'NULL::{t} AS "{name}"' for name, t in columns.items())
    return f"SELECT {nulls} WHERE false"


def _files(paths: Sequence[Location], how: str = "") -> str:
    # The folder's own name is no data, even where it reads like a hive partition (…/score=5/…).
    return f"read_parquet([{', '.join(_text(str(p)) for p in paths)}], hive_partitioning = false{how})"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- reading the query -----------------------------------------------------------------------------------


def _words_of(connection: duckdb.DuckDBPyConnection, query: str) -> set[str] | None:
    """The lower-cased words a query uses, which bound the views it needs; null where it uses a star.

    Raises CurateError unless the query is one SELECT.
    """
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise CurateError(f"this is not SQL that DuckDB reads: {_first_line(error)}") from None
    kinds = [s.type for s in statements]
    if len(kinds) != 1 or kinds[0] not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        named = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise CurateError(f"`curate sql` reads, and this query is {named}: give one SELECT.")
    words = {word.lower() for word in _WORD.findall(query)}
    tree = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0]
    parsed = json.loads(tree)
    star = parsed.get("error") or _has_star(parsed)
    return None if star and "samples" in words else words


def _has_star(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get("class") == "STAR" or any(_has_star(value) for value in node.values())
    return isinstance(node, list) and any(_has_star(value) for value in node)


def _sentence(ws: Workspace, error: duckdb.Error) -> CurateError:
    """DuckDB's error as one sentence, with the nearest of our names where a name is not there."""
    line = _first_line(error)
    missing = re.search(r"Table with name \"?(\w+)\"? does not exist", line)
    if missing:
        known = [*VIEWS, *ws.score_names(), *ws.vectors_names(), *ws.manifest_names()]
        return CurateError(f"there is no table '{missing[1]}': {nearest(missing[1], known)}")
    column = re.search(r"Referenced column \"(\w+)\" (?:was )?not found", line)
    if column and column[1] not in samples_columns(ws):  # else it is there, but not where the query looks
        return CurateError(f"there is no column '{column[1]}': {nearest(column[1], samples_columns(ws))}")
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
        return CurateFailure(f"DuckDB could not finish: {line}")
    return CurateError(f"DuckDB refuses the query: {line}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
