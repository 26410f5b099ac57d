"""What methods return, as the tables that are stored, and stored vectors as arrays again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curate.kinds.registry import Columns, Score
from curate.kinds.vectors import Vectors, side_by_side
from curate.store.commits import LASTING

(_SHARES,) = LASTING  # of the schema's metadata: what each part of the vectors counts for


def score_table(ids: pa.Array, columns: Columns, method: Score, failed: Mapping[int, str] | None = None) -> pa.Table:
    """A method's columns as a score table: float32, null with a reason where there is no finite score.

    failed: rows, by their position in `ids`, for which `columns` have nothing, and why.
    """
    score = np.asarray(columns["score"], dtype=np.float64)
    finite = np.isfinite(score)
    reasons = np.asarray(columns.get("error", np.full(len(score), "")), dtype=object)
    reasons = np.where(~finite & (reasons == ""), "its score is not a finite number", reasons)
    good = reasons == ""
    table = {"score": pa.array(score.astype(np.float32), mask=~good)}
    for name, dtype in method.columns.items():
        values = np.asarray(columns[name])
        finite = np.isfinite(values)
        if dtype == "id":
            table[name] = pa.array([f"{v:016x}" if v else None for v in values.tolist()], pa.string())
        else:
            table[name] = pa.array(np.where(finite, values, 0).astype(dtype), mask=~finite)
    if method.keeps_subtasks():
        table["subtasks"] = _map_column(columns["subtasks"], good)
    table["error"] = pa.array(reasons, pa.string(), mask=good)
    whole = _spread(pa.table(table), len(ids), failed) if failed else pa.table(table)
    return whole.add_column(0, "id", ids.cast(pa.string()))


def _spread(table: pa.Table, n: int, failed: Mapping[int, str]) -> pa.Table:
    """The rows of a table at their places among n, with nulls and a reason at the failed ones."""
    places = np.full(n, -1)
    places[[i for i in range(n) if i not in failed]] = np.arange(table.num_rows)
    whole = table.take(pa.array(places, mask=places < 0))
    reasons = whole["error"].to_pylist()
    for row, why in failed.items():
        reasons[row] = why
    return whole.set_column(whole.column_names.index("error"), "error", pa.array(reasons, pa.string()))


def _map_column(subtasks: Mapping[str, np.ndarray], good: np.ndarray) -> pa.Array:
    """The scores of every sub-task by its name, null where the sample has no score."""
    keys = sorted(subtasks)
    values = np.stack([subtasks[key] for key in keys], axis=1).astype(np.float32)[good].ravel()
    ends = np.concatenate([[0], np.cumsum(good * len(keys))]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(~good, False)) if len(good) else pa.array([0], pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array(keys * int(good.sum()), pa.string()), pa.array(values))


# --- vectors ---------------------------------------------------------------------------------------------


def vector_table(
    ids: pa.Array, columns: Columns, subtasks: pa.Array | None = None, shares: Sequence[float] = ()
) -> pa.Table:
    """The vectors of samples: of unit length in float16, their norm, null with a reason where there is none.

    Vectors in parts are in the columns vector_1, norm_1, …; shares: what each part counts for, which add up to 1.
    """
    raw, n = np.asarray(columns["vector"]), len(ids)
    found = Vectors.of(raw, columns.get("error"))
    none = ~found.there
    table: dict[str, Any] = {"id": ids.cast(pa.string())}
    for part, (name, norm) in enumerate(vector_columns(raw.shape[1] if raw.ndim == 3 else 0)):
        one = Vectors.of(raw if raw.ndim == 2 else raw[:, part], found.error)
        numbers = pa.array(one.unit.astype(np.float16).ravel())
        table[name] = pa.FixedSizeListArray.from_arrays(numbers, one.unit.shape[1], mask=pa.array(none))
        table[norm] = pa.array(one.norm, mask=none)
    table["error"] = pa.array(found.error, pa.string(), mask=~none)
    made = pa.table({**table, "subtask": subtasks} if subtasks is not None else table)
    assert made.num_rows == n
    return made.replace_schema_metadata({_SHARES: json.dumps(list(shares))}) if raw.ndim == 3 else made


def vector_columns(parts: int) -> list[tuple[str, str]]:
    """The columns of vectors and their norms; parts: 0 where they are not in parts."""
    return [(f"vector_{i}", f"norm_{i}") for i in range(1, parts + 1)] or [("vector", "norm")]


def parts_of(names: Iterable[str]) -> int:
    """Of how many parts vectors are, by the names of their columns; 0 where they are not in parts."""
    return sum(name.startswith("vector_") for name in names)


def vectors_of(table: pa.Table) -> Vectors:
    """Vectors as they are stored: float16 [N, D], zero where there is none. Copies nothing that is in one piece."""
    table = table.combine_chunks()
    count = parts_of(table.column_names)
    units = [_unit(table, name) for name, _ in vector_columns(count)]
    norms = [table[norm].to_numpy(zero_copy_only=False).astype(np.float32) for _, norm in vector_columns(count)]
    error = np.array([why or "" for why in table["error"].to_pylist()], object)
    subtasks = table["subtask"].to_pylist() if "subtask" in table.column_names else ()
    if not count:
        return Vectors(units[0], norms[0], error, tuple(subtasks))
    shares = json.loads((table.schema.metadata or {}).get(_SHARES, b"[]"))
    return Vectors(side_by_side(np.stack(units, 1), shares), np.stack(norms, 1), error, tuple(subtasks))


def _unit(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].chunk(0) if table.num_rows else pa.array([], table[name].type)
    width, start = column.type.list_size, column.offset
    unit = column.values.to_numpy(zero_copy_only=False)[start * width : (start + len(column)) * width]
    unit = unit.reshape(len(column), width)
    if column.null_count:
        unit = np.where(column.is_null().to_numpy(zero_copy_only=False)[:, None], np.float16(0), unit)
    return unit
