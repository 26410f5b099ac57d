"""`curate sql`: one SELECT over the workspace, printed or written."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, nearest, require
from curate.results import plain
from curate.store.workspace import Workspace, with_files
from curate.tables import sql as queries
from curate.text_table import visible, visible_json

if TYPE_CHECKING:
    import polars as pl

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
_ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class QueryResult(Sequence[dict[str, Any]]):
    """The result of a query: its rows as dictionaries of plain Python values, and the whole of it as Arrow.

    arrow: the pyarrow.Table. Whatever reads Arrow's stream protocol (polars, pandas, DuckDB) takes the result as it is.
    """

    def __init__(self, arrow: pa.Table):
        self.arrow = arrow

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return self.arrow.to_pylist()

    def __len__(self) -> int:
        return self.arrow.num_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return repr(self.to_polars())

    def _repr_html_(self) -> str:
        return self.to_polars()._repr_html_()

    def to_polars(self) -> pl.DataFrame:
        """The result as a polars.DataFrame."""
        import polars as pl

        return pl.DataFrame(self.arrow)

    def to_pandas(self) -> Any:
        """The result as a pandas.DataFrame."""
        return self.arrow.to_pandas()


def sql(
    ws: AnyWorkspace,
    query: str,
    *,
    allow_files: Iterable[str | os.PathLike[str]] = (),
    timeout: float | None = None,
) -> QueryResult:
    """One SELECT over pool, targets, rejects, ledger, runs, samples, every score, vectors and manifest.

    It reads the files of the workspace alone, and those that are allowed. allow_files: folders and files. timeout:
    seconds after which it is given up. Raises CurateError, with DuckDB's own sentence, for a query that it refuses.
    """
    ws = with_files(workspace_of(ws, pinned=True), allow_files)
    _require_timeout(timeout)
    return QueryResult(queries.fetch(ws, query, timeout))


def write_sql(
    ws: Workspace,
    query: str,
    fmt: str | None = None,
    output: str | None = None,
    terminal: bool = True,
    timeout: float | None = None,
    allow_files: Iterable[str | os.PathLike[str]] = (),
) -> str:
    """Run a query; returns the text to print, or writes it to `output` and returns ''.

    fmt: one of FORMATS; None: by the ending of `output`, else a table of the first rows for a terminal and all rows as
    CSV for anything else. timeout: seconds after which the query is given up. allow_files: as for `sql`. Raises
    CurateError for an unknown format or ending.
    """
    ws = with_files(ws, allow_files)
    _require_timeout(timeout)
    fmt = fmt or _format_of(output, terminal)
    if fmt not in FORMATS:
        raise CurateError(f"there is no output format '{fmt}': {nearest(fmt, FORMATS)}")
    if output and fmt in ("parquet", "csv"):
        queries.save(ws, query, _new_file(output), fmt, timeout)
        return ""
    if fmt == "parquet":
        raise CurateError("Parquet is no text; say where to write it with -o FILE.")
    text = _as_text(ws, query, fmt, timeout)
    if output:
        _new_file(output).write_text(text + "\n", encoding="utf-8")
        return ""
    return text


def _format_of(output: str | None, terminal: bool) -> str:
    if not output:
        return "table" if terminal else "csv"
    if Path(output).is_dir():
        raise CurateError(f"{output} is a folder; name a file in it, as in {Path(output) / 'rows.parquet'}.")
    ending = Path(output).suffix.lower()
    if ending not in _ENDINGS:
        raise CurateError(f"{output}: an ending of {', '.join(_ENDINGS)} says how to write it; else give --format.")
    return _ENDINGS[ending]


def _require_timeout(timeout: float | None) -> None:
    require(
        f"--timeout {timeout}", timeout is None or 0 < timeout <= threading.TIMEOUT_MAX, "a number of seconds above 0"
    )


def _as_text(ws: Workspace, query: str, fmt: str, timeout: float | None) -> str:
    if fmt == "table":
        return visible(queries.shown(ws, query, shutil.get_terminal_size((160, 40)).columns, timeout))
    table = queries.fetch(ws, query, timeout)
    rows = [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]
    if fmt == "jsonl":
        return "\n".join(_json(row) for row in rows)
    if fmt == "json":
        return "[" + ",\n ".join(_json(row) for row in rows) + "]"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([row[name] for name in table.column_names] for row in rows)
    return text.getvalue().rstrip("\n")


def _json(row: dict[str, Any]) -> str:
    return visible_json(json.dumps(row, ensure_ascii=False))


def _new_file(output: str) -> Path:
    path = Path(output)
    if not path.parent.is_dir():
        raise CurateError(f"{path.parent}: there is no such folder to write {path.name} into.")
    return path
