"""What it takes to know a pool of many parts, by its list and by the parts' own records.

    python -m tests.bench.opening [PARTS]      default: 3000

Opens the workspace and lists the shards, in turn with the list (one file, and the names in a folder) and without (as in
a workspace of format 1: every record is read). CPU time; works against the file system's calls and JSON.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

import curate
from curate.store.commits import LIST
from curate.store.schema import POOL
from curate.store.workspace import Workspace
from tests.bench.timing import figure, machine, spread, told

RUNS = 7


def made(folder: Path, parts: int) -> Workspace:
    """A workspace with so many parts of one sample."""
    ws = curate.open_workspace(folder / "ws")
    files = {f"{'0' * 64}:{'0' * 16}": {"rows": 1, "done": True}}
    for i in range(parts):
        row = {"id": f"{i:016x}", "source": "s", "text": "t", "copies": 1, "n_chars": 1, "meta": "{}"}
        table = pa.Table.from_pylist([row], schema=POOL)
        ws.pool.commit(f"part-{i:05d}", table, listed=False, n_chars=1, files=files, beside={})
    ws.pool.certify()
    return ws


def opened(ws: Workspace) -> float:
    """CPU seconds to open the workspace and to know its shards."""
    start = time.process_time()
    curate.open_workspace(ws.path).shards()  # type: ignore[arg-type]
    return time.process_time() - start


def main() -> None:
    """Print the medians and their ratio."""
    parts = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    machine("pyarrow", "orjson")
    with tempfile.TemporaryDirectory() as folder:
        ws = made(Path(folder), parts)
        stored, listed, unlisted = Path(folder) / "ws/pool" / LIST, [], []
        whole = stored.read_bytes()
        opened(ws)
        for _ in range(RUNS):
            listed.append(opened(ws))
            stored.unlink()
            unlisted.append(opened(ws))
            stored.write_bytes(whole)
    figure("opening by the list, CPU", spread(listed), "s", note=f"{parts:,} parts")
    ratios = [a / b for a, b in zip(unlisted, listed, strict=True)]
    told("opening without the list / by it", spread(ratios), "", True)


if __name__ == "__main__":
    main()
