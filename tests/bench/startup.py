"""What commands cost that have nothing to compute: CPU time of a process, user and system.

    python -m tests.bench.startup

On a workspace of 200 samples that are scored already; medians of 9, the command and its limit in turn. Limit: Python
itself and the libraries that the command cannot do without, imported and no more.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import curate
from tests.bench.timing import figure, machine

RUNS, MOST = 9, 0.35
ASKING = "click, orjson, msgspec, filelock, pyarrow, duckdb"
CASES = {  # words of a command -> the libraries that it needs
    ("--help",): "click",
    ("sql", "SELECT count(*) FROM samples"): ASKING,
    ("status",): ASKING,
    ("score", "length"): f"{ASKING}, pyarrow.parquet, polars, multiprocessing",
}


def cpu(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """CPU seconds of Python with these arguments, in a process whose output nobody sees."""
    command = [sys.executable, *arguments]
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    _, status, used = os.wait4(os.posix_spawn(sys.executable, command, environment, file_actions=silent), 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the median of each command beside its limit's."""
    machine("click", "numpy", "pyarrow", "duckdb", "polars")
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(Path(folder) / "ws", create=True)
        samples = [{"question": f"What is {i}?", "answer": f"the number {i}"} for i in range(200)]
        curate.ingest(ws, samples, source="made")
        curate.score(ws, "length")
        environment = {**os.environ, "CURATE_WORKSPACE": str(ws.path), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: compiled once, by the first of each
        for words, libraries in CASES.items():
            command, least = ["-m", "curate.cli", *words], ["-c", f"import {libraries}"]
            pairs = [(cpu(command, environment), cpu(least, environment)) for _ in range(RUNS + 1)][1:]
            found, limit = (statistics.median(times) for times in zip(*pairs, strict=True))
            bound, good = ("", None) if words[0] == "score" else (f"<= {MOST} s", found <= MOST)
            near = ("importing its libraries", limit / found)
            figure(f"curate {words[0]}, CPU", found, "s", bound, good, "", *near)
            figure(f"its libraries alone: {words[0]}, CPU", limit, "s")


if __name__ == "__main__":
    main()
