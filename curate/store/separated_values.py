"""CSV and TSV files, row by row: a header, quoting as in RFC 4180, and every value a text.

Nothing is guessed from a value: 1990-01-01, 007, null and NaN are the texts that they are. An empty field is missing,
as spreadsheets, pandas and `datasets` have it: a table has a cell for every column in every row, so an empty `input` or
`system` is none, and a row without an answer is refused.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import count
from typing import IO, Any

from curate.errors import CurateError
from curate.store.input_formats import RAW_CUT, Unreadable
from curate.store.input_limits import InputLimits

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # by the file's ending


def rows_of(stream: IO[str], delimiter: str, where: str, limits: InputLimits) -> Iterator[tuple[int, Any]]:
    """Yields (row number, the header being row 1; record or Unreadable); empty lines count, but are no rows.

    stream: opened with newline='' and undecodable bytes as surrogates. where: the file, for messages.
    Raises CurateError for a header that does not name the columns.
    """
    csv.field_size_limit(max(csv.field_size_limit(), limits.row))  # else a field may have 128 KiB; it is one for all
    lines = _Lines(stream, limits.row)
    reader, names = csv.reader(lines, delimiter=delimiter, strict=True), None
    for number in count(1):
        lines.begin_row()
        row, reason = _next_row(reader, limits)
        if row is None and not reason:
            return
        if names is None:
            if row != []:
                names = _names(row, reason, delimiter, where)
        elif row is None:
            yield number, Unreadable(reason, lines.head)
        elif row:
            yield number, _record(names, row, lines.head)
        if lines.too_long:
            return


class _RowTooLong(Exception):
    """A row that is longer than any sample."""


class _Lines:
    """The lines of a stream, with the beginning of those that the current row has taken."""

    def __init__(self, stream: IO[str], longest: int):
        self._stream, self._longest, self._size, self.head, self.too_long = stream, longest, 0, "", False

    def begin_row(self) -> None:
        self._size, self.head = 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._longest + 1)
        self._size += len(line)
        self.head += line[: RAW_CUT - len(self.head)]
        if self._size > self._longest:
            self.too_long = True
            raise _RowTooLong
        if not line:
            raise StopIteration
        return line


def _next_row(reader: Iterator[list[str]], limits: InputLimits) -> tuple[list[str] | None, str]:
    """The next row, or None and why it cannot be read; no reason at the end of the file."""
    try:
        return next(reader), ""
    except StopIteration:
        return None, ""
    except _RowTooLong:
        return None, (
            f"is longer than {limits.row_mib:g} MiB (--limit row_mib=MIB allows more); is a quote not closed? Nothing "
            "after it is read"
        )
    except csv.Error as error:
        if "end of data" in str(error):
            return None, "opens a quote that is not closed before the end of the file"
        return None, f"is not quoted as CSV is ({error}); a quote within a quoted field is doubled"


def _names(row: list[str] | None, reason: str, delimiter: str, where: str) -> list[str]:
    """The columns that a header names; one without a name, as pandas writes an index, is named by its place."""
    if row is None:
        raise CurateError(f"{where}: the header {reason}.")
    if not _encodable(row):
        raise CurateError(f"{where}: the header is not UTF-8; save the file as UTF-8.")
    names = [name.strip() or f"column_{i}" for i, name in enumerate(row, 1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CurateError(f"{where}: the header names the column '{twice}' twice; rename one of them.")
    marks = [mark for mark in ";\t," if mark != delimiter] if len(row) == 1 else []
    if other := next((mark for mark in marks if mark in row[0]), ""):
        told = {",": "commas", "\t": "tabs", ";": "semicolons"}
        raise CurateError(
            f"{where}: the header has {told[other]} between the columns, and this file's ending means "
            f"{told[delimiter]} (.csv commas, .tsv tabs); save it with those, or rename it."
        )
    return names


def _record(names: Sequence[str], row: list[str], raw: str) -> dict[str, str | None] | Unreadable:
    if len(row) != len(names):
        return Unreadable(f"has {len(row)} fields, and the header names {len(names)} columns", raw)
    if not _encodable(row):
        return Unreadable("is not UTF-8; save the file as UTF-8", raw)
    return {name: value or None for name, value in zip(names, row, strict=True)}


def _encodable(row: Sequence[str]) -> bool:
    """Whether all bytes of a row could be decoded."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True
