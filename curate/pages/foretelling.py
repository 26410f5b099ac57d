"""What foretells a trial, as an HTML page: the sentence, a table, and a figure of LDS against the scores' FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curate.numerics.statistics import pareto
from curate.pages._html import render
from curate.pages.diagnosis import pyplot, saved
from curate.verbs.foretell import Foretelling, Foretold

_NAMED = 40  # characters of a score, or an SQL expression, in the figure


def page(found: Foretold, title: str) -> str:
    """The whole comparison as one HTML file, with its figure embedded."""
    return render(
        "foretelling.html",
        title=title,
        reading=[found.reading, *_front(found)],
        picture=plot(found),
        found=found,
        notes=found.warnings,
    )


def on_front(found: Foretold) -> list[Foretelling]:
    """The scores than which none is both cheaper and foretells better, the cheapest first; of those whose cost and LDS
    are known."""
    rows = _priced(found)
    return [rows[i] for i in pareto([row.flops or 0.0 for row in rows], [row.lds or 0.0 for row in rows], "higher")]


def _priced(found: Foretold) -> list[Foretelling]:
    return [row for row in found.rows if row.flops is not None and row.lds is not None]


def _front(found: Foretold) -> list[str]:
    front = [f"{row.score} ({row.lds:.2f}, {row.flops:.1e} FLOPs)" for row in on_front(found)]
    return [f"Nothing is both cheaper and better than {', '.join(front)}."] if front else []


def plot(found: Foretold) -> bytes:
    """LDS against the FLOPs of each score, as PNG: with 95 % intervals, the Pareto front, what is to be had at most,
    and (grey) what two standard errors of chance reach."""
    plt = pyplot()
    rows, colors = _priced(found), plt.get_cmap("tab10").colors
    figure, axis = plt.subplots(figsize=(9.0, 5.4 + 0.1 * len(rows)), layout="constrained")
    axis.axhspan(-2 * found.error, 2 * found.error, color="#888", alpha=0.12, linewidth=0, label="chance (2 s.e.)")
    for i, row in enumerate(rows):
        marker = "os^DvP*"[i // len(colors) % 7]
        assert row.flops is not None and row.lds is not None
        reach = [[row.lds - _or(row.low, row.lds)], [_or(row.high, row.lds) - row.lds]]
        options = {"fmt": marker, "color": colors[i % len(colors)], "capsize": 3, "markersize": 8, "alpha": 0.85}
        axis.errorbar(row.flops, row.lds, yerr=np.maximum(reach, 0), label=_short(row.score), **options)
    if front := [(row.flops, row.lds) for row in on_front(found)]:
        axis.step(*zip(*front, strict=True), where="post", color="#888", linewidth=1, zorder=0, label="Pareto front")
    if found.ceiling is not None:
        axis.axhline(found.ceiling, color="#444", linestyle="--", linewidth=1, label="at most, by repeats")
    if paid := [row.flops for row in rows if row.flops]:
        axis.set_xscale("symlog", linthresh=min(paid))
        axis.set_xlim(-0.2 * min(paid), 1.5 * max(paid))  # what costs nothing stands at 0
    axis.set(xlabel="FLOPs of the score, with all that it needs", ylabel="linear datamodeling score (LDS)")
    axis.grid(alpha=0.3)
    figure.legend(*_with_lines_last(axis), loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return saved(plt, figure)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _short(name: str) -> str:
    return name if len(name) <= _NAMED else f"{name[: _NAMED - 1]}…"


def _with_lines_last(axis: object) -> tuple[Sequence[object], Sequence[str]]:
    """Handles and labels of a legend, the scores before what they are held against."""
    handles, labels = axis.get_legend_handles_labels()  # type: ignore[attr-defined]
    last = {"chance (2 s.e.)", "Pareto front", "at most, by repeats"}
    order = sorted(range(len(labels)), key=lambda i: labels[i] in last)
    return [handles[i] for i in order], [labels[i] for i in order]
