"""A workspace as one offline HTML page: its figures, its best and worst samples, and a search over samples."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from curate.numerics.long_horizon.scorecard import Scorecard
from curate.pages._html import render
from curate.pages.audit import pictures
from curate.pages.audit import reading as audit_reading
from curate.pages.comparison import plot
from curate.pages.comparison import reading as runs_reading
from curate.verbs.compare import Compared
from curate.verbs.report import BINS, Report, Spread
from curate.verbs.status import Status

_MOST_SOURCES = 12  # shown in a figure or a table; the others are aggregated
_MOST_LISTED = 40  # sources in the pool's table
_MOST_RUNS = 60


def page(its: Report, title: str) -> str:
    """The whole report as one HTML file."""
    return render(
        "report.html",
        title=title,
        sections=_sections(its),
        status=its.status,
        pool=_pool(its.status),
        figures=[_ridges(spread) for spread in its.spreads],
        correlation=its.correlation,
        selections=its.selections,
        ranked_by=list(dict.fromkeys(name for selection in its.selections for name in selection.percentile)),
        mixed_sources=list(its.selections[0].sources)[:_MOST_SOURCES] if its.selections else [],
        overlap=its.overlap,
        mixtures=its.mixtures,
        best=its.best,
        worst=its.worst,
        shown=its.shown,
        runs=_runs(its.status.runs, its.runs),
        audits=_audits(its.audits),
        spent=_spent(its.spent),
        packed=_packed(its),
        notes=its.warnings,
    )


def _sections(report: Report) -> list[dict[str, str]]:
    """The sections that have something to show. anchor: the section's id, and part of its template's name."""
    contents = {
        "Pool": True,
        "Scores": report.spreads,
        "Selections": report.selections or report.mixtures,
        "Best and worst": report.best,
        "Samples": report.shown.id,
        "Runs": report.status.runs,
        "Audits": report.audits,
        "Cost": report.spent,
    }
    return [
        {"title": title, "anchor": title.lower().replace(" ", "-")} for title, content in contents.items() if content
    ]


def _pool(status: Status) -> dict[str, Any]:
    """The largest sources with their share of the pool; most: the largest share, which has the longest bar."""
    rows = max(1, status.rows)
    sources = [{**row, "share": row["rows"] / rows} for row in status.sources[:_MOST_LISTED]]
    largest = max((row["rows"] / rows for row in status.sources), default=1.0)
    return {"sources": sources, "most": largest, "more": max(0, len(status.sources) - _MOST_LISTED)}


def _ridges(spread: Spread) -> dict[str, Any]:
    """Histograms of a score by source, one below the other, in the coordinates of an SVG."""
    left, width, step = 104, 320, 26
    low, high = float(spread.edges[0]), float(spread.edges[-1])
    rows = []
    for i, (name, counts, median) in enumerate(_largest(spread)):
        base = step * (i + 1)
        median_x = left + width * min(1.0, max(0.0, (median - low) / (high - low))) if median == median else None
        rows.append(
            {
                "name": name,
                "label": name if len(name) <= 15 else f"{name[:14]}…",
                "base": base,
                "top": base - step + 5,
                "outline": _outline(counts, left, width, base, step - 5),
                "median": median_x,
            }
        )
    return {
        "name": spread.name,
        "about": _about(spread),
        "left": left,
        "width": width,
        "height": step * len(rows) + 22,
        "rows": rows,
        "low": low,
        "high": high,
    }


def _largest(spread: Spread) -> list[tuple[str, np.ndarray, float]]:
    """Name, counts and median of the first sources that have values; the others together, without a median."""
    sources = [name for name, counts in spread.counts.items() if counts.sum()]
    rows = [(name, spread.counts[name], spread.quantiles[name][2]) for name in sources[:_MOST_SOURCES]]
    if other_sources := sources[_MOST_SOURCES:]:
        rows.append(
            (
                f"{len(other_sources)} others",
                np.sum([spread.counts[name] for name in other_sources], axis=0),
                float("nan"),
            )
        )
    return rows


def _outline(counts: np.ndarray, left: int, width: int, base: int, height: int) -> str:
    """The outline of a histogram as an SVG path."""
    points = [f"M{left} {base}"]
    for k, count in enumerate(counts):
        y = base - height * float(count) / counts.max()
        points.append(f"L{left + width * k / BINS:.1f} {y:.1f}L{left + width * (k + 1) / BINS:.1f} {y:.1f}")
    return "".join([*points, f"L{left + width} {base}Z"])


def _about(spread: Spread) -> str:
    """The method of a score and its target, how many samples have no value, and its state unless it is complete."""
    method = f"{spread.method} of {spread.target}" if spread.target else spread.method
    nulls = f"{spread.nulls:,} without a value" if spread.nulls else ""
    return "; ".join(part for part in (method, nulls, "" if spread.state == "complete" else spread.state) if part)


def _packed(report: Report) -> str:
    """The samples as gzipped JSON in base64: sources and selections as positions in lists of names."""
    shown = report.shown
    sources = list(dict.fromkeys(shown.source))
    position_of = {name: i for i, name in enumerate(sources)}
    values = [
        [None if value != value else float(f"{value:.5g}") for value in column.tolist()]
        for column in shown.scores.values()
    ]
    data = {
        "id": shown.id,
        "sources": sources,
        "source": [position_of[name] for name in shown.source],
        "text": shown.text,
        "scores": list(shown.scores),
        "values": values,
        "selections": [selection.name for selection in report.selections],
        "chosen": shown.chosen,
    }
    json_bytes = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(json_bytes, 6, mtime=0)).decode()


def _runs(rows: list[dict[str, Any]], compared: Compared | None) -> dict[str, Any]:
    """The first runs, how many more there are, and the comparison of those that were evaluated."""
    evaluated = compared if compared and compared.measures else None
    return {
        "rows": rows[:_MOST_RUNS],
        "more": max(0, len(rows) - _MOST_RUNS),
        "reading": runs_reading(evaluated) if evaluated else [],
        "picture": plot(evaluated) if evaluated else None,
    }


def _audits(cards: Mapping[str, Scorecard]) -> list[dict[str, Any]]:
    """Every audit's findings, with its first two figures."""
    return [
        {"name": name, "reading": audit_reading(card), "pictures": dict(list(pictures(card).items())[:2])}
        for name, card in cards.items()
    ]


def _spent(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was spent, by row of the ledger and in total."""
    flops, seconds = (sum(row[key] or 0.0 for row in rows) for key in ("flops", "seconds"))
    return {"rows": rows, "flops": flops, "minutes": seconds / 60}
