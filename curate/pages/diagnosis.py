"""Figures of diagnostics, as PNG: lines with intervals, and where in a model the selected parameters are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.numerics.selection_profile import Block


@dataclass(frozen=True)
class Panel:
    """One plot. lines: for each label its points (x, y, interval or None). log: logarithmic x axis. level: the y of a
    horizontal reference line."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None]]] = field(default_factory=dict)
    log: bool = False
    level: float | None = None


def lines(panels: Sequence[Panel]) -> bytes:
    """Panels side by side as a PNG, each with its own legend."""
    plt = pyplot()
    height = 3.8 + 0.22 * max((len(panel.lines) for panel in panels), default=0)  # the legends are below
    size = (5.4 * len(panels), height)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        for i, (label, points) in enumerate(panel.lines.items()):
            x, y = (np.array([p[k] for p in points], float) for k in (0, 1))
            error_bars = None
            if all(p[2] is not None for p in points):
                error_bars = np.abs(np.array([p[2] for p in points], float).T - y)
            axis.errorbar(x, y, yerr=error_bars, label=label, marker="os^Dv"[i % 5], capsize=3, alpha=0.85)
        if panel.level is not None:
            axis.axhline(panel.level, color="#888", linewidth=1, linestyle="--")
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if panel.log:  # a tick at every point, and none in between
            axis.set_xscale("log")
            ticks = sorted({p[0] for points in panel.lines.values() for p in points})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return saved(plt, figure)


def heat_map(blocks: Sequence[Block], title: str) -> bytes:
    """Enrichment by layer (rows) and module (columns), as a PNG: 1, in white, is the selected share of the whole model.
    Cells without such a module are empty, and modules outside the layers have a row of their own."""
    plt = pyplot()
    modules = list(dict.fromkeys(b.module for b in sorted(blocks, key=lambda b: (b.layer < 0, b.module))))
    layers = sorted({b.layer for b in blocks}, key=lambda layer: (layer < 0, layer))
    table = np.full((len(layers), len(modules)), np.nan)
    for b in blocks:
        table[layers.index(b.layer), modules.index(b.module)] = b.enrichment
    size = (1.6 + 0.75 * len(modules), 2.2 + 0.45 * len(layers))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    from matplotlib.colors import TwoSlopeNorm

    maximum = max(2.0, float(np.nanmax(table)))
    picture = axis.imshow(table, cmap="RdBu_r", norm=TwoSlopeNorm(1.0, 0.0, maximum), aspect="auto")
    for i, j in np.argwhere(np.isfinite(table)):
        dark = table[i, j] < 0.35 or table[i, j] > 1 + 0.65 * (maximum - 1)
        axis.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axis.set_xticks(range(len(modules)), modules, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(layers)), [str(n) if n >= 0 else "outside" for n in layers])
    axis.set(title=title, ylabel="layer")
    figure.colorbar(picture, ax=axis, label="share selected / share selected in the model")
    return saved(plt, figure)


def pyplot() -> Any:
    """matplotlib.pyplot with a backend that needs no display; imported on first use."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def saved(plt: Any, figure: Any) -> bytes:
    """A figure as PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
