"""`curate score near_dup` over ten million samples: time, peak memory, growth from a million.

    python -m tests.bench.scale_near_dup [ROWS …]      default: 1000000 10000000; needs about 1 KiB of disk a row

The pool is written as a workspace's own parts: texts of 30 to 60 words of a Zipf-like vocabulary, of which one in
twenty repeats one of the thousand before it behind two more words. Each size runs in a process of its own with two
workers. Limit: tokenising all texts twice and hashing their shingles; memory is that of the bands, ids, and of words of
samples that are in a candidate pair.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import curate
from curate.methods.executors.local import Local
from curate.store.schema import POOL
from tests.bench.dedup import held
from tests.bench.scale_select import _ids
from tests.bench.timing import figure, machine, told

_PART = 1 << 16
_REPEATS = 20  # one in so many
_MOST = 4  # GiB


def made(folder: Path, rows: int) -> None:
    """A workspace of so many samples."""
    ws = curate.open_workspace(folder / "ws")
    chance = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = pa.array(["".join(chance.choice(letters, size=chance.integers(2, 10))) for _ in range(50_000)])
    for start in range(0, rows, _PART):
        n = min(_PART, rows - start)
        texts = _texts(words, n, chance)
        chars = pc.utf8_length(texts).cast(pa.int32())
        given = {"id": _ids(start, n), "text": texts, "n_chars": chars, "copies": pa.array(np.ones(n, np.int32))}
        given |= {name: pa.array([value]).take(pa.array(np.zeros(n, np.int32)))
                  for name, value in (("source", "made"), ("meta", "{}"))}  # fmt: skip
        table = pa.table({f.name: given.get(f.name, pa.nulls(n, f.type)) for f in POOL}, schema=POOL)
        n_chars = int(chars.to_numpy().sum())
        ws.pool.commit(f"part-{start // _PART:05d}", table, 1 << 14, listed=False, n_chars=n_chars, files={}, beside={})
    ws.pool.certify()


def _texts(words: pa.Array, n: int, chance: np.random.Generator) -> pa.Array:
    lengths = chance.integers(30, 61, n)
    numbers = (len(words) * chance.random(lengths.sum()) ** 3).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), words.take(numbers))
    texts = pc.binary_join(lists, " ")
    rows = np.arange(n)
    again = np.flatnonzero(rows % _REPEATS == _REPEATS - 1)
    sources = rows.copy()
    sources[again] = np.maximum(again - 1 - chance.integers(0, 1000, len(again)), 0)
    opening = pa.array(np.where(sources < rows, "please tell ", ""))
    return pc.binary_join_element_wise(opening, texts.take(pa.array(sources)), "")


def one(folder: Path) -> None:
    begun, ws = time.perf_counter(), curate.open_workspace(folder / "ws")
    result = curate.score(ws, "near_dup", executor=Local(workers=2))[0]
    print(json.dumps({"seconds": time.perf_counter() - begun, "note": result.note}))


def measured(rows: int) -> tuple[float, float, float, str]:
    """Seconds by the clock and of CPU, workers' included; peak memory of all processes in GiB; what was found."""
    folder = Path(tempfile.mkdtemp(prefix="curate-near-dup-"))
    try:
        made(folder, rows)
        cpu, peak = sum(os.times()[2:4]), 0.0
        command = [sys.executable, "-m", "tests.bench.scale_near_dup", "--one", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                peak = max(peak, held(process.pid) / 2**30)
                time.sleep(0.5)
            if process.returncode or process.stdout is None:
                sys.exit("near_dup failed")
            said = json.loads(process.stdout.read())
        return said["seconds"], sum(os.times()[2:4]) - cpu, peak, said["note"]
    finally:
        shutil.rmtree(folder)


def main(sizes: Sequence[int]) -> None:
    machine("polars", "numpy", "rapidfuzz")
    before: tuple[int, float] | None = None
    for rows in sizes:
        clock, cpu, peak, note = measured(rows)
        figure(f"near_dup of {rows:,} samples", cpu, "s", note=f"CPU; {clock:.0f} s by the clock; {note}")
        figure(f"near_dup of {rows:,} samples, peak memory", peak, "GiB", f"<= {_MOST} GiB", peak <= _MOST)
        if before:
            growth, most = cpu / before[1], 1.1 * rows / before[0]
            told(f"near_dup: growth from {before[0]:,} to {rows:,}", [growth] * 3, f"<= {most:.0f}x", growth <= most)
        before = rows, cpu


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]))
    else:
        main([int(word) for word in sys.argv[1:]] or [1_000_000, 10_000_000])
