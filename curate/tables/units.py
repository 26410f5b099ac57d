"""Units of work: ranges of a shard's rows, sized by cost; what a task is, as workers are handed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from curate.store.commits import Parts
from curate.store.encoding import read_table, row_groups
from curate.store.object_store import Location
from curate.store.workspace import Shard

ROW_COST = 64  # what a row takes beside its text, as characters of text


@dataclass(frozen=True)
class Unit:
    """Rows of a shard that are mapped and committed together.

    cost: characters of text, with ROW_COST for each row. failed: rows of the shard (by position) that an earlier
    pass could not take, with the reason.
    """

    shard: Shard
    start: int
    stop: int
    cost: float
    failed: Mapping[int, str]

    @property
    def name(self) -> str:
        return f"rows-{self.start:09d}-{self.stop:09d}"

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.shard.name}"


@dataclass(frozen=True)
class MergeTask:
    """All units of a shard, to become its part."""

    shard: Shard
    units: tuple[Unit, ...]

    samples = 0
    cost = float("inf")  # before any unit: it ends a shard

    def __str__(self) -> str:
        return f"the units of {self.shard.name}"


@dataclass(frozen=True)
class TargetTask:
    """The target's own samples, to become vectors: a task of every work that makes vectors."""

    samples: int
    cost = float("inf")

    def __str__(self) -> str:
        return "the target"


def units_of_part(folder: Location, shard: Shard) -> Parts:
    """Where the units of a part lie until they are merged."""
    return Parts(folder / "_units" / shard.name, ".arrow", lasting=False)


def partial_name(unit: Unit) -> str:
    return f"{unit.shard.name}.{unit.name}"


def shard_units(shard: Shard, size: float, failed: Mapping[int, str]) -> list[Unit]:
    """A shard's rows cut into units of at most about `size` characters; the same for the same shard, always.

    Row groups, which are read whole, stay whole where they are no larger than a unit.
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
    """Rows cut where `size` would be exceeded, so that a huge row stands alone; costs float64 [N], N > 0."""
    ends = np.cumsum(costs)
    size = float(ends[-1]) / max(1, round(float(ends[-1]) / size))  # evenly, where rows are even
    edges = [0]
    while edges[-1] < len(costs):
        before = float(ends[edges[-1] - 1]) if edges[-1] else 0.0
        edges.append(max(edges[-1] + 1, int(np.searchsorted(ends, before + size * (1 + 1e-9), "right"))))
    if len(edges) > 2 and costs[edges[-2] :].sum() < size / 2 and costs[edges[-3] : edges[-2]].sum() <= size:
        del edges[-2]  # a crumb joins the unit before it
    return list(zip(edges[:-1], edges[1:], strict=True))
