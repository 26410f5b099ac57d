"""The columns that a score returns, converted to the stored table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from curate.kinds.passes import Columns
from curate.kinds.score import Score


def score_table(ids: pa.Array, columns: Columns, method: Score, failed: Mapping[int, str] | None = None) -> pa.Table:
    """A method's columns as a score table: float32; null, with a reason in `error`, if a score is not finite.

    failed: position in `ids` -> reason, for rows that `columns` do not include.
    """
    score = np.asarray(columns["score"], dtype=np.float64)
    finite = np.isfinite(score)
    reasons = np.asarray(columns.get("error", np.full(len(score), "")), dtype=object)
    reasons = np.where(~finite & (reasons == ""), "its score is not a finite number", reasons)
    valid = reasons == ""
    table = {"score": pa.array(score.astype(np.float32), mask=~valid)}
    for name, dtype in method.columns.items():
        values = np.asarray(columns[name])
        finite = np.isfinite(values)
        if dtype == "id":
            table[name] = pa.array([f"{v:016x}" if v else None for v in values.tolist()], pa.string())
        else:
            table[name] = pa.array(np.where(finite, values, 0).astype(dtype), mask=~finite)
    if method.keeps_subtasks():
        table["subtasks"] = _pairs_column(columns["subtasks"], valid)
    table["error"] = pa.array(reasons, pa.string(), mask=valid)
    full_table = _spread(pa.table(table), len(ids), failed) if failed else pa.table(table)
    return full_table.add_column(0, "id", ids.cast(pa.string()))


def _spread(table: pa.Table, n: int, failed: Mapping[int, str]) -> pa.Table:
    """The rows of a table at their positions among n, with nulls and the reason at the failed ones."""
    source_rows = np.full(n, -1)
    source_rows[[i for i in range(n) if i not in failed]] = np.arange(table.num_rows)
    spread = table.take(pa.array(source_rows, mask=source_rows < 0))
    reasons = spread["error"].to_pylist()
    for row, reason in failed.items():
        reasons[row] = reason
    return spread.set_column(spread.column_names.index("error"), "error", pa.array(reasons, pa.string()))


def _pairs_column(subtasks: Mapping[str, np.ndarray], valid: np.ndarray) -> pa.Array:
    """The column of pairs (sub-task, score), null for samples without a score. In SQL it is a map; it is not stored as
    one, since `datasets` and others do not read Parquet with maps."""
    keys = sorted(subtasks)
    values = np.stack([subtasks[key] for key in keys], axis=1).astype(np.float32)[valid].ravel()
    ends = np.concatenate([[0], np.cumsum(valid * len(keys))]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(~valid, False)) if len(valid) else pa.array([0], pa.int32())
    pairs = [pa.array(keys * int(valid.sum()), pa.string()), pa.array(values)]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(pairs, ["key", "value"]))
