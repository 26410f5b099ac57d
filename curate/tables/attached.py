"""Rows of another tool's table put beside the pool's: which row is which sample's, and what the columns hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from curate.errors import CurateError
from curate.store.encoding import read_table
from curate.store.foreign_columns import ForeignTable
from curate.store.workspace import Shard, Workspace
from curate.tables import sql

BY_ID, BY_ROW = "id", "row"
_TYPES = {"halffloat": "float32", "float": "float32", "double": "float64", "bool": "bool"}
_LARGEST = (1 << 63) - 1
_EXACT = 1 << 24  # integers up to it are exact as float32


@dataclass
class Matched:
    """For each of the pool's N samples the row of the file that is its, int64 [N], -1 for none.

    unknown: rows of the file that are of no sample.
    """

    rows: np.ndarray
    unknown: int = 0

    @property
    def missing(self) -> int:
        """Samples that the file has no row of."""
        return int((self.rows < 0).sum())


@dataclass(frozen=True)
class Column:
    """A column of a file: M values, and where there are none. dtype: as a score's recipe names it."""

    values: np.ndarray
    null: np.ndarray
    dtype: str

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of n samples, and which have none; rows: theirs, -1 for none."""
        if not len(self.values):
            return np.zeros(len(rows), self.values.dtype), np.ones(len(rows), bool)
        return self.values[rows], (rows < 0) | self.null[rows]


@dataclass
class Read:
    """What was read of files of n rows: the rows' keys (None: they are in the pool's order), columns, and vectors,
    float32 [n, D]."""

    keys: np.ndarray | pl.Series | None
    columns: dict[str, Column] = field(default_factory=dict)
    vector: np.ndarray | None = None
    n: int = 0


def read(table: ForeignTable, by: str, columns: Sequence[str], vector: str | None) -> Read:
    """The keys and columns of a table. Raises CurateError for a column that is no numbers, or vectors of several
    lengths."""
    columns = list(dict.fromkeys(columns))
    keyed = by != BY_ROW or BY_ROW in table.schemas[0].names
    if keyed:
        for one in table.require(by):
            _require_keys(table, one, by)
    kinds = {name: _dtype([_require_numbers(table, one) for one in table.require(name)]) for name in columns}
    if vector:
        for one in table.require(vector):
            _require_vectors(table, one)
    names = [*([by] if keyed else []), *columns, *([vector] if vector else [])]
    names = list(dict.fromkeys(names))
    keys: list[np.ndarray | pl.Series] = []
    values: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    nulls: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    vectors, n = list[np.ndarray](), 0
    for batch in table.batches(names):
        if keyed:
            keys.append(_keys(batch.column(by), by, table, n))
        for name in columns:
            column = batch.column(name)
            nulls[name].append(column.is_null().to_numpy(zero_copy_only=False))
            values[name].append(_numbers(column, kinds[name], table, name))
        if vector:
            vectors.append(_vectors(batch.column(vector), table, vector, n))
        n += batch.num_rows
    found = {name: Column(_joined(values[name]), _joined(nulls[name]).astype(bool), kinds[name]) for name in columns}
    joined = (pl.concat(keys) if keys and isinstance(keys[0], pl.Series) else _joined(keys)) if keyed else None  # type: ignore[arg-type]
    return Read(joined, found, _stacked(vectors, table, vector) if vector else None, n)


def match(ws: Workspace, shards: Sequence[Shard], found: Read, by: str, file: str) -> Matched:
    """Which row of a file is which sample's. Raises CurateError for keys that occur twice, or rows without keys that
    are more or fewer than the samples."""
    keys, n = found.keys, found.n
    total = sum(shard.rows for shard in shards)
    if keys is None:
        if n != total:
            raise CurateError(
                f"{file} has {n:,} rows and the pool has {total:,} samples, so its rows cannot be matched by their "
                "order; attach a file with the column id."
            )
        return Matched(np.arange(total))
    if by == BY_ROW:
        return _by_row(np.asarray(keys), total, file)
    if by == BY_ID:
        return _by_id(shards, np.asarray(keys), file)
    return _by_key(ws, pl.Series(keys), total, by, file)


def _by_row(keys: np.ndarray, total: int, file: str) -> Matched:
    known = (keys >= 0) & (keys < total)
    rows = np.full(total, -1)
    rows[keys[known]] = np.flatnonzero(known)
    if (rows >= 0).sum() < known.sum():
        counts = np.bincount(keys[known], minlength=total)
        raise CurateError(f"{file} has the row {int(counts.argmax())} twice; keep one line of each.")
    return Matched(rows, int((~known).sum()))


def _by_id(shards: Sequence[Shard], keys: np.ndarray, file: str) -> Matched:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if len(twice := np.flatnonzero(ordered[1:] == ordered[:-1])):
        first, second = sorted(order[[twice[0], twice[0] + 1]] + 1)
        raise CurateError(
            f"{file} has the id {ordered[twice[0]]:016x} twice, in its rows {first:,} and {second:,}; keep one of each."
        )
    found = [_places(ordered, order, ids_of(shard)) for shard in shards]
    rows = np.concatenate([*found, np.zeros(0, np.int64)])
    return Matched(rows, len(keys) - int((rows >= 0).sum()))


def ids_of(shard: Shard) -> np.ndarray:
    """The ids of a shard, uint64 [rows]."""
    return _integers(read_table(shard.path, ["id"])["id"]).to_numpy()


def _places(ordered: np.ndarray, order: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The rows that have these ids, -1 for none; looked up in their order, in which memory is read once."""
    if not len(ordered):
        return np.full(len(ids), -1)
    own = np.argsort(ids)
    at = np.minimum(np.searchsorted(ordered, ids[own]), len(ordered) - 1)
    found = np.empty(len(ids), np.int64)
    found[own] = np.where(ordered[at] == ids[own], order[at], -1)
    return found


