"""Learning curves of runs: what each evaluation found, against all FLOPs that were spent until then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.store.run_record import Run
from curate.tables.run_costs import Cost


@dataclass(frozen=True)
class Curve:
    """A measure of a run at its evaluations. flops: what had been spent by each, with the full cost of its selection,
    float64 [n], ascending; value: float64 [n]. before: the value of the model as it was, until the selection was paid
    for; None if that is not known. paid: FLOPs of the selection."""

    flops: np.ndarray
    value: np.ndarray
    before: float | None
    paid: float

    def at(self, flops: np.ndarray) -> np.ndarray:
        """The value after so many FLOPs, float64: linear between evaluations, then as the last one; NaN before the
        first one if the model as it was has no value."""
        first = np.nan if self.before is None else self.before
        x, y = np.append([0.0, self.paid], self.flops), np.append([first, first], self.value)
        found = np.interp(flops, x, y)
        return np.where((flops < self.flops[0]) & (self.before is None), np.nan, found)

    def area(self, end: float) -> float | None:
        """The mean value from 0 to `end` FLOPs, the area under the curve divided by its length; None if the model as it
        was has no value."""
        if self.before is None or end <= 0:
            return None
        inner = np.append([0.0, self.paid], self.flops)
        x = np.unique(np.append(inner[inner < end], end))
        return float(np.trapezoid(self.at(x), x) / end) if len(x) > 1 else None

    def gain(self, better: str) -> float | None:
        """By how much the last value is better than the model's as it was, per FLOP; None if that is not known."""
        if self.before is None or not self.flops[-1]:
            return None
        change = float(self.value[-1]) - self.before
        return (change if better == "higher" else -change) / float(self.flops[-1])


def step_flops_of(run: Run) -> np.ndarray:
    """FLOPs of each committed step of a run, float64 [steps]; empty if one is not known, as in runs of earlier
    versions."""
    tables = [run.metrics.read(name) for name in run.metrics.names()]
    known = [table for table in tables if table is not None and "flops" in table.column_names]
    if not tables or len(known) < len(tables):
        return np.zeros(0)
    column = pa.concat_tables([table.select(["step", "flops"]) for table in known]).sort_by("step")["flops"]
    return np.zeros(0) if column.null_count else pc.fill_null(column, 0.0).to_numpy().astype(np.float64)


def curves_of(
    runs: Mapping[str, Run],
    costs: Mapping[str, Cost],
    evaluations: Iterable[tuple[str, int, str, float]],
    bases: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, Curve]]:
    """run -> measure -> its curve. evaluations: (run, step, measure, value), by step. bases: run -> measure -> the
    value of the model that it starts from.

    Of a run whose steps' FLOPs are not known, only the last evaluation has a place, the end.
    """
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run, step, measure, value in evaluations:
        points.setdefault(run, {}).setdefault(measure, []).append((step, value))
    found: dict[str, dict[str, Curve]] = {}
    for name, measures in points.items():
        spent = np.cumsum(step_flops_of(runs[name]))
        for measure, values in measures.items():
            flops, value = _placed(values, spent, costs[name].total)
            if len(flops):
                before = bases.get(name, {}).get(measure)
                found.setdefault(name, {})[measure] = Curve(flops, value, before, costs[name].prep)
    return found


def _placed(values: Sequence[tuple[int, float]], spent: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    """The FLOPs and values of evaluations. spent: the cumulative FLOPs of the steps; total: of the whole run with its
    preparation, from which what came after an evaluation is taken off."""
    if not len(spent):
        return np.array([total]), np.array([values[-1][1]])
    last = len(spent)
    inside = [(step, value) for step, value in values if 0 < step <= last]
    steps = np.array([step for step, _ in inside], np.int64)
    flops = total - (spent[-1] - spent[steps - 1])
    return flops, np.array([value for _, value in inside])


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLOPs, mean value and its standard error (0 for one run) of several runs' curves, float64 [n] each, at the FLOPs
    of all their evaluations; a run that ended before one has its last value there."""
    start = 0.0 if all(curve.before is not None for curve in curves) else max(curve.flops[0] for curve in curves)
    end = max(curve.flops[-1] for curve in curves)
    x = np.unique(np.concatenate([np.append([start, curve.paid], curve.flops) for curve in curves]))
    x = x[(x >= start) & (x <= end)]
    values = np.stack([curve.at(x) for curve in curves])
    error = values.std(0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else np.zeros(len(x))
    return x, values.mean(0), error
