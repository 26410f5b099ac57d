"""BM25 of the real pool against 128 GSM8K targets, text in memory to scores: against rank-bm25 and bm25s.

    python -m tests.bench.bm25 [--quick]

Limit: tokenising. The last lines say which share of the time tokenising takes, and how time grows with the target
and with the pool. rank-bm25 takes minutes, so it runs once, unless --quick leaves it out.
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import polars as pl
from rank_bm25 import BM25Okapi

from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.kinds.words import WORDS
from curate.methods.scores.bm25 import Bm25
from tests.bench.timing import machine, ratio, timed, told
from tests.conftest import SHARED


def texts(path: Path) -> list[str]:
    """Every row of a real file as one text: the values of its fields, but for labels."""
    packed = path.read_bytes()
    data = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode()
    rows = (
        json.loads(data) if data.lstrip().startswith("[") else [json.loads(line) for line in data.split("\n") if line]
    )
    fields = ("instruction", "input", "prompt", "question", "completion", "response", "answer")
    return ["\n".join([r[f] for f in fields if r.get(f)] + [m["content"] for m in r.get("messages", [])]) for r in rows]


def ours(batch: Text, queries: list[str]) -> np.ndarray:
    (columns,) = run(Bm25(), [Text(batch.frame.to_arrow())], Target.of(queries))  # a new batch: nothing is kept
    return columns["score"]


def theirs_bm25s(docs: list[str], queries: list[str]) -> np.ndarray:
    tokens = bm25s.tokenize(docs, stopwords=None, show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    total = np.zeros(len(docs))
    for query in bm25s.tokenize(queries, stopwords=None, show_progress=False, return_ids=False):
        total += index.get_scores(query)
    return total / len(queries)


def theirs_rank_bm25(docs: list[str], queries: list[str]) -> np.ndarray:
    def lists(batch: list[str]) -> list[list[str]]:  # the words it is given are ours
        return pl.Series(batch).str.to_lowercase().str.extract_all(WORDS).to_list()

    index = BM25Okapi(lists(docs))
    return np.mean([index.get_scores(query) for query in lists(queries)], axis=0)


def main() -> None:
    if not SHARED.is_dir():
        sys.exit(f"the real data is not at {SHARED}; set CURATE_SHARED to its folder's parent")
    docs = [text for path in sorted((SHARED / "pool").iterdir()) for text in texts(path)]
    queries = texts(SHARED / "targets/gsm8k_val.jsonl")
    batch = Text.of(docs)
    machine("polars", "numpy", "bm25s", "rank-bm25")
    print(f"{len(docs):,} documents, {sum(map(len, docs)) / 1e6:.1f} M characters, {len(queries)} queries\n")

    fast = lambda: ours(batch, queries)  # noqa: E731
    share = ratio(lambda: batch_words(batch), fast, pairs=5)[0]
    limit: dict[str, Any] = {"limit": "tokenising", "near": share}
    found = ratio(lambda: theirs_bm25s(docs, queries), fast, pairs=7)
    told("bm25s / curate", found, ">= 2x", found[0] >= 2, **limit)
    if "--quick" not in sys.argv:
        slow = timed(lambda: theirs_rank_bm25(docs, queries))
        each = slow / statistics.median([timed(fast) for _ in range(5)])
        told("rank-bm25 / curate", (each, each, each), ">= 60x", each >= 60, "rank-bm25 once", **limit)

    more = texts(SHARED / "pool/gsm8k.jsonl")[:1280]
    found = ratio(lambda: ours(batch, more), lambda: ours(batch, more[:128]), pairs=9)
    told("10 times the targets", found, "<= 1.1x", found[0] <= 1.1)
    quarter = Text.of(random.Random(0).sample(docs, len(docs) // 4))
    found = ratio(fast, lambda: ours(quarter, queries), pairs=9)
    told("4 times the pool", found, "<= 4.4x", found[0] <= 4.4)

    print(f"\nTokenising and coding alone takes {share:.0%} of the time: that is the limit it works against.")
    (got,) = run(Bm25(variant="lucene"), [batch], Target.of(queries))
    agree = np.corrcoef(got["score"], theirs_bm25s(docs, queries))[0, 1]
    print(f"Both count alike: correlation with bm25s (lucene, its own words) {agree:.5f}.")


def batch_words(batch: Text) -> None:
    Text(batch.frame.to_arrow()).words()


if __name__ == "__main__":
    main()
