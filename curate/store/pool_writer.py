"""The pool's next shards, put together from converted blocks of rows: each sample once, with its copies counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from curate.hashing import ids_as_integers
from curate.store.encoding import ROW_GROUP, read_table, write_table
from curate.store.files import remove_leftovers
from curate.store.input_blocks import COLUMNS, Converted
from curate.store.later_meta import SCHEMA as META
from curate.store.later_meta import meta_path, stored_meta
from curate.store.ledger import Meter
from curate.store.meta_rules import MetaRule, combined
from curate.store.schema import COPIES, POOL, REJECTS
from curate.store.workspace import Workspace

_GROUP_BYTES = 4 << 20  # text per row group; units of work read whole row groups


class Counts(Protocol):
    """What is counted of an ingest."""

    read: int
    added: int
    copies: int
    special: dict[str, int]
    special_tokens: dict[str, int]
    other_meta: int
    rejected: int
    sources: dict[str, int]
    reasons: dict[str, int]


class _KnownIds:
    """The ids of all stored rows: sorted runs of uint64, merged when of similar size. 8 bytes per row."""

    def __init__(self, ws: Workspace):
        self.runs: list[np.ndarray] = []
        for shard in ws.shards():
            self.add(read_table(shard.path, columns=["id"])["id"].to_pylist())

    def add(self, ids: list[str]) -> None:
        """Add ids of stored rows."""
        self.runs.append(np.sort(ids_as_integers(ids)))
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]

    def among(self, ids: set[str]) -> set[str]:
        """Those of `ids` that are stored."""
        id_list = list(ids)
        numbers = ids_as_integers(id_list)
        is_known = np.zeros(len(numbers), dtype=bool)
        for run in self.runs:
            if len(run):
                is_known |= run[np.minimum(np.searchsorted(run, numbers), len(run) - 1)] == numbers
        return {id_list[i] for i in np.flatnonzero(is_known)}


class _Shard:
    """The rows of the next shard: of converted blocks those that no stored sample has, in order."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}  # id -> row
        self.copies: list[int] = []
        self.metas: list[str] = []
        self._parts = [COLUMNS.empty_table()]
        self._taken: list[int] = []  # of the block at hand

    def __len__(self) -> int:
        return len(self.copies)

    def add(self, place: int, id_: str, meta: str) -> None:
        """Add the sample at a place of the block at hand."""
        self.places[id_] = len(self.copies)
        self.copies.append(1)
        self.metas.append(meta)
        self._taken.append(place)

    def add_all(self, ids: Sequence[str], metas: Sequence[str]) -> None:
        """Add all samples of the block at hand."""
        self.places.update(zip(ids, range(len(self), len(self) + len(ids)), strict=True))
        self.copies += [1] * len(ids)
        self.metas += metas
        self._taken += range(len(ids))

    def end_block(self, samples: pa.Table) -> None:
        """Keep what was added of a block's samples; the others are let go."""
        whole = len(self._taken) == samples.num_rows
        self._parts.append(samples if whole else samples.take(pa.array(self._taken, pa.int64())))
        self._taken = []

    def table(self) -> pa.Table:
        """The rows as the pool has them, of the blocks that have ended."""
        rows = pa.concat_tables(self._parts)
        columns = {name: rows[name] for name in COLUMNS.names}
        return pa.table({**columns, "meta": self.metas, "copies": self.copies}, schema=POOL)


