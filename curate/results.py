"""What verbs return, as a terminal and a notebook show it: the main figures in a line, then tables of a few rows;
and as JSON.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from decimal import Decimal
from typing import Any

from curate.text_table import cell, one_line, table

_WIDTH = 120  # of a line in a terminal
_LINES = 18  # for all tables of a result in a terminal
_ROWS = 50  # of a table in a notebook
_NOTES = 3
_LISTED = 6  # names or figures of a list that is told in a line

Rows = Sequence[dict[str, Any]]


class Result:
    """Base of the dataclasses that verbs return: a short `repr`, and HTML for notebooks.

    Fields that are lists of dictionaries (or of dataclasses) are tables, `warnings` are notes, and all others that
    differ from their default are told in a line. A subclass whose fields are not told well so overrides `_facts` and
    `_tables`.
    """

    def __init_subclass__(cls) -> None:
        # A dataclass makes its own __repr__ unless the class has one, and an inherited one does not count.
        cls.__repr__ = Result.__repr__

    def __repr__(self) -> str:
        told = {heading: rows for heading, rows in self._tables().items() if rows}
        head = textwrap.wrap(_sentence(self._title(), self._facts()), _WIDTH, subsequent_indent="  ")
        lines = head if len(head) <= _NOTES else [*head[:_NOTES], "  …"]
        if len(told) > 3:
            lines += [f"  {_short(f'{heading}: {_listed(_names(rows))}', _WIDTH)}" for heading, rows in told.items()]
        else:
            most = max(1, _LINES // max(1, len(told)) - 3)
            lines += [line for heading, rows in told.items() for line in _text_table(heading, rows, most)]
        lines += [f"  note: {_short(note, _WIDTH)}" for note in self._notes()]
        return "\n".join(map(one_line, lines))

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(_sentence(self._title(), self._facts()))}</p>"]
        parts += [_html_table(heading, rows) for heading, rows in self._tables().items() if rows]
        return "\n".join([*parts, *(f"<p>note: {html.escape(note)}</p>" for note in self._notes())])

    def _title(self) -> str:
        return " ".join([type(self).__name__, *filter(None, [getattr(self, "name", "")])])

    def _facts(self) -> dict[str, Any]:
        """What is told in a line: heading -> a value, or a few."""
        told = ((f.name.replace("_", " "), getattr(self, f.name)) for f in _changed(self))
        return {name: value for name, value in told if name not in ("name", "warnings") and _is_told_in_a_line(value)}

    def _tables(self) -> dict[str, Rows]:
        """Heading -> rows of plain values."""
        found = {f.name.replace("_", " "): rows_of(getattr(self, f.name)) for f in _changed(self)}
        return {name: rows for name, rows in found.items() if rows}

    def _notes(self) -> list[str]:
        warnings = getattr(self, "warnings", [])
        more = [f"and {len(warnings) - _NOTES:,} more notes"] if len(warnings) > _NOTES else []
        return [*warnings[:_NOTES], *more]


def rows_of(value: Any) -> Rows:
    """A list of dictionaries, or of dataclasses, as rows; empty for whatever else."""
    if not isinstance(value, list):
        return []
    if all(is_dataclass(one) for one in value):
        return [{f.name: getattr(one, f.name) for f in fields(one)} for one in value]
    return value if all(isinstance(one, dict) for one in value) else []


def _changed(result: Any) -> Iterator[Field[Any]]:
    """The fields that differ from their default."""
    for f in fields(result):
        usual = f.default_factory() if f.default_factory is not MISSING else f.default
        value = getattr(result, f.name)
        if usual is MISSING or type(value) is not type(usual) or value != usual:
            yield f


# --- in a line -----------------------------------------------------------------------------------------------


def _is_told_in_a_line(value: Any) -> bool:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return bool(value) and all(_is_plain(one) for one in inside)
    return isinstance(value, Result) or _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _sentence(title: str, facts: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {_value(value)}" for name, value in facts.items())
    return f"{title}: {told}" if told else title


def _value(value: Any) -> str:
    if isinstance(value, Result):
        return f"({_sentence(value._title(), value._facts())})"
    if isinstance(value, dict):
        return f"({_listed([f'{key} {_value(one)}' for key, one in value.items()])})"
    if isinstance(value, list):
        return f"({_listed([_value(one) for one in value])})"
    return _short(str(value) if isinstance(value, bool) or value is None else cell(value), 80)


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return ", ".join([*names[:_LISTED], *more])


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


# --- tables --------------------------------------------------------------------------------------------------


def _names(rows: Rows) -> list[str]:
    """The first column of rows, by which a reader knows them."""
    return [str(next(iter(row.values()), "")) for row in rows]


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _cell(value: Any, most: int) -> Any:
    """A value of a table: numbers as they are, so that they are aligned as such; whatever else as a short text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return _short("" if value is None else _value(value) if isinstance(value, dict | list) else str(value), most)


def _text_table(heading: str, rows: Rows, most: int) -> list[str]:
    columns = _columns(rows)
    shown = [{key: _cell(row.get(key), 60) for key in columns} for row in rows[:most]]
    lines = table(shown, {key: key.replace("_", " ") for key in columns}).splitlines()
    more = [f"  and {len(rows) - most:,} more"] if len(rows) > most else []
    return [f"  {heading}", *(_cut(line) for line in lines), *more]


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _html_table(heading: str, rows: Rows) -> str:
    columns = _columns(rows)
    top = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell(_cell(row.get(key), 300)))}</td>' for key in columns)}</tr>"
        for row in rows[:_ROWS]
    )
    more = f" ({len(rows):,}; the first {_ROWS})" if len(rows) > _ROWS else ""
    return (
        f"<table><caption>{html.escape(heading)}{more}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


# --- as JSON -------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value that JSON can represent: plain integers, floats and texts; NaN and infinities become None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        pairs = value and all(isinstance(v, tuple) and len(v) == 2 for v in value)  # Arrow's maps
        return {str(k): plain(v) for k, v in value} if pairs else [plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
