"""Single samples: where one of an id stands in the pool, its stored vector, and its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.store.commits import Parts, read_table
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.state import TableState
from curate.tables.vector_table import vectors_of


def row_of(ws: Workspace, id: str) -> int | None:
    """The position in the pool of the sample of an id; null where there is none."""
    quoted = id.replace("'", "''")
    rows = list(sql.rows(ws, f"SELECT row FROM pool WHERE id = '{quoted}'"))
    return int(rows[0]["row"]) if rows else None


def no_sample(ws: Workspace, id: str) -> CurateError:
    return CurateError(f"{ws.path} has no sample '{id}'; ids are 16 hex digits, as `curate sql` shows them.")


def vector_at(ws: Workspace, state: TableState, row: int) -> np.ndarray:
    """The vector of a sample, float32 [1, D]. Raises CurateError where it has none."""
    parts = Parts(ws.table_folder("vectors", state.name))
    for shard in state.done:
        if shard.start <= row < shard.start + shard.rows:
            place = row - shard.start
            found = vectors_of(read_table(parts.path(shard.name), None, (place, place + 1)))
            if found.there[0]:
                return found.unit.astype(np.float32)
            raise CurateError(f"that sample has no vector in '{state.name}': {found.error[0]}.")
    raise CurateError(f"{state} do not have that sample yet; run `{state.command()}`.")


def shown(ws: Workspace, places: Sequence[int]) -> Mapping[int, dict[str, Any]]:
    """Samples by their position in the pool: id, source, row, and their contents as one text."""
    if not places:
        return {}
    listed = ", ".join(map(str, places))
    rows = sql.rows(ws, f"SELECT row, id, source, messages, text FROM pool WHERE row IN ({listed})")
    return {r["row"]: {"id": r["id"], "source": r["source"], "row": r["row"], "text": words(r)} for r in rows}


def words(sample: Mapping[str, Any]) -> str:
    """A sample's contents as one text."""
    if sample["messages"] is None:
        return sample["text"] or ""
    return "\n".join(m["content"] or "" for m in sample["messages"])
