"""SQL over a workspace with DuckDB: the tables are views, created per query for the names that the query uses.

`samples` is the pool with the columns of every score that the query names, aligned by row position: the shards of a
score have the rows of the pool's shards in the same order, so no join on ids is needed.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from curate.errors import CurateError, CurateFailure, nearest
from curate.store.files import remove_leftovers_of, temporary_beside
from curate.store.manifests import intact_manifest, schema_of
from curate.store.schema import METRICS, POOL, TRAINED, VIEWS
from curate.store.workspace import Workspace
from curate.tables import views
from curate.tables.audit_cards import audit_cells, audits
from curate.tables.inputs import sample_columns, score_recipe, scores_in
from curate.tables.sql_guard import cursor, first_line, has_star, nodes, read_only_tree, writing_cursor
from curate.tables.state import score_state, table_state
from curate.tables.trials import trials

_T = TypeVar("_T")
_SHOWN = 60  # rows of a table in plain text
_BATCH = 1 << 17  # rows
_LOOK = 0.05  # seconds between looks for an interrupt
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def connect(
    ws: Workspace, query: str, written: Path | None = None, runs: Sequence[str] | None = None, memory: str = ""
) -> duckdb.DuckDBPyConnection:
    """A connection with the views that `query` names, which reads and no more (curate.tables.sql_guard).

    written: a file that it may write. runs: those that the tables of runs have; None: all. memory: as for `cursor`.
    Raises CurateError unless the query is one SELECT.
    """
    connection = writing_cursor(ws, written) if written else cursor(ws, memory)
    try:
        _create_views(connection, ws, *_names_in(connection, query), runs)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_views(
    connection: duckdb.DuckDBPyConnection,
    ws: Workspace,
    words: set[str] | None,
    named: set[str],
    runs: Sequence[str] | None,
) -> None:
    """Create the views that are named; words: among which are the columns of `samples`, None: all."""

    def wanted(name: str) -> bool:
        return name in named

    tables: dict[str, Callable[[Workspace], str]] = {
        "pool": views.pool,
        "targets": views.targets,
        "rejects": views.rejects,
        "metrics": lambda ws: views.of_runs(ws, "metrics", METRICS, runs),
        "trained": lambda ws: views.of_runs(ws, "trained", TRAINED, runs),
        "samples": lambda ws: views.samples(ws, words),
    }
    for name, view in tables.items():
        if wanted(name):
            _create(connection, name, view(ws))
    for name, table in _tables(ws, runs).items():
        if wanted(name):
            connection.register(name, table())
    for name in filter(wanted, ws.score_names()):
        _create(connection, name, views.score(ws, score_state(ws, name)))
    for name in filter(wanted, ws.vectors_names()):
        _create(connection, name, views.vectors(ws, table_state(ws, "vectors", name)))
    for name in filter(wanted, ws.manifest_names()):
        path, recipe = intact_manifest(ws, name)
        _create(connection, name, views.read_files([path], schema_of(recipe)))


def _tables(ws: Workspace, runs: Sequence[str] | None) -> dict[str, Callable[[], pa.Table]]:
    """What is read into memory, by name. Of an earlier version, a manifest or a score may have the name of audits."""
    tables: dict[str, Callable[[], pa.Table]] = {
        "ledger": lambda: views.ledger(ws),
        "runs": lambda: views.runs(ws, runs),
        "evaluations": lambda: views.evaluations(ws, runs),
    }
    of_audits = {"audits": lambda: audits(ws), "audit_cells": lambda: audit_cells(ws), "trials": lambda: trials(ws)}
    taken = {*ws.score_names(), *ws.vectors_names(), *ws.manifest_names()}
    return tables | {name: table for name, table in of_audits.items() if name not in taken}


@contextmanager
def _guarded(
    ws: Workspace, connection: duckdb.DuckDBPyConnection, seconds: float | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Closes the connection after the body, whose errors become sentences; seconds: after which it is given up.

    Raises CurateError with DuckDB's message if the query fails.
    """
    timer = threading.Timer(seconds, connection.interrupt) if seconds else None
    try:
        if timer:
            timer.daemon = True
            timer.start()
        yield connection
    except duckdb.InterruptException:
        raise CurateError(f"the query was given up after {seconds:g} s; ask for less.") from None
    except duckdb.Error as error:
        raise _sentence(ws, error) from None
    finally:
        if timer:
            timer.cancel()
        connection.close()


def fetch(
    ws: Workspace, query: str, seconds: float | None = None, runs: Sequence[str] | None = None, memory: str = ""
) -> pa.Table:
    """The whole result of one SELECT as an Arrow table. seconds: after which the query is given up. runs, memory: as
    for `connect`."""
    with _guarded(ws, connect(ws, query, runs=runs, memory=memory), seconds) as connection:
        table = _interruptible(connection, lambda: connection.sql(query).to_arrow_table())
    return table.rename_columns(_distinct(table.column_names))


