"""Conversion of the vectors that methods return to stored tables, and of stored tables to arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, DamagedError
from curate.kinds.vectors import Vectors, side_by_side
from curate.store.commits import Parts
from curate.store.encoding import LASTING
from curate.store.object_store import Location
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from curate.tables.state import table_state

if TYPE_CHECKING:
    from curate.kinds.passes import Columns
    from curate.kinds.score import Target

(_SHARES,) = LASTING  # the key in the schema's metadata: the share of each part of the vectors


def vector_table(
    ids: pa.Array, columns: Columns, subtasks: pa.Array | None = None, shares: Sequence[float] = ()
) -> pa.Table:
    """The table of samples' vectors: unit vectors in float16, and norms; null, with a reason in `error`, if missing.

    Vectors in parts have the columns vector_1, norm_1, …; shares: the weight of each part, summing to 1.
    """
    raw, n = np.asarray(columns["vector"]), len(ids)
    vectors = Vectors.of(raw, columns.get("error"))
    missing = ~vectors.there
    table: dict[str, Any] = {"id": ids.cast(pa.string())}
    for part, (name, norm) in enumerate(vector_columns(raw.shape[1] if raw.ndim == 3 else 0)):
        part_vectors = Vectors.of(raw if raw.ndim == 2 else raw[:, part], vectors.error)
        numbers = pa.array(part_vectors.unit.astype(np.float16).ravel())
        table[name] = pa.FixedSizeListArray.from_arrays(numbers, part_vectors.unit.shape[1], mask=pa.array(missing))
        table[norm] = pa.array(part_vectors.norm, mask=missing)
    table["error"] = pa.array(vectors.error, pa.string(), mask=~missing)
    result = pa.table({**table, "subtask": subtasks} if subtasks is not None else table)
    assert result.num_rows == n
    return result.replace_schema_metadata({_SHARES: json.dumps(list(shares))}) if raw.ndim == 3 else result


def vector_columns(parts: int) -> list[tuple[str, str]]:
    """The column names of vectors and their norms; parts: 0 if they are not in parts."""
    return [(f"vector_{i}", f"norm_{i}") for i in range(1, parts + 1)] or [("vector", "norm")]


def parts_of(names: Iterable[str]) -> int:
    """The number of parts of vectors, from their column names; 0 if they are not in parts."""
    return sum(name.startswith("vector_") for name in names)


def vectors_of(table: pa.Table) -> Vectors:
    """The vectors in a stored table, float16 [N, D], zero if missing. Contiguous data is not copied."""
    table = table.combine_chunks()
    count = parts_of(table.column_names)
    units = [_unit(table, name) for name, _ in vector_columns(count)]
    norms = [table[norm].to_numpy(zero_copy_only=False).astype(np.float32) for _, norm in vector_columns(count)]
    error = np.array([reason or "" for reason in table["error"].to_pylist()], object)
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


def target_vectors(folder: Location) -> Parts:
    """The vectors of targets, in the folder of the pool's vectors; one part per target."""
    return Parts(folder / "targets")


def vectors_of_target(folder: Location, target: str) -> Vectors:
    """A target's vectors, in the folder of the pool's. Raises DamagedError if they are others than were written."""
    parts = target_vectors(folder)
    stored = parts.read(target)
    if stored is None:
        raise DamagedError(
            f"{parts.path(target)} is not what was written there (its SHA-256 differs), or is gone; `curate verify "
            "--repair` removes it, and the next score for that target makes it again."
        )
    return vectors_of(stored)


def aim_stamp(fingerprint: str, target: Target) -> dict[str, Any]:
    """The entries that the record of a target's vectors must have for them to be valid; fingerprint: of the vectors."""
    return {"fingerprint": fingerprint, "target": target.fingerprint}


def load_vectors(ws: Workspace, name: str, target: str) -> Vectors:
    """A target's vectors. Raises CurateError if there are none, they are damaged, or the target was edited
    since."""
    state, current = table_state(ws, "vectors", name), load_target(ws, target)
    parts = target_vectors(ws.table_folder("vectors", name))
    record = parts.record(target) or {}
    if not aim_stamp(state.recipe.fingerprint, current).items() <= record.items():
        reason = (
            "was edited since" if record.get("target") not in (None, current.fingerprint) else "is not among them yet"
        )
        raise CurateError(f"the vectors '{name}': the target '{target}' {reason}; run `{state.command(target)}`.")
    return vectors_of_target(parts.folder.parent, target)
