"""`curate attach` of a file of ten million rows in another order: time, peak memory, and beside a join by DuckDB.

    python -m tests.bench.scale_attach [ROWS …] [--in FOLDER]      default: 1000000 10000000

The file is Parquet with the pool's ids, shuffled, and a value. Each runs in a process of its own, one after the other,
so that its peak is its own; DuckDB joins the ids of the pool's files with the file's and writes id and value, in the
pool's order, as one Parquet file. Limit: reading ids as text, and writing them again beside every value.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import curate
from tests.bench.scale_select import _ids, made
from tests.bench.timing import figure, machine


def written(folder: Path, rows: int) -> Path:
    """Every id of the pool with a value, shuffled."""
    path = folder / "theirs.parquet"
    if not path.exists():
        rng = np.random.default_rng(0)
        table = pa.table({"id": _ids(0, rows), "score": rng.standard_normal(rows)})
        pq.write_table(table.take(pa.array(rng.permutation(rows))), path)
    return path


def by_duckdb(ws: Path, file: Path) -> None:
    """The pool's ids with the file's values, in the pool's order."""
    pool = f"read_parquet('{ws}/pool/*.parquet', file_row_number = true, filename = true)"
    duckdb.sql("SET threads = 2")
    duckdb.sql(
        f"COPY (SELECT p.id, f.score::FLOAT score FROM {pool} p LEFT JOIN '{file}' f USING (id) "
        f"ORDER BY p.filename, p.file_row_number) TO '{ws.parent}/joined.parquet'"
    )


def attached(ws: Path, file: Path) -> None:
    """The same by curate, anew."""
    curate.attach(ws, "theirs", file, fresh=True)


WAYS = {"curate": attached, "duckdb": by_duckdb}


def measured(way: str, folder: Path, file: Path) -> tuple[float, float, float]:
    """Seconds by the clock and of CPU, and peak GiB, in a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.scale_attach", "--one", way, str(folder / "ws"), str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, json.loads(done.stdout)["peak"]


def one(way: str, ws: str, file: str) -> None:
    """Run one way here, and print the peak of this process."""
    WAYS[way](Path(ws), Path(file))
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)}))


def main(rows: list[int], folder: Path) -> None:
    """Each way for each number of rows."""
    machine("pyarrow", "polars", "duckdb")
    for n in rows:
        place = folder / str(n)
        if not (place / "ws").exists():
            made(place, n)
        file = written(place, n)
        found = {way: measured(way, place, file) for way in WAYS}
        seconds, _, peak = found["curate"]
        near = n != max(rows)  # the bounds are of ten million rows
        figure(f"{n:,} rows, seconds", seconds, "s", "<= 30", near or seconds <= 30)
        figure(f"{n:,} rows, peak", peak, "GiB", "<= 2", near or peak <= 2, f"duckdb {found['duckdb'][2]:.2f} GiB")
        ratio = found["duckdb"][1] / found["curate"][1]
        limit = "reading ids as text, and writing them"
        figure(f"{n:,} rows, duckdb / curate, CPU", ratio, "x", limit=limit)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        one(*words[1:])
    else:
        at = words.index("--in") if "--in" in words else None
        counts = [int(word) for word in (words if at is None else words[:at] + words[at + 2 :])] or [
            1_000_000,
            10_000_000,
        ]
        with tempfile.TemporaryDirectory() as temporary:
            main(counts, Path(words[at + 1]) if at is not None else Path(temporary))