class PoolWriter:
    """Builds one shard at a time and commits it when it holds `shard_bytes` of text. counts: what it counts.

    accepted: rows that are samples. counts_copies: whether copies are counted in the pool.
    """

    def __init__(self, ws: Workspace, shard_bytes: int, counts: Counts, meter: Meter, rule: MetaRule):
        self.ws, self.shard_bytes, self.counts, self.meter = ws, shard_bytes, counts, meter
        self.rule: MetaRule = rule
        self.known = _KnownIds(ws)
        self.number = len(ws.pool.names())
        self.accepted = 0
        self.counts_copies = True
        remove_leftovers(ws.path / "rejects")
        self._clear()

    def _clear(self) -> None:
        self.rows = _Shard()
        self.copies: Counter[str] = Counter()  # of rows stored in earlier shards
        self.metas: dict[str, list[str]] = {}  # of samples stored in earlier shards, as they were read again
        self.rejects: list[dict[str, Any]] = []
        self.bytes = 0
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, block: Converted, key: str) -> None:
        """Add rows in the order of the file, so that a shard's record can state how far the file was read."""
        ids, metas, sources = (block.samples[name].to_pylist() for name in ("id", "meta", "source"))
        stored = self.known.among(set(ids))
        self.counts.read += len(block.numbers)
        self.accepted += len(ids)
        self.meter.samples += len(ids)
        if self._is_new(block, ids, stored):
            self.rows.add_all(ids, metas)
            self.bytes += sum(block.sizes)
            self._count(sources, block.special)
        else:
            self._add_each(block, ids, metas, sources, stored, key)
        self.rows.end_block(block.samples)

    def _is_new(self, block: Converted, ids: list[str], stored: set[str]) -> bool:
        """Whether all rows are samples that no other row is, and fit into the shard, as it nearly always is."""
        return (
            not block.refused
            and not stored
            and len(set(ids)) == len(ids)
            and self.rows.places.keys().isdisjoint(ids)
            and self.bytes + sum(block.sizes) < self.shard_bytes
        )

    def _add_each(
        self, block: Converted, ids: list[str], metas: list[str], sources: list[str], stored: set[str], key: str
    ) -> None:
        place = 0  # of the next sample
        for row, number in enumerate(block.numbers):
            if row in block.refused:
                self._refuse(block.refused[row])
            else:
                if self._accept(place, ids[place], metas[place], stored):
                    self.bytes += block.sizes[place]
                    self._count([sources[place]], {0: block.special[place]} if place in block.special else {})
                place += 1
            if self.bytes >= self.shard_bytes:
                stored |= self.rows.places.keys()
                if key:
                    self.files[key] = {"rows": number, "done": False}
                self.rows.end_block(block.samples)
                self.flush()

    def _accept(self, place: int, id_: str, meta: str, stored: set[str]) -> bool:
        """Add a sample; whether it is a new one."""
        if (known := self.rows.places.get(id_)) is not None:
            self.rows.copies[known] += self.counts_copies
            self.rows.metas[known] = self._read_again(self.rows.metas[known], meta) or self.rows.metas[known]
        elif id_ in stored:
            self.copies[id_] += self.counts_copies
            self.metas.setdefault(id_, []).append(meta)
            self.bytes += len(meta)
        else:
            self.rows.add(place, id_, meta)
            return True
        self.counts.copies += 1
        return False

    def _refuse(self, row: dict[str, Any]) -> None:
        self.rejects.append(row)
        self.bytes += len(row["raw"])
        self.counts.rejected += 1
        reason = row["reason"].split(" (")[0]
        self.counts.reasons[reason] = self.counts.reasons.get(reason, 0) + 1

    def _count(self, sources: list[str], special: Mapping[int, frozenset[str]]) -> None:
        """Count new samples. special: place among them -> the control tokens that stood in one."""
        self.counts.added += len(sources)
        for source, n in Counter(sources).items():
            self.counts.sources[source] = self.counts.sources.get(source, 0) + n
        for place, tokens in special.items():
            self.counts.special[sources[place]] = self.counts.special.get(sources[place], 0) + 1
            for token in tokens:
                self.counts.special_tokens[token] = self.counts.special_tokens.get(token, 0) + 1

    def _read_again(self, old: str, meta: str) -> str | None:
        """The fields that a known row with the fields `old` has when it came again with others; None: those it had."""
        if (new := combined(old, meta, self.rule)) is None:
            return None
        self.counts.other_meta += 1
        return None if self.rule == "keep" else new

    def _later_meta(self) -> dict[str, str]:
        """The new metadata of samples of earlier shards, by id."""
        later = {}
        for id_, old in stored_meta(self.ws, set(self.metas)).items() if self.metas else ():
            for meta in self.metas[id_]:
                if (new := self._read_again(later.get(id_, old), meta)) is not None:
                    later[id_] = new
        return later

    def finish(self, key: str, number: int) -> None:
        """Mark a file as read to its end; an input without a key is not recorded."""
        if key:
            self.files[key] = {"rows": number, "done": True}

    def flush(self) -> None:
        """Commit the buffered rows as the next shard: rejects and copies first, then the rows, the record last."""
        if not (len(self.rows) or self.copies or self.rejects or self.files):
            return
        name = f"part-{self.number:05d}"
        digests = {}
        if self.rejects:
            table = pa.Table.from_pylist(self.rejects, schema=REJECTS)
            digests["rejects"] = write_table(self.ws.path / "rejects" / f"{name}.parquet", table)
        if copies := {id_: n for id_, n in self.copies.items() if n}:
            table = pa.table({"id": list(copies), "copies": list(copies.values())}, schema=COPIES)
            digests["copies"] = write_table(self.ws.path / "pool" / "copies" / f"{name}.parquet", table)
        if later := self._later_meta():
            table = pa.table({"id": list(later), "meta": list(later.values())}, schema=META)
            digests["meta"] = write_table(meta_path(self.ws, name), table)
        rows = self.rows.table()
        n_chars = int(pl.Series(rows["n_chars"]).sum() or 0)
        group = min(ROW_GROUP, max(1, len(self.rows) * _GROUP_BYTES // max(n_chars, 1)))
        self.ws.pool.commit(name, rows, row_group=group, n_chars=n_chars, files=self.files, beside=digests)
        self.known.add(list(self.rows.places))
        self.number += 1
        self._clear()
