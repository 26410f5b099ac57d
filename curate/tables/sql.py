"""SQL over a workspace with DuckDB: the tables are views, created per query for the names that the query uses.

`samples` is the pool with the columns of every score that the query names, aligned by row position: the shards of a
score have the rows of the pool's shards in the same order, so no join on ids is needed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from curate.errors import CurateError, CurateFailure, nearest
from curate.store.manifests import manifest_recipe, schema_of
from curate.store.object_store import ObjectPath
from curate.store.schema import METRICS, POOL, TRAINED, VIEWS
from curate.store.workspace import Workspace
from curate.tables import views
from curate.tables.inputs import sample_columns, score_recipe
from curate.tables.state import score_state, table_state

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def connect(ws: Workspace, query: str) -> duckdb.DuckDBPyConnection:
    """A connection with the views that `query` names. Raises CurateError unless it is one SELECT."""
    if isinstance(ws.path, ObjectPath):  # a file system is a whole database's
        connection = _database()
        connection.register_filesystem(ws.path.filesystem())
    else:
        connection = _shared().cursor()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")  # Python variables must not be visible as tables
    words, named = _names_in(connection, query)

    def wanted(name: str) -> bool:
        return named is None or name in named

    tables: dict[str, Callable[[Workspace], str]] = {
        "pool": views.pool,
        "targets": views.targets,
        "rejects": views.rejects,
        "ledger": views.ledger,
        "metrics": lambda ws: views.of_runs(ws, "metrics", METRICS),
        "trained": lambda ws: views.of_runs(ws, "trained", TRAINED),
        "samples": lambda ws: views.samples(ws, words),
    }
    for name, view in tables.items():
        if wanted(name):
            _create(connection, name, view(ws))
    for name, table in {"runs": views.runs, "evaluations": views.evaluations}.items():
        if wanted(name):
            connection.register(name, table(ws))
    for name in filter(wanted, ws.score_names()):
        _create(connection, name, views.score(ws, score_state(ws, name)))
    for name in filter(wanted, ws.vectors_names()):
        _create(connection, name, views.vectors(ws, table_state(ws, "vectors", name)))
    for name in filter(wanted, ws.manifest_names()):
        path = ws.manifest_path(name)
        _create(connection, name, views.read_files([path], schema_of(manifest_recipe(ws, name))))
    return connection


def _database() -> duckdb.DuckDBPyConnection:
    """A database without tables of its own."""
    database = duckdb.connect()
    database.execute(f"SET temp_directory = {views.literal(tempfile.gettempdir() + '/curate-sql')}")
    database.execute("SET enable_external_file_cache = false")  # the files of a workspace are replaced
    return database


@functools.cache
def _shared() -> duckdb.DuckDBPyConnection:
    """The process's database: to open one takes longer than most queries. Its views are each one connection's."""
    return _database()


# A fork has none of the database's threads, and could neither use it nor end it.
os.register_at_fork(before=_shared.cache_clear)


@contextmanager
def run(ws: Workspace, query: str, seconds: float | None = None) -> Iterator[duckdb.DuckDBPyRelation]:
    """The result of one SELECT over the workspace, to be read in the body: by earlier versions of DuckDB a result is
    gone once nothing holds its connection. seconds: after which it is given up. Raises CurateError with DuckDB's
    message if it fails."""
    connection = connect(ws, query)
    timer = threading.Timer(seconds, connection.interrupt) if seconds else None
    try:
        if timer:
            timer.start()
        yield connection.sql(query)
    except duckdb.InterruptException:
        raise CurateError(f"the query was given up after {seconds:g} s; ask for less.") from None
    except duckdb.Error as error:
        raise _sentence(ws, error) from None
    finally:
        if timer:
            timer.cancel()
        connection.close()


def fetch(ws: Workspace, query: str, seconds: float | None = None) -> pa.Table:
    """The whole result as an Arrow table. seconds: after which the query is given up."""
    with run(ws, query, seconds) as relation:
        table = relation.to_arrow_table()
    return table.rename_columns(_distinct(table.column_names))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names made unique: a, b, a -> a, b, a_1."""
    distinct: list[str] = []
    for name in names:
        k, new = 0, name
        while new in distinct:
            k, new = k + 1, f"{name}_{k + 1}"
        distinct.append(new)
    return distinct


