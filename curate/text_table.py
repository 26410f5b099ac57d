"""Tables in plain text and Markdown; and texts of data as a terminal may get them.

What comes from data (names, sources, texts, values, what an error quotes) may hold characters that a terminal takes for
commands (ESC), that forge a line (carriage return) or turn the reading direction. All that is printed passes `visible`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Control characters but tab and new line; what ends a line or turns its direction; tags; halves of characters.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
_CONTROL += "\U000e0000-\U000e007f\ud800-\udfff"
_IN_TEXT, _IN_LINE = re.compile(f"[{_CONTROL}]"), re.compile(f"[{_CONTROL}\t\n]")


def visible(text: str) -> str:
    """A text of several lines with control characters as their escapes (\\x1b, \\u202e), so that none reaches a
    terminal."""
    return _IN_TEXT.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """As `visible`, and the text stays one line: new lines and tabs are escapes too."""
    return _IN_LINE.sub(_escape, text)


def visible_json(text: str) -> str:
    """JSON of the same values, in which control characters are JSON's own escapes."""
    return _IN_TEXT.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as an aligned text table; columns: key -> heading. Numbers are right-aligned."""
    cells = [[cell(row.get(key)) for key in columns] for row in rows]
    headings = [one_line(heading) for heading in columns.values()]
    widths = [max(len(c[i]) for c in [*cells, headings]) for i in range(len(columns))]
    right = [any(isinstance(row.get(key), int | float) for row in rows) for key in columns]
    lines = [headings, *cells]
    aligned = [[x.rjust(w) if r else x.ljust(w) for x, w, r in zip(line, widths, right, strict=True)] for line in lines]
    return "\n".join("  " + "  ".join(line).rstrip() for line in aligned)


def folded(heading: str, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as a collapsible Markdown table under a heading; the first column is formatted as code."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        first, *cells = [cell(row.get(key)).replace("|", "\\|") for key in columns]
        lines.append("| " + " | ".join([f"`{first}`", *cells]) + " |")
    names = " · ".join(str(row[next(iter(columns))]) for row in rows)
    return "\n".join([f"<details><summary><b>{heading}</b>: {names}</summary>\n", *lines, "\n</details>"])


def counted(n: int, noun: str) -> str:
    """A number and its noun: '1 shard', '2,000 shards'."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def in_time(seconds: float | None) -> str:
    """A duration that is foreseen, in words."""
    if seconds is None:
        return "unknown: nothing like it is in the ledger"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def in_bytes(count: float) -> str:
    """A size, in words."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def cell(value: Any) -> str:
    """A value as it is written in a table: one line."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else one_line(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
