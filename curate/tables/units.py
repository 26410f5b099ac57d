"""Units of work: ranges of a shard's rows, sized by cost; and the tasks that workers receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from curate.store.commits import Parts
from curate.store.encoding import read_table, row_groups
from curate.store.object_store import Location
from curate.store.workspace import Shard

ROW_COST = 64  # fixed cost of a row, in characters of text


@dataclass(frozen=True)
class Unit:
    """Rows of a shard that are mapped and committed together.

    cost: characters of text plus ROW_COST per row. failed: position in the shard -> reason, for rows that an earlier
    pass could not process.
    """

    shard: Shard
    start: int
    stop: int
    cost: float
    failed: Mapping[int, str]

    @property
    def name(self) -> str:
        """The name of its file among the units of the shard."""
        return f"rows-{self.start:09d}-{self.stop:09d}"

    @property
    def samples(self) -> int:
        """The number of its rows."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.shard.name}"


@dataclass(frozen=True)
class MergeTask:
    """Merge all units of a shard into its part."""

    shard: Shard
    units: tuple[Unit, ...]

    samples = 0
    cost = float("inf")  # done before any unit, because it finishes a shard

    def __str__(self) -> str:
        return f"the units of {self.shard.name}"


@dataclass(frozen=True)
class TargetTask:
    """Process the target's own samples: compute their vectors, or their part of a counting pass."""

    samples: int
    cost = float("inf")

    def __str__(self) -> str:
        return "the target"


def units_of_part(folder: Location, shard: Shard) -> Parts:
    """The units of a part, which are stored here until they are merged."""
    return Parts(folder / "_units" / shard.name, ".arrow", lasting=False)


def partial_name(unit: Unit) -> str:
    """The name of a unit's partial: SHARD.UNIT."""
    return f"{unit.shard.name}.{unit.name}"


def shard_units(shard: Shard, size: float, failed: Mapping[int, str]) -> list[Unit]:
    """A shard's rows split into units of at most about `size` characters; deterministic.

    Row groups no larger than a unit are not split, because they are always read as a whole.
    """
    costs = read_table(shard.path, ["n_chars"])["n_chars"].to_numpy() + float(ROW_COST)
    cuts: list[tuple[int, int]] = []
    for a, b in pairwise(row_groups(shard.path)):
        if cuts and costs[cuts[-1][0] : b].sum() <= size:
            cuts[-1] = (cuts[-1][0], b)
        else:
            cuts += [(a + i, a + j) for i, j in unit_ranges(costs[a:b], size)]
    return [
        Unit(shard, a, b, float(costs[a:b].sum()), {r: w for r, w in failed.items() if a <= r < b}) for a, b in cuts
    ]


def unit_ranges(costs: np.ndarray, size: float) -> list[tuple[int, int]]:
    """Ranges of rows, split where `size` is exceeded; a huge row is alone in its range. costs: float64 [N], N > 0."""
    ends = np.cumsum(costs)
    size = float(ends[-1]) / max(1, round(float(ends[-1]) / size))  # balance the units, if the rows are of similar cost
    edges = [0]
    while edges[-1] < len(costs):
        cost_before = float(ends[edges[-1] - 1]) if edges[-1] else 0.0
        edges.append(max(edges[-1] + 1, int(np.searchsorted(ends, cost_before + size * (1 + 1e-9), "right"))))
    if len(edges) > 2 and costs[edges[-2] :].sum() < size / 2 and costs[edges[-3] : edges[-2]].sum() <= size:
        del edges[-2]  # merge a small last unit into the previous one
    return list(zip(edges[:-1], edges[1:], strict=True))
