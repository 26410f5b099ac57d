"""dsir, repetition and length on the real pool against the naive way: one sample at a time in Python.

    python -m tests.bench.text_scores

The naive ways are the tests' oracles, and for DSIR the authors' own featuriser (package data-selection), each on a
sample of the documents and scaled. Limits: tokenising (length), sorting n-grams (repetition), hashing (dsir). And the
CPU time of a score against that of reading the columns it is made of, as a pool's Parquet file has them: a score at
reading speed would be 1x.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_selection.hashed_ngram_dsir import get_ngram_counts

from curate.kinds.score import Score, Target, run
from curate.kinds.text import Text
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from curate.store.encoding import parquet, read_table
from tests.bench.bm25 import texts
from tests.bench.timing import machine, spread, timed, told
from tests.conftest import SHARED
from tests.oracles import scores as oracle

SOME = 500
LIMITS = {"length": "tokenising", "repetition": "sorting n-grams", "dsir": "hashing n-grams"}


def main() -> None:
    if not SHARED.is_dir():
        sys.exit(f"the real data is not at {SHARED}; set CURATE_SHARED to its folder's parent")
    docs = [text for path in sorted((SHARED / "pool").iterdir()) for text in texts(path)]
    random.Random(0).shuffle(docs)
    docs, some = docs[:10_000], docs[:SOME]
    target, characters = Target.of(texts(SHARED / "targets/gsm8k_val.jsonl")), sum(map(len, docs))
    table = Text.of(docs).frame.to_arrow()
    machine("polars", "numpy", "data-selection")
    naive: dict[str, tuple[Any, Callable[[str], Any]]] = {
        "length": (Length(), lambda text: oracle.length(None, text)),
        "repetition": (Repetition(), oracle.repetition),
        "dsir": (Dsir(), lambda text: (get_ngram_counts(text), get_ngram_counts(text))),  # it counts twice, as we do
    }
    for name, (method, one) in naive.items():
        ratios = []
        for _ in range(4):
            slow = timed(lambda one=one: [one(text) for text in some]) * len(docs) / SOME
            fast = timed(lambda method=method: run(method, [Text(table)], target))
            ratios.append(slow / fast)
            rate = characters / fast / 1e6
        middle = sorted(ratios[1:])
        least = 0.8 if name == "length" else 2  # Python's own str.split is all of the naive length: both only read
        what, note = f"{name}: one at a time / curate", f"{rate:.0f} M characters a second"
        told(what, (middle[1], middle[0], middle[2]), f">= {least}x", middle[1] >= least, note, LIMITS[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.parquet"
        path.write_bytes(parquet(table, 8192))
        for name, (method, _) in naive.items():
            beside_reading(name, method, path, target)


def beside_reading(name: str, method: Score, path: Path, target: Target) -> None:
    """The CPU time of a score, its reading included, over that of reading its columns as often as it does."""

    def cpu(f: Callable[[], Any]) -> float:
        begun = time.process_time()
        f()
        return time.process_time() - begun

    def read() -> list[Text]:
        return [Text(read_table(path, Text.schema.names))]

    passes = len(method.passes(target))
    ratios = [cpu(lambda: run(method, read(), target)) / (passes * cpu(read)) for _ in range(6)][1:]
    found = spread(ratios)
    told(f"{name}: a score / reading its columns", found, "", True, f"CPU time; {passes} passes", LIMITS[name])


if __name__ == "__main__":
    main()