def _by_key(ws: Workspace, keys: pl.Series, total: int, by: str, file: str) -> Matched:
    """By a field of the samples' metadata; several samples may have the same."""
    if (twice := keys.filter(keys.is_duplicated())).len():
        raise CurateError(f"{file} has the {by} '{twice[0]}' twice; keep one row of each.")
    escaped = by.replace("'", "''")
    pool = sql.fetch(ws, f"SELECT meta->>'{escaped}' AS key FROM samples ORDER BY row")["key"]
    theirs = pl.DataFrame({"key": keys, "at": np.arange(len(keys))})
    joined = pl.DataFrame({"key": pl.Series(pool, dtype=pl.String)}).join(
        theirs, on="key", how="left", maintain_order="left"
    )
    rows = joined["at"].fill_null(-1).to_numpy()
    if joined["key"].null_count() == total:
        raise CurateError(f"no sample has the field {by} in its metadata; `curate sql` shows meta. Match by id or row.")
    return Matched(rows.astype(np.int64), len(keys) - len(np.unique(rows[rows >= 0])))


# --- what columns hold -----------------------------------------------------------------------------------


def number_columns(table: ForeignTable, besides: Sequence[str]) -> list[str]:
    """The columns of numbers, but for some."""
    return [one.name for one in table.schemas[0] if _is_number(one.type) and one.name not in besides]


