"""Ingesting a file of two gigabytes: its peak memory, and its rate against reading the same lines with json.

    python -m tests.bench.ingest [MEGABYTES]

Limit: Python's work per row (parsing, hashing, collecting). Memory is one shard and 8 bytes a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.timing import figure, machine, timed, told

RUN = """
import resource, sys, curate
done = curate.ingest(curate.open_workspace(sys.argv[1]), [sys.argv[2]])
print(done.added, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def naive(path: Path) -> None:
    """Reading alone: every line through json.loads."""
    with open(path, "rb") as f:
        for line in f:
            json.loads(line)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    machine("pyarrow", "orjson")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.jsonl"
        words = "all work and no play makes a long and varied answer number".split()
        with open(path, "w") as f:
            number = 0
            while f.tell() < megabytes << 20:
                text = " ".join(words[(number * k) % 11] for k in range(150))
                f.write(json.dumps({"question": f"what is {number}?", "answer": f"{number} {text}"}) + "\n")
                number += 1
        reading = timed(lambda: naive(path))
        out: list[str] = []
        command = [sys.executable, "-c", RUN, f"{folder}/ws", str(path)]
        whole = timed(lambda: out.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        added, peak = map(int, out[0].split())
        assert added == number
        note = f"{path.stat().st_size / 2**30:.2f} GiB, {number:,} rows"
        figure("peak memory", peak, "MiB", "<= 1024 MiB", peak <= 1024, note)
        told("ingest / json.loads of every line", [whole / reading] * 3, "", True, "once")


if __name__ == "__main__":
    main()
