"""A top-5 % query on `samples` over 20 scores of a million rows, one of them named.

    python -m tests.bench.query [ROWS]

Limit: reading the named score's column and sorting it. The naive way, 20 joins on ids, stands beside it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

import curate
from curate.methods.scores.length import Length
from curate.store.schema import POOL
from curate.store.workspace import Workspace
from curate.tables import sql
from tests.bench.timing import figure, machine, ratio, timed, told

SCORES, SHARDS = 20, 8


def build(folder: Path, rows: int) -> Workspace:
    """A workspace of made-up rows and scores, written by the same code that writes real ones."""
    ws, rng = curate.open_workspace(folder), np.random.default_rng(0)
    for s in range(SHARDS):
        n = rows // SHARDS
        ids = [f"{x:016x}" for x in rng.integers(0, 2**62, n)]
        columns = {
            "id": ids,
            "source": ["a", "b"] * (n // 2),
            "text": ["word " * int(k) for k in rng.integers(1, 40, n)],
        }
        columns |= {"copies": [1] * n, "n_chars": [21] * n, "meta": ["{}"] * n}
        columns |= {name: [None] * n for name in POOL.names if name not in columns}
        ws.pool.commit(f"part-{s:05d}", pa.table(columns, schema=POOL), n_chars=21 * n, files={}, beside={})
    for k in range(SCORES):
        curate.score(ws, Length(), names={"length": f"s{k}"})
    return ws


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    machine("duckdb", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        ws = build(Path(folder) / "ws", rows)
        top = f"SELECT id, s7 FROM samples ORDER BY s7 DESC LIMIT {rows // 20}"
        position = lambda: sql.fetch(ws, top)  # noqa: E731
        joins = "".join(f" LEFT JOIN (SELECT row_number() OVER () - 1 AS row, score AS k{k} FROM s{k}) USING (row)"
                        for k in range(SCORES))  # fmt: skip
        naive = lambda: sql.fetch(ws, f"SELECT id, k7 FROM pool {joins} ORDER BY k7 DESC LIMIT {rows // 20}")  # noqa: E731
        assert position().num_rows == rows // 20
        seconds = min(timed(position) for _ in range(5))
        good = seconds <= 1 if rows == 1_000_000 else None
        figure(f"{SCORES} scores, one named, top 5 %", seconds, "s", "<= 1 s", good, f"{rows:,} rows")
        found = ratio(naive, position, pairs=3)
        told("joining all 20 scores / aligning the named one", found, "> 1x", found[0] > 1)


if __name__ == "__main__":
    main()