def _is_number(kind: pa.DataType) -> bool:
    """Whether a column is of numbers; one without any value may be."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or pa.types.is_null(kind)


def _require_numbers(table: ForeignTable, found: pa.Field) -> pa.DataType:
    """The type of a column of numbers."""
    kind = found.type
    if not _is_number(kind):
        said = "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)
        raise CurateError(
            f"the column '{found.name}' of {table.files[0]} is {said}, and a score is a number; name another column, "
            "or convert it."
        )
    return kind


def _require_keys(table: ForeignTable, found: pa.Field, by: str) -> None:
    kind = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
    if pa.types.is_nested(kind) or by == BY_ROW and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        wanted = "numbers of rows" if by == BY_ROW else "one value each"
        raise CurateError(f"the column '{by}' of {table.files[0]} is {found.type}, and rows are matched by {wanted}.")


def _require_vectors(table: ForeignTable, found: pa.Field) -> None:
    kind = found.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise CurateError(
            f"the column '{found.name}' of {table.files[0]} is {kind}, and vectors are lists of numbers; name another."
        )


def _dtype(kinds: Sequence[pa.DataType]) -> str:
    """The dtype of a column that has these types in several files."""
    known = {_TYPES.get(str(kind)) or _integer(kind) for kind in kinds if not pa.types.is_null(kind)}
    if len(known) <= 1:
        return next(iter(known), "float32")
    return "int64" if all(dtype.startswith("int") for dtype in known) else "float64"


def _integer(kind: pa.DataType) -> str:
    return "int32" if kind.bit_width < 32 or kind == pa.int32() else "int64"


def _numbers(column: pa.Array, dtype: str, table: ForeignTable, name: str) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype)
    filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy(zero_copy_only=False)
    if filled.dtype == np.uint64 and len(filled) and filled.max() > _LARGEST:
        raise CurateError(
            f"the column '{name}' of {table.files[0]} has {filled.max()}, and integers are stored up to {_LARGEST}; "
            "convert it."
        )
    return filled.astype(dtype)


def _keys(column: pa.Array, by: str, table: ForeignTable, before: int) -> np.ndarray | pl.Series:
    """Keys as integers (ids, rows) or as texts. Raises CurateError for one that is none."""
    series = pl.Series(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
    if by == BY_ROW:
        whole = series.cast(pl.Int64, strict=False)
        keys = whole.set(whole.cast(pl.Float64) != series.cast(pl.Float64), None)  # type: ignore[arg-type]
    elif by == BY_ID:
        keys = _integers(series) if series.dtype == pl.String else pl.Series([None] * len(series), dtype=pl.UInt64)
    else:
        keys = series.cast(pl.String)
    if keys.null_count():
        place = int(keys.is_null().arg_max() or 0)
        wanted = {BY_ID: "an id of 16 hexadecimal digits", BY_ROW: "a row's number"}.get(by, "a key")
        raise CurateError(f"{table.files[0]}: its row {before + place + 1:,} has {by} {series[place]!r}, not {wanted}.")
    return keys if by not in (BY_ID, BY_ROW) else keys.to_numpy()


def _integers(ids: pa.ChunkedArray | pl.Series) -> pl.Series:
    """Ids as integers; null for what is no 16 hexadecimal digits."""
    series = ids if isinstance(ids, pl.Series) else pl.Series(ids)
    whole = series.set(series.str.len_bytes() != 16, None)  # type: ignore[arg-type]
    return whole.str.to_integer(base=16, dtype=pl.UInt64, strict=False)


def _vectors(column: pa.Array, table: ForeignTable, name: str, before: int) -> np.ndarray:
    """The vectors of a batch, float32 [n, D]; NaN for a missing one."""
    column = column.cast(pa.large_list(pa.float32()), safe=False)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    width, there = int(lengths.max(initial=0)), lengths > 0
    if len(other := np.flatnonzero(there & (lengths != width))):
        raise CurateError(
            f"{table.files[0]}: the vector '{name}' of its row {before + int(other[0]) + 1:,} has "
            f"{int(lengths[other[0]])} numbers, others have {width}."
        )
    found = np.full((len(column), width), np.nan, np.float32)
    flat = column.filter(pa.array(there)).flatten()
    found[there] = flat.to_numpy(zero_copy_only=False).reshape(-1, width) if width else found[there]
    return found


def _stacked(vectors: Sequence[np.ndarray], table: ForeignTable, name: str) -> np.ndarray:
    widths = {part.shape[1] for part in vectors if part.shape[1]}
    if len(widths) != 1:
        said = "no vector" if not widths else f"vectors of {' and '.join(map(str, sorted(widths)))} numbers"
        raise CurateError(f"the column '{name}' of {table.files[0]} has {said}; they must all be of one length.")
    (width,) = widths
    return np.concatenate([p if p.shape[1] else np.full((len(p), width), np.nan, np.float32) for p in vectors])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


# --- the table of a shard --------------------------------------------------------------------------------


def shard_table(
    ids: pa.ChunkedArray, rows: np.ndarray, score: Column, further: Mapping[str, Column], file: str
) -> pa.Table:
    """A shard's part of the score's table: null, with the reason, where the file has no number."""
    values, null = score.at(rows)
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite in it
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    reasons = np.full(len(rows), None, object)
    reasons[~null & ~finite] = "its score is not a finite number"
    reasons[null] = f"{file} has no value for it"
    reasons[rows < 0] = f"{file} has no row of it"
    bad = null | ~finite
    table = {"score": pa.array(values, mask=bad)}
    for name, column in further.items():
        own, lacks = column.at(rows)
        table[name] = pa.array(own.astype(column.dtype), mask=lacks | ~np.isfinite(own))
    table["error"] = pa.array(reasons, pa.string())
    return pa.table({"id": ids.cast(pa.string()), **table})


def rounded(column: Column) -> int:
    """How many integers of a score are others as float32."""
    if column.values.dtype.kind not in "iu":
        return 0
    large = column.values[np.abs(column.values.astype(np.float64)) > _EXACT].astype(np.int64)
    stored = large.astype(np.float32).astype(np.float64)
    inside = np.abs(stored) < float(_LARGEST)  # beyond, it is no integer of 64 bits any more
    return int((~inside).sum() + (stored[inside].astype(np.int64) != large[inside]).sum())
