"""What SQL of users may do: read, and of files those of its workspace alone. All connections for it are made here.

Three things hold, each by DuckDB itself: the parsed query is a SELECT all the way down; of the functions that stand for
a table only those of TABLE_FUNCTIONS are called; and the database opens no file but the workspace's, loads no extension
and takes no setting.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from curate.errors import CurateError
from curate.store.object_store import ObjectPath
from curate.store.workspace import Workspace
from curate.tables.views import literal

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})  # queries that only read
TABLE_FUNCTIONS = frozenset(
    "range generate_series unnest repeat repeat_row json_each json_tree histogram histogram_values glob read_blob "
    "read_csv read_csv_auto read_json read_json_auto read_json_objects read_ndjson read_ndjson_auto read_parquet "
    "parquet_scan read_text sniff_csv parquet_metadata parquet_schema parquet_file_metadata parquet_kv_metadata "
    "duckdb_columns duckdb_functions duckdb_settings duckdb_tables duckdb_types duckdb_views duckdb_keywords "
    "duckdb_extensions pragma_version pg_timezone_names icu_calendar_names summary query_table".split()
)
"""The functions in the place of a table that queries may call. Others write, or run SQL that is in a text."""
_OPTIONS = re.compile(r"[\w\s,]*")  # of EXPLAIN (ANALYZE, FORMAT json)
_KEPT = 8  # databases that stay open


def cursor(ws: Workspace, memory: str = "") -> duckdb.DuckDBPyConnection:
    """A connection that reads the files of the workspace, and those that it was opened with leave to read.

    memory: what DuckDB may hold before it writes to its temporary folder ('2GiB'); '': most of the machine's.
    """
    if isinstance(ws.path, ObjectPath):  # a file system is a whole database's
        return _database(str(ws.path), ws.readable, memory=memory, filesystem=ws.path.filesystem())
    return _shared(str(ws.path.absolute()), ws.readable, memory).cursor()


def writing_cursor(ws: Workspace, written: Path) -> duckdb.DuckDBPyConnection:
    """As `cursor`, of a database of its own that may also write one file: for a COPY that is ours, of a query that is
    the user's and was found to be a SELECT."""
    filesystem = ws.path.filesystem() if isinstance(ws.path, ObjectPath) else None
    return _database(str(ws.path.absolute()), ws.readable, str(written.absolute()), filesystem=filesystem)


def _database(
    home: str, readable: Sequence[str], written: str = "", memory: str = "", filesystem: Any = None
) -> duckdb.DuckDBPyConnection:
    """A database without tables of its own, and whose settings are final."""
    database = duckdb.connect(
        config={
            "temp_directory": f"{tempfile.gettempdir()}/curate-sql-{os.getpid()}",
            "enable_external_file_cache": "false",  # the files of a workspace are replaced
            "python_enable_replacements": "false",  # Python variables must not be visible as tables
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_persistent_secrets": "false",
            **({"memory_limit": memory} if memory else {}),
        }
    )
    if filesystem is not None:
        database.register_filesystem(filesystem)
    files = [path for path in readable if Path(path).is_file()] + ([written] if written else [])
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    database.execute(f"SET allowed_directories = {_listed([home, *(p for p in readable if p not in files)])}")
    database.execute(f"SET allowed_paths = {_listed(files)}")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _listed(paths: Sequence[str]) -> str:
    return f"[{', '.join(map(literal, paths))}]"


@functools.lru_cache(_KEPT)
def _shared(home: str, readable: tuple[str, ...], memory: str) -> duckdb.DuckDBPyConnection:
    """The process's database of a workspace: to open one takes longer than most queries. Its views are each one
    connection's."""
    return _database(home, readable, memory=memory)


# A fork has none of the database's threads, and could neither use it nor end it.
os.register_at_fork(before=_shared.cache_clear)


def read_only_tree(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    """The parsed query (of what is explained, for an EXPLAIN), as `json_serialize_sql` gives it.

    Raises CurateError unless the query is one SELECT, or EXPLAIN of one, in which nothing writes.
    """
    try:
        statements = connection.extract_statements(query)
        if [s.type for s in statements] == [duckdb.StatementType.EXPLAIN]:
            query = _explained(query)
            statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise CurateError(f"this is not SQL that DuckDB reads: {first_line(error)}") from None
    kinds = [s.type for s in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        kind_names = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise CurateError(f"`curate sql` reads, and this query is {kind_names}: give one SELECT.")
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    if tree.get("error"):
        raise CurateError(f"`curate sql` reads, and this query is not a plain SELECT: {tree.get('error_message')}.")
    _require_reading(tree)
    return tree


def _explained(query: str) -> str:
    """What an EXPLAIN explains; '' if its options are not plain words."""
    tokens = [start for start, kind in duckdb.tokenize(query) if kind != duckdb.token_type.comment]
    if len(tokens) < 2:
        return ""
    rest = query[tokens[1] :]
    if rest[:1] == "(":
        options, _, rest = rest[1:].partition(")")
        return rest if _OPTIONS.fullmatch(options) else ""
    return re.sub(r"^analy[sz]e\b", "", rest, flags=re.IGNORECASE)


def _require_reading(tree: Any) -> None:
    """Raises CurateError if a part of the query writes (DuckDB has COPY and INSERT within WITH), or calls a function
    that is not known to only read."""
    for node in nodes(tree):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _NODES:
            word = kind.removesuffix("_NODE").removesuffix("_QUERY")
            raise CurateError(f"`curate sql` reads, and a part of this query is {word}: give one SELECT.")
        if kind == "TABLE_FUNCTION":
            name = str(node.get("function", {}).get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise CurateError(
                    f"`curate sql` calls no function '{name}' in the place of a table: it is not known to only read."
                )


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON tree."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def has_star(tree: Any) -> bool:
    """Whether a parsed query uses `*`."""
    return any(node.get("class") == "STAR" for node in nodes(tree))


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
