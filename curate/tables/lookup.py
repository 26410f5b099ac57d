"""Samples of the pool by their rows: what SQL says of each, and what they hold, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.store.commits import read_table
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.state import TableState, score_state

TOKENS = "n_chars / 4.0"  # of a sample: a usual rule of thumb for English; --token-count takes a better one


def scores_of(ws: Workspace, *expressions: str | None) -> list[TableState]:
    """The scores that SQL expressions over `samples` use."""
    return [score_state(ws, name) for name in sql.scores_named(ws, *expressions)]


def column_of(ws: Workspace, expression: str, rows: np.ndarray) -> np.ndarray:
    """What an expression over `samples` says of some rows of the pool, float64 [n]; not a number where it is null."""
    # The line's end closes a comment.
    table = sql.fetch(ws, f'SELECT ({expression}\n)::DOUBLE AS "value" FROM samples ORDER BY row')
    return table["value"].to_numpy()[rows]


def texts_of(ws: Workspace, expression: str, rows: np.ndarray) -> list[str | None]:
    """What an expression over `samples` says of some rows of the pool, as texts."""
    table = sql.fetch(ws, f'SELECT ({expression}\n)::VARCHAR AS "value" FROM samples ORDER BY row')
    return table["value"].take(pa.array(rows)).to_pylist()


def samples_at(
    ws: Workspace, rows: np.ndarray, ids: pa.ChunkedArray, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """The samples at some rows of the pool, in the pool's order, by shard: their positions in `rows`, and a table.

    Raises CurateError where a row is not the sample of that id, or is not there.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    if len(rows) and (ordered[0] < 0 or ordered[-1] >= ws.n_rows()):
        raise CurateError(
            f"row {int(ordered[-1] if ordered[0] >= 0 else ordered[0])} is not in the pool, which has {ws.n_rows()}; "
            "the pool was remade, so select again."
        )
    for shard in ws.shards():
        first, last = np.searchsorted(ordered, [shard.start, shard.start + shard.rows])
        if first == last:
            continue
        places = pa.array(ordered[first:last] - shard.start)
        table = read_table(shard.path, list(dict.fromkeys(["id", *columns]))).take(places)
        wanted, found = ids.take(pa.array(order[first:last])).to_pylist(), table["id"].to_pylist()
        for row, mine, theirs in zip(ordered[first:last], wanted, found, strict=True) if wanted != found else ():
            if mine != theirs:
                raise CurateError(
                    f"the sample {mine} is not at row {row} of the pool, where {theirs} stands; the pool was remade, "
                    "so select again."
                )
        yield order[first:last], table