def batches(ws: Workspace, query: str, memory: str = "") -> Iterator[pa.RecordBatch]:
    """The result of one SELECT in batches, of which one is held at a time. memory: as for `connect`."""
    with _guarded(ws, connect(ws, query, memory=memory), None) as connection:
        reader = _interruptible(connection, lambda: connection.sql(query).to_arrow_reader(_BATCH))
        while (batch := _interruptible(connection, lambda: _next(reader))) is not None:
            yield batch


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    """The next batch. Raises DuckDB's errors, which Arrow raises as OSError, as DuckDB does otherwise."""
    try:
        return next(reader, None)
    except OSError as error:
        kinds = {"IO Error": duckdb.IOException, "Out of Memory Error": duckdb.OutOfMemoryException}
        raise kinds.get(str(error).partition(":")[0], duckdb.Error)(str(error)) from None


def shown(ws: Workspace, query: str, width: int, seconds: float | None = None) -> str:
    """The first rows of the result as a table in plain text, `width` characters wide. seconds: after which the query is
    given up."""
    text = io.StringIO()
    with _guarded(ws, connect(ws, query), seconds) as connection, contextlib.redirect_stdout(text):
        _interruptible(connection, lambda: connection.sql(query).show(max_width=width, max_rows=_SHOWN))
    return text.getvalue().rstrip()


def _interruptible(connection: duckdb.DuckDBPyConnection, call: Callable[[], _T]) -> _T:
    """What a call that queries gives; it runs in a thread, as DuckDB does not always notice an interrupt (SIGINT)."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(call)
        try:
            while wait([done], _LOOK).not_done:  # a wait without end may not notice it either
                pass
        except KeyboardInterrupt:
            while wait([done], _LOOK).not_done:
                connection.interrupt()
            raise
    return done.result()


def _distinct(names: Sequence[str]) -> list[str]:
    """The names made unique: a, b, a -> a, b, a_1."""
    distinct: list[str] = []
    for name in names:
        k, new = 0, name
        while new in distinct:
            k, new = k + 1, f"{name}_{k + 1}"
        distinct.append(new)
    return distinct


def rows(ws: Workspace, query: str, runs: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The result as dictionaries of plain Python values. runs: as for `connect`."""
    yield from fetch(ws, query, runs=runs).to_pylist()


def save(ws: Workspace, query: str, path: Path, fmt: str, seconds: float | None = None) -> None:
    """Write the result as 'parquet' or 'csv' without holding it in memory. seconds: after which it is given up."""
    options = "FORMAT parquet, COMPRESSION zstd" if fmt == "parquet" else "FORMAT csv, HEADER"
    remove_leftovers_of(path)
    temporary = temporary_beside(path)
    copy = f"COPY ({query.strip().rstrip(';')}\n) TO {views.literal(str(temporary))} ({options}, USE_TMP_FILE false)"
    try:
        with _guarded(ws, connect(ws, query, temporary), seconds) as connection:
            _interruptible(connection, lambda: connection.execute(copy))
        temporary.replace(path)
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
    return [n for n in scores_in(ws, words) if words & set(sample_columns(n, score_recipe(ws, n)).values())]


def _create(connection: duckdb.DuckDBPyConnection, name: str, select: str) -> None:
    try:
        connection.execute(f'CREATE TEMP VIEW "{name}" AS {select}')
    except duckdb.Error as error:
        raise CurateFailure(f"the table {name} cannot be read: {first_line(error)}.") from None


def _names_in(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[set[str] | None, set[str]]:
    """The lower-cased words of a query, among which are its columns of `samples`, None if it uses * on `samples`; and
    its tables, or all words, if any may be one.

    Raises CurateError unless the query is one SELECT.
    """
    tree = read_only_tree(connection, query)
    words = {word.lower() for word in _WORD.findall(query)}
    named = words if any(node.get("type") == "TABLE_FUNCTION" for node in nodes(tree)) else _tables_in(tree)
    return None if "samples" in named and has_star(tree) else words, named  # query_table('pool') names one too


def _tables_in(tree: dict[str, Any]) -> set[str]:
    """The lower-cased names that stand where a table does, in a query or in one within it."""
    names = (node.get("table_name") for node in nodes(tree))
    return {name.lower() for name in names if isinstance(name, str)}


def _sentence(ws: Workspace, error: duckdb.Error) -> CurateError:
    """DuckDB's error as one sentence, with the most similar known name if a name does not exist."""
    line = first_line(error)
    missing = re.search(r"Table with name \"?(\w+)\"? does not exist", line)
    if missing:
        table_names = [*VIEWS, *ws.score_names(), *ws.vectors_names(), *ws.manifest_names()]
        return CurateError(f"there is no table '{missing[1]}': {nearest(missing[1], table_names)}")
    column = re.search(r"Referenced column \"(\w+)\" (?:was )?not found", line)
    if column and column[1] not in samples_columns(ws):  # else it exists, but not in the tables of the query
        return CurateError(f"there is no column '{column[1]}': {nearest(column[1], samples_columns(ws))}")
    if isinstance(error, duckdb.PermissionException):
        outside = re.search(r'Cannot access (?:file|directory) "(.*)" - ', line)
        return CurateError(
            f"the query reads {outside[1] if outside else 'what it may not'}, and SQL reads the files of {ws.path} "
            "alone; allow others by --allow-files FOLDER."
        )
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
        return CurateFailure(f"DuckDB could not finish: {line}")
    if "explicit cast is required" in line:
        line += "; the fields of meta are texts: compare numbers by a cast, as in (meta->>'n')::DOUBLE > 3"
    return CurateError(f"DuckDB refuses the query: {line}.")
