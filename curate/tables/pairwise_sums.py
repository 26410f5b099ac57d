"""Sums whose rounding is independent of the order in which partial results arrive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from curate.errors import CurateFailure
from curate.hashing import fingerprint
from curate.kinds.passes import Arrays
from curate.store.commits import Parts
from curate.tables.unit_worker import narrowed
from curate.tables.units import Unit, partial_name


class PairwiseSums:
    """A binary tree of partial sums: the node (level, i) covers 2^level units, starting at unit i 2^level."""

    def __init__(self, parts: Parts, units: Sequence[Unit]):
        self._parts, self._units = parts, units
        self._place = {unit.shard.name + unit.name: i for i, unit in enumerate(units)}
        records = parts.records()
        self._there = {node for node in self._nodes() if self._stands(node, records)}
        for node in {node for node in self._there if self._is_covered(node)}:  # left by a kill before its removal
            self._parts.remove(self._name(node))
            self._there.remove(node)
        for node in sorted(self._there):
            self._fold(node)

    def _nodes(self) -> Iterator[tuple[int, int]]:
        level = 0
        while len(self._units) >> level:
            yield from ((level, i) for i in range(len(self._units) >> level))
            level += 1

    def _covered(self, node: tuple[int, int]) -> Sequence[Unit]:
        level, i = node
        return self._units[i << level : (i + 1) << level]

    def _name(self, node: tuple[int, int]) -> str:
        return partial_name(self._covered(node)[0]) if node[0] == 0 else f"sum-{node[0]:02d}-{node[1]:06d}"

    def _stamp(self, node: tuple[int, int]) -> str:
        return fingerprint([[u.shard.sha256, u.start, u.stop] for u in self._covered(node)])

    def _stands(self, node: tuple[int, int], records: Mapping[str, Mapping[str, Any]]) -> bool:
        record = records.get(self._name(node), {})
        if node[0] == 0:
            return record.get("shard") == self._covered(node)[0].shard.sha256
        return record.get("units") == self._stamp(node)

    def _is_covered(self, node: tuple[int, int]) -> bool:
        """Whether an ancestor, whose sum includes this node, exists."""
        level, i = node
        return any((level + up, i >> up) in self._there for up in range(1, len(self._units).bit_length() + 1))

    def missing(self) -> list[Unit]:
        """The units that no existing node covers."""
        covered = {id(unit) for node in self._there for unit in self._covered(node)}
        return [unit for unit in self._units if id(unit) not in covered]

    def came(self, unit: Unit) -> None:
        """Call when a unit's partial has been committed."""
        node = (0, self._place[unit.shard.name + unit.name])
        self._there.add(node)
        self._fold(node)

    def _fold(self, node: tuple[int, int]) -> None:
        """Add a node and its sibling if both exist, and continue upwards."""
        level, i = node
        pair = [(level, i & ~1), (level, i | 1)]
        if not set(pair) <= self._there:
            return
        parent = (level + 1, i >> 1)
        partials = [self._read(child) for child in pair]
        names = dict.fromkeys(
            [*partials[0], *partials[1]]
        )  # an array may be missing from a partial if no sample of it has one
        by_name = {
            name: [partial[name].astype(np.float64) for partial in partials if name in partial] for name in names
        }
        summed = {name: narrowed(np.sum(values, axis=0)) for name, values in by_name.items()}
        self._parts.commit(self._name(parent), summed, units=self._stamp(parent))
        for child in pair:
            self._parts.remove(self._name(child))
            self._there.remove(child)
        self._there.add(parent)
        self._fold(parent)

    def _read(self, node: tuple[int, int]) -> Arrays:
        partial = self._parts.read(self._name(node))
        if partial is None:
            self._parts.remove(self._name(node))
            raise CurateFailure(f"{self._parts.path(self._name(node))} is damaged; it was removed: run it again.")
        return partial

    def left(self) -> Iterator[Arrays]:
        """The remaining partial sums, in order of their units."""
        for node in sorted(self._there, key=lambda node: node[1] << node[0]):
            yield self._read(node)