def rows(ws: Workspace, query: str) -> Iterator[dict[str, Any]]:
    """The result as dictionaries of plain Python values."""
    yield from fetch(ws, query).to_pylist()


def save(ws: Workspace, query: str, path: Path, fmt: str) -> None:
    """Write the result as 'parquet' or 'csv' without holding it in memory."""
    connection = connect(ws, query)
    options = "FORMAT parquet, COMPRESSION zstd" if fmt == "parquet" else "FORMAT csv, HEADER"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        connection.execute(f"COPY ({query.strip().rstrip(';')}\n) TO {views.literal(str(temporary))} ({options})")
        temporary.replace(path)
    except duckdb.Error as error:
        raise _sentence(ws, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def samples_columns(ws: Workspace) -> list[str]:
    """All columns that `samples` can have."""
    columns = [*POOL.names, "row"]
    for name in ws.score_names():
        columns += sample_columns(name, score_recipe(ws, name)).values()
    return columns


def scores_named(ws: Workspace, *expressions: str | None) -> list[str]:
    """The names of the scores whose columns occur in SQL expressions."""
    words = {word.lower() for text in expressions if text for word in _WORD.findall(text)}
    return [n for n in ws.score_names() if words & set(sample_columns(n, score_recipe(ws, n)).values())]


def _create(connection: duckdb.DuckDBPyConnection, name: str, select: str) -> None:
    try:
        connection.execute(f'CREATE TEMP VIEW "{name}" AS {select}')
    except duckdb.Error as error:
        raise CurateFailure(f"the table {name} cannot be read: {_first_line(error)}.") from None


def _names_in(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[set[str] | None, set[str] | None]:
    """The lower-cased words of a query, among which are its columns of `samples`, None if it uses * on `samples`; and
    its tables, None if any word may be one.

    Raises CurateError unless the query is one SELECT.
    """
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise CurateError(f"this is not SQL that DuckDB reads: {_first_line(error)}") from None
    kinds = [s.type for s in statements]
    if len(kinds) != 1 or kinds[0] not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        kind_names = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise CurateError(f"`curate sql` reads, and this query is {kind_names}: give one SELECT.")
    words = {word.lower() for word in _WORD.findall(query)}
    tree = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0]
    parsed = json.loads(tree)
    if parsed.get("error"):  # EXPLAIN, which is no tree
        return (None, None) if "samples" in words else (words, words)
    named = words if '"TABLE_FUNCTION"' in tree else set(_tables_in(parsed))  # query_table('pool') names one too
    return None if "samples" in named and _has_star(parsed) else words, named


def _tables_in(node: Any) -> Iterator[str]:
    """The lower-cased names that stand where a table does, in a query or in one within it."""
    if isinstance(node, dict) and isinstance(node.get("table_name"), str):
        yield node["table_name"].lower()
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _tables_in(value)


def _has_star(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get("class") == "STAR" or any(_has_star(value) for value in node.values())
    return isinstance(node, list) and any(_has_star(value) for value in node)


def _sentence(ws: Workspace, error: duckdb.Error) -> CurateError:
    """DuckDB's error as one sentence, with the most similar known name if a name does not exist."""
    line = _first_line(error)
    missing = re.search(r"Table with name \"?(\w+)\"? does not exist", line)
    if missing:
        table_names = [*VIEWS, *ws.score_names(), *ws.vectors_names(), *ws.manifest_names()]
        return CurateError(f"there is no table '{missing[1]}': {nearest(missing[1], table_names)}")
    column = re.search(r"Referenced column \"(\w+)\" (?:was )?not found", line)
    if column and column[1] not in samples_columns(ws):  # else it exists, but not in the tables of the query
        return CurateError(f"there is no column '{column[1]}': {nearest(column[1], samples_columns(ws))}")
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
        return CurateFailure(f"DuckDB could not finish: {line}")
    if "explicit cast is required" in line:
        line += "; the fields of meta are texts: compare numbers by a cast, as in (meta->>'n')::DOUBLE > 3"
    return CurateError(f"DuckDB refuses the query: {line}.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
