"""Rows of inputs in blocks, and what a block's rows become in the pool: what one process reads and any other converts.

What is made of a row depends on that row alone, so blocks can be converted in any order and by any process; whoever
puts them together takes them in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import pyarrow as pa

from curate.machine import without_garbage_collection
from curate.store.input_files import Input, unparsed
from curate.store.input_formats import Reader, Refused, Sample, refusal
from curate.store.json_rows import parsed
from curate.store.schema import POOL

COLUMNS = pa.schema([column for column in POOL if column.name != "copies"])  # before copies are counted
_values = attrgetter(*COLUMNS.names)
_ROWS = 1024
_BYTES = 2 << 20  # of lines


@dataclass(frozen=True)
class Block:
    """Rows of one input: (number, line of JSON Lines, or record). ends: whether the input has no more."""

    source: Input
    rows: list[tuple[int, Any]]
    ends: bool = False

    def records(self) -> Iterator[tuple[int, Any]]:
        """The rows as `input_files.records` has them."""
        if self.source.kind != "jsonl":
            return iter(self.rows)
        return ((number, parsed(line)) for number, line in self.rows)


@dataclass
class Converted:
    """A block's rows as the pool has them.

    numbers: of all rows, in order. refused: place among them -> row of the table `rejects`. samples: the others, with
    COLUMNS. sizes: their shares of a shard, in bytes. special: place among the samples -> control tokens that stood in
    their texts. reader: what it counted.
    """

    numbers: list[int]
    refused: dict[int, dict[str, Any]]
    samples: pa.Table
    sizes: list[int]
    special: dict[int, frozenset[str]]
    reader: Reader
    ends: bool


def blocks(source: Input, skip: int) -> Iterator[Block]:
    """The rows of an input after the first `skip`, in blocks; the last one, which may be empty, says so."""
    bare = replace(source, rows=None)  # which may be of this process alone
    rows, size = list[tuple[int, Any]](), 0
    for number, row in unparsed(source, skip):
        rows.append((number, row))
        size += len(row) if isinstance(row, bytes) else 0
        if len(rows) == _ROWS or size >= _BYTES:
            yield Block(bare, rows)
            rows, size = [], 0
    yield Block(bare, rows, ends=True)


@dataclass(frozen=True)
class Conversion:
    """Makes of a block what it becomes. reader: with the user's options. origin: the source of all rows; None: each
    input's."""

    reader: Reader
    origin: str | None

    def __call__(self, block: Block) -> Converted:
        """Convert a block."""
        reader, numbers, samples, refused = self.reader.fresh(), list[int](), list[Sample](), {}
        with without_garbage_collection():
            for number, record in block.records():
                try:
                    samples.append(reader.sample(record))
                except Refused as why:
                    refused[len(numbers)] = refusal(block.source.path, number, record, why)
                numbers.append(number)
        table = _table(samples, self.origin or block.source.source)
        sizes = [s.n_chars + len(s.meta) + len(s.template_kwargs or "") for s in samples]
        special = {i: s.special for i, s in enumerate(samples) if s.special}
        return Converted(numbers, refused, table, sizes, special, reader, block.ends)


def _table(samples: list[Sample], origin: str) -> pa.Table:
    columns = [[*values] for values in zip(*map(_values, samples), strict=True)] or [[] for _ in COLUMNS]
    place = COLUMNS.names.index("source")
    columns[place] = [source or origin for source in columns[place]]
    return pa.table(columns, schema=COLUMNS)
