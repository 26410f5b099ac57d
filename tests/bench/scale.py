"""A pool of ten million samples on one small machine: every step's time, peak memory, and growth from a million.

    python -m tests.bench.scale [ROWS …]      default: 1000000 10000000; needs about 400 bytes of disk a row

Limits: ingest works against parsing JSON and hashing, bm25 against tokenising, length against reading, select against
sorting ids. Each step runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import curate
from curate.machine import peak_bytes
from curate.store.workspace import Workspace
from tests.bench.timing import figure, machine

STEPS = ("ingest", "bm25", "length", "again", "join", "select")
_FILES = 4


def generate(folder: Path, rows: int, sentences: int = 1) -> None:
    """Four files of question-answer rows, one per source, all different; a sentence has 30 to 100 characters."""
    folder.mkdir(parents=True)
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(50_000)]
    lines = [
        " ".join(words[int(50_000 * chance.random() ** 3)] for _ in range(chance.randint(6, 20))) for _ in range(9973)
    ]
    for f in range(_FILES):
        with open(folder / f"source{f}.jsonl", "w") as out:
            for i in range(f, rows, _FILES):
                answer = ". ".join(lines[((i + k) * 7 + i // 9973) % 9973] for k in range(sentences))
                out.write(f'{{"question": "{lines[i % 9973]}?", "answer": "{answer} {i}"}}\n')


def prepare(folder: Path) -> Workspace:
    """A workspace of the generated files, with a target of 128 of their questions."""
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, sorted(map(str, (folder / "input").glob("*.jsonl"))))
    first = (folder / "input/source0.jsonl").read_text()[:40_000].splitlines()[:128]
    (folder / "target.jsonl").write_text("\n".join(first) + "\n")
    curate.target(ws, "goal", str(folder / "target.jsonl"))
    return ws


def step(name: str, folder: str) -> None:
    from curate.methods.scores.bm25 import Bm25
    from curate.methods.scores.length import Length
    from curate.methods.selectors.top import Top
    from curate.verbs.select import SelectionSpec

    root = Path(folder)
    ws = curate.open_workspace(root / "ws")
    match name:
        case "ingest":
            prepare(root)
        case "bm25":
            curate.score(ws, Bm25(), target="goal")
        case "length" | "again":
            curate.score(ws, Length())
        case "join":
            curate.sql(ws, "SELECT source, avg(bm25_goal), avg(length), count(*) FROM samples GROUP BY source")
        case "select":
            by = "bm25_goal + 0.1 * ln(1 + length)"
            curate.select(ws, "best", Top(), SelectionSpec(by=by, frac=0.05, per="source"))


def measured(name: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak GiB of a step in a process of its own, its start included."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.scale", "--step", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr}")
    return time.perf_counter() - started, json.loads(done.stdout) / 2**20


def main(sizes: list[int]) -> None:
    machine("polars", "pyarrow", "duckdb")
    times: dict[int, dict[str, float]] = {}
    for rows in sizes:
        folder = Path(tempfile.mkdtemp(prefix="curate-scale-"))
        try:
            generate(folder / "input", rows)
            times[rows] = {}
            for name in STEPS:
                seconds, peak = measured(name, folder)
                times[rows][name] = seconds
                first = times[sizes[0]][name]
                growth = f"{seconds / first:.2f}x the time of {sizes[0]:,}" if rows != sizes[0] else ""
                figure(f"{rows:,} samples: {name}", seconds, "s", note=growth)
                figure(f"{rows:,} samples: {name}, peak memory", peak, "GiB")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2], sys.argv[3])
        print(peak_bytes() // 1024)
    else:
        main([int(a) for a in sys.argv[1:]] or [1_000_000, 10_000_000])
