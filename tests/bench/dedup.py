"""near_dup and decontaminate: beside the usual way on real texts, and at length.

    python -m tests.bench.dedup              10,000 texts of the real pool, side by side
    python -m tests.bench.dedup 1000000      so many made-up rows, each step in a process of its own, with its peak

tests.bench.scale_near_dup has ten million, tests.bench.dedup_peers other peers.

The usual ways: datasketch's MinHash of hashed shingles, one at a time, in its MinHashLSH (which finds candidates only
and compares nothing); a set of tuples of words. Limits: hashing shingles, tokenising.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from datasketch import MinHash, MinHashLSH

import curate
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.methods.executors.local import Local
from curate.methods.scores.decontaminate import Decontaminate
from curate.methods.scores.near_dup import NearDup
from tests.bench.bm25 import texts
from tests.bench.timing import figure, machine, timed, told
from tests.conftest import SHARED
from tests.oracles import decontaminate as tuple_wise
from tests.oracles import near_dup as slow

_STEPS = ("ingest", "near_dup", "decontaminate")


def usual(docs: list[str]) -> int:
    """Candidates by MinHashLSH."""
    index = MinHashLSH(threshold=0.6, num_perm=128)
    found = 0
    for i, doc in enumerate(docs):
        words = slow.words(doc)
        signature = MinHash(128)
        signature.update_batch(" ".join(words[k : k + 2]).encode() for k in range(max(len(words) - 1, 1)))
        found += len(index.query(signature))
        index.insert(i, signature)
    return found


def tuples(docs: list[str], questions: list[str]) -> int:
    """How many documents share a tuple of 13 words with a question."""
    wanted = set()
    for words in map(tuple_wise.words, questions):
        wanted |= set(zip(*(words[k:] for k in range(13)), strict=False))
    mine = (tuple_wise.words(doc) for doc in docs)
    return sum(any(gram in wanted for gram in zip(*(words[k:] for k in range(13)), strict=False)) for words in mine)


def beside() -> None:
    if not SHARED.is_dir():
        sys.exit(f"the real data is not at {SHARED}; set CURATE_SHARED to its folder's parent")
    docs = [text for path in sorted((SHARED / "pool").iterdir()) for text in texts(path)]
    random.Random(0).shuffle(docs)
    docs, questions = docs[:10_000], texts(SHARED / "eval/gsm8k_test.jsonl")
    table, target = Text.of(docs).frame.to_arrow(), Target.of(questions)
    machine("polars", "numpy", "datasketch", "rapidfuzz")
    ratios = [timed(lambda: usual(docs)) / timed(lambda: run(NearDup(), [Text(table)])) for _ in range(4)][1:]
    middle = sorted(ratios)[1]
    told("near_dup: MinHashLSH one at a time / curate", (middle, min(ratios), max(ratios)), ">= 1x", middle >= 1)
    ratios = [timed(lambda: tuples(docs, questions)) / timed(lambda: run(Decontaminate(), [Text(table)], target))
              for _ in range(4)][1:]  # fmt: skip
    middle = sorted(ratios)[1]
    told("decontaminate: a set of tuples / curate", (middle, min(ratios), max(ratios)), ">= 1x", middle >= 1)


# --- at length -------------------------------------------------------------------------------------------


def generate(folder: Path, rows: int) -> None:
    """Rows of 30 to 90 words of a Zipf-like vocabulary; one in twenty repeats an earlier one with three words added."""
    chance = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(chance.choice(letters, size=chance.integers(2, 10))) for _ in range(50_000)])
    (folder / "input").mkdir()
    kept: list[tuple[str, str]] = []
    with open(folder / "input/pool.jsonl", "w") as out:
        for start in range(0, rows, 10_000):
            drawn = words[(50_000 * chance.random((10_000, 90)) ** 3).astype(int)]
            lengths = chance.integers(30, 91, 10_000)
            for i in range(min(10_000, rows - start)):
                if i % 20 == 19 and kept:
                    text, answer = kept[int(chance.integers(len(kept)))]
                    text = f"please tell me {text}"
                else:
                    text, answer = " ".join(drawn[i, : lengths[i]]), " ".join(drawn[i, -9:])
                    kept = [*kept[-999:], (text, answer)] if i % 20 == 0 else kept
                out.write(json.dumps({"question": text, "answer": answer}) + "\n")


def step(name: str, folder: Path) -> None:
    ws = curate.open_workspace(folder / "ws")
    match name:
        case "ingest":
            curate.ingest(ws, [str(folder / "input/pool.jsonl")])
            with open(folder / "input/pool.jsonl") as rows:
                some = [line for i, line in enumerate(rows) if i % 1000 == 0]
            (folder / "test.jsonl").write_text("".join(some))
            curate.target(ws, "asked", str(folder / "test.jsonl"), split="test")
        case "near_dup":
            curate.score(ws, NearDup(), executor=Local(workers=2))
        case "decontaminate":
            curate.score(ws, Decontaminate(), target="asked", executor=Local(workers=2))


def found(folder: Path) -> str:
    ws = curate.open_workspace(folder / "ws")
    counts = "count(*) FILTER (near_dup < 1) AS twice, count(*) FILTER (decontaminate_asked < 0) AS known"
    (row,) = curate.sql(ws, f"SELECT {counts} FROM samples")
    return f"{row['twice']:,} are near-duplicates of what is kept; {row['known']:,} share 13 words with the test set"


def held(pid: int) -> int:
    """Bytes that a process and those it has started hold, each page of theirs once."""
    total = 0
    with suppress(psutil.Error):  # one that has just ended
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    return total


def at_length(rows: int) -> None:
    machine("polars", "numpy", "datasketch", "rapidfuzz")
    folder = Path(tempfile.mkdtemp(prefix="curate-dedup-"))
    try:
        generate(folder, rows)
        for name in _STEPS:
            began = time.perf_counter()
            command = [sys.executable, "-m", "tests.bench.dedup", "--step", name, str(folder)]
            process, peak = subprocess.Popen(command), 0.0
            while process.poll() is None:
                peak = max(peak, held(process.pid) / 2**30)
                time.sleep(0.2)
            if process.returncode:
                sys.exit(f"{name} failed")
            minutes = (time.perf_counter() - began) / 60
            figure(f"{name} of many rows", minutes, "minutes", note=f"{rows:,} rows")
            figure(f"{name} of many rows, peak memory", peak, "GiB")
        print(found(folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2], Path(sys.argv[3]))
    elif len(sys.argv) > 1:
        at_length(int(sys.argv[1]))
    else:
        beside()
