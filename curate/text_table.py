"""Tables in plain text and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as an aligned text table; columns: key -> heading. Numbers are right-aligned."""
    cells = [[cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(c[i]) for c in [*cells, list(columns.values())]) for i in range(len(columns))]
    right = [any(isinstance(row.get(key), int | float) for row in rows) for key in columns]
    lines = [list(columns.values()), *cells]
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
    """A value as it is written in a table."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
