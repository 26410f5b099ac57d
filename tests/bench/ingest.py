"""Ingesting a file of two gigabytes: its peak memory, its rate against reading the same lines with json, and two
processes that convert rows against one (of an eighth of the file).

    python -m tests.bench.ingest [MEGABYTES]

Limit: Python's work per row (parsing, hashing, collecting). Memory is one shard and 8 bytes a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.timing import figure, machine, spread, timed, told

RUN = """
import os, resource, sys, time, curate
ws, workers = curate.open_workspace(sys.argv[1]), int(sys.argv[3])
begun, clock = time.process_time(), time.perf_counter()
done = curate.ingest(ws, [sys.argv[2]], workers=workers)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.added, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, children.ru_maxrss // 1024)
print(time.perf_counter() - clock, time.process_time() - begun, children.ru_utime + children.ru_stime)
"""


def naive(path: Path) -> None:
    """Reading alone: every line through json.loads."""
    with open(path, "rb") as f:
        for line in f:
            json.loads(line)


def write(path: Path, megabytes: int) -> int:
    """Write generated rows; returns how many."""
    words = "all work and no play makes a long and varied answer number".split()
    number = 0
    with path.open("w") as f:
        while f.tell() < megabytes << 20:
            text = " ".join(words[(number * k) % 11] for k in range(150))
            f.write(json.dumps({"question": f"what is {number}?", "answer": f"{number} {text}"}) + "\n")
            number += 1
    return number


def ingested(path: Path, workers: int) -> list[float]:
    """Rows; MiB of this process and of its greatest worker; seconds by the clock, and of CPU in both."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RUN, f"{folder}/ws", str(path), str(workers)]
        return [*map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())]


def two_against_one(path: Path, pairs: int = 3) -> None:
    runs = [(ingested(path, 1), ingested(path, 2)) for _ in range(pairs)]
    one, two = zip(*runs, strict=True)
    told("one process / two that convert rows, by the clock", spread([a[3] / b[3] for a, b in runs]), "", True)
    busiest = [max(b[4], (b[4] + b[5]) / 2) for b in two]
    ratios = [a[4] / b for (a, _), b in zip(runs, busiest, strict=True)]
    note = f"{spread([a[4] for a in one])[0]:.1f} s; {spread([b[4] for b in two])[0]:.1f} s and "
    note += f"{spread([b[5] for b in two])[0]:.1f} s in the two"
    told("one process / two, by CPU time of the busier core", spread(ratios), "", True, note)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    machine("pyarrow", "orjson")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.jsonl"
        write(path, max(1, megabytes // 8))
        two_against_one(path)
        path = Path(folder) / "big.jsonl"
        number = write(path, megabytes)
        reading = timed(lambda: naive(path))
        added, peak, _, seconds, *_ = ingested(path, 1)
        assert added == number
        note = f"{path.stat().st_size / 2**30:.2f} GiB, {number:,} rows"
        figure("peak memory", peak, "MiB", "<= 1024 MiB", peak <= 1024, note)
        told("ingest / json.loads of every line", [seconds / reading] * 3, "", True, "once")


if __name__ == "__main__":
    main()
