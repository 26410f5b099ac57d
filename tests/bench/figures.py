"""The figures of docs/performance.md: kept in results/figures.jsonl, and taken there from what `make bench` wrote.

    python -m tests.bench.figures [FILE]      default: $CURATE_BENCH, or build/bench.jsonl

A row has a command, what it measures, what was measured, and of which date, commit and device it is; its limit, and how
near it is, where that is known; and `from`: the names of the figures that the very command prints, of which the row is
made. Rows that name none are written by hand. A figure that no row names is on no page: add a row to show it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.bench.timing import short

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "results/figures.jsonl"
Lines = Sequence[Mapping[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


def merged(rows: Lines, lines: Lines) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows with new figures where lines have all that a row is made of, the last of each name; and the names of the
    figures that are in no row."""
    found = {(line["command"], line["what"]): line for line in lines}
    new, named = [], set[tuple[str, str]]()
    for row in rows:
        keys = [(row["command"], name) for name in row["from"]]
        new.append(_renewed(row, [found[key] for key in keys]) if keys and found.keys() >= set(keys) else dict(row))
        named.update(keys)
    return new, [f"{command}: {what}" for command, what in found if (command, what) not in named]


def table(rows: Lines) -> str:
    """The rows as a table in Markdown; a command stands in the first of its rows."""
    shown, before = ["| command | what | measured | works against | date |", "|---|---|---|---|---|"], ""
    for row in rows:
        command = f"`{row['command']}`" if row["command"] != before else ""
        near = f" ({100 * row['near']:.0f} % of it)" if row["near"] is not None else ""
        cells = (command, row["what"], row["measured"], f"{row['limit']}{near}", row["date"])
        shown.append(f"| {' | '.join(cells)} |")
        before = row["command"]
    return "\n".join(shown)


def said(line: Mapping[str, Any]) -> str:
    """A figure as the table has it: 2.9x (2.7 to 3.0)."""
    value, (low, high), unit = line.get("ratio", line.get("value")), line["interval"], line["unit"]
    ending = "x" if unit == "x" else f" {unit}" if unit else ""
    between = f" ({short(low, unit)} to {short(high, unit)})" if low < high else ""
    return f"{short(value, unit)}{ending}{between}"


def _renewed(row: Mapping[str, Any], parts: Lines) -> dict[str, Any]:
    first = parts[0]
    limits = [(line["limit"], line["near"]) for line in parts if line["limit"]]
    limit, near = limits[0] if limits else (row["limit"], None)
    made = {"date": first["date"], "commit": first["commit"], "device": first["device"]}
    return {**row, "measured": "; ".join(map(said, parts)), "limit": limit, "near": near, **made}


def main(path: Path) -> None:
    """Take new figures into the file, and print which have no row."""
    if not path.exists():
        raise SystemExit(f"{path}: there are no figures; `make bench` writes some, or name their file.")
    rows, lines = read(FILE), read(path)
    new, left = merged(rows, lines)
    FILE.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in new))
    changed = sum(a != b for a, b in zip(rows, new, strict=True))
    print(f"{changed} of {len(rows)} rows have new figures; {len(left)} figures are in no row:")
    print("\n".join(f"  {name}" for name in left))


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CURATE_BENCH")
    main(Path(given) if given else ROOT / "build/bench.jsonl")
