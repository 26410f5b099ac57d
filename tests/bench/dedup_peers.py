"""near_dup beside rensa, and semdedup beside semhash: CPU time, and what each finds; in pairs within one run.

    python -m tests.bench.dedup_peers [ROWS]      default: 100000 texts for near_dup, a fifth of them for semdedup

The texts are those of the real pool and, up to ROWS, edits of them: a few words in front, behind, and put in. rensa's
way is that of its README (RMinHashDeduplicator of words, with LSH), at the threshold that finds the share of edits that
near_dup finds, or comes nearest. semhash and semdedup get the same vectors (hashed words, projected on 256 axes) and
the same bound on the cosine. A peer that is not installed is left out, which is said:

    pip install --no-deps --target FOLDER rensa semhash vicinity usearch numkong model2vec frozendict pyversity
    PYTHONPATH=FOLDER python -m tests.bench.dedup_peers

Limits: tokenising, hashing shingles; products of vectors.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from curate.kinds.score import run
from curate.kinds.selector import Budget, Candidates
from curate.kinds.text import Text
from curate.methods.scores.near_dup import NearDup
from curate.methods.selectors.semdedup import Semdedup
from tests.bench.bm25 import texts
from tests.bench.timing import figure, machine, spread, told
from tests.conftest import SHARED

PAIRS = 3
EPS = 0.1


def cpu(f: Callable[[], Any]) -> float:
    """Seconds of CPU of all threads."""
    begun = time.process_time()
    f()
    return time.process_time() - begun


def ratios(peer: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float, float]:
    return spread([cpu(peer) / cpu(ours) for _ in range(PAIRS)])


def edited(doc: str, chance: random.Random) -> str:
    """A text with a few words more: at most one for every fifty, and an opening or an ending."""
    words = doc.split(" ")
    for _ in range(chance.randint(0, max(1, len(words) // 50))):
        words.insert(chance.randint(0, len(words)), chance.choice(["really", "now", "also", "then"]))
    opening, ending = chance.choice([("Please:", ""), ("", "Thank you."), ("So,", "Thanks!")])
    return " ".join(filter(None, [opening, *words, ending]))


def corpus(rows: int) -> tuple[list[str], np.ndarray]:
    """The texts, in any order but edits behind what they are edits of; and of which row each is an edit (itself)."""
    chance = random.Random(0)
    real = list(dict.fromkeys(text for path in sorted((SHARED / "pool").iterdir()) for text in texts(path)))
    chance.shuffle(real)
    real = [doc for doc in real if len(doc.split()) >= 10][: rows * 2 // 5]
    of = [*range(len(real)), *(chance.randrange(len(real)) for _ in range(rows - len(real)))]
    return [*real, *(edited(real[i], chance) for i in of[len(real) :])], np.array(of)


def rensa_keeps(docs: list[str], threshold: float) -> np.ndarray:
    """Which texts rensa keeps, bool [N]."""
    from rensa import RMinHashDeduplicator  # type: ignore[import-not-found]

    dedup = RMinHashDeduplicator(threshold=threshold, num_perm=128, use_lsh=True)
    return np.array(dedup.add_pairs((str(i), doc.split()) for i, doc in enumerate(docs)))


def beside_rensa(docs: list[str], of: np.ndarray) -> None:
    if find_spec("rensa") is None:
        print("rensa is not installed: near_dup is not compared with it (see the head of this file).")
        return
    table = Text.of(docs).frame.to_arrow()
    (columns,) = run(NearDup(), [Text(table)])
    planted = np.flatnonzero(of != np.arange(len(of)))
    ours = float((columns["cluster"][planted] == columns["cluster"][of[planted]]).mean())
    by_threshold = {t: rensa_keeps(docs, t) for t in (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)}
    recalls = {t: float((~kept[planted]).mean()) for t, kept in by_threshold.items()}
    enough = [t for t, recall in recalls.items() if recall >= ours]
    threshold = enough[0] if enough else max(recalls, key=lambda t: recalls[t])
    left = {"curate": int((columns["keep"]).sum()), "rensa": int(by_threshold[threshold].sum())}
    figure("near_dup: planted edits found, curate", ours, "%", note=f"keeps {left['curate']:,} of {len(docs):,}")
    note = f"at {threshold}; keeps {left['rensa']:,}"
    figure("near_dup: planted edits found, rensa", recalls[threshold], "%", note=note)
    found = ratios(lambda: rensa_keeps(docs, threshold), lambda: run(NearDup(), [Text(table)]))
    told("near_dup: rensa / curate", found, ">= 2x", found[0] >= 2, "CPU time", "tokenising, hashing shingles")


# --- vectors -----------------------------------------------------------------------------------------------


def vectors(docs: list[str]) -> np.ndarray:
    """Hashed words projected on 256 axes, unit length, float32 [N, 256]."""
    axes = np.random.default_rng(1).standard_normal((1 << 14, 256), dtype=np.float32)
    found = np.zeros((len(docs), 256), np.float32)
    for i, doc in enumerate(docs):
        found[i] = axes[[zlib.crc32(word.encode()) % (1 << 14) for word in doc.lower().split()]].sum(0)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def semhash_keeps(unit: np.ndarray) -> np.ndarray:
    """Which vectors semhash keeps, bool [N]."""
    from semhash import SemHash  # type: ignore[import-not-found]

    names = [str(i) for i in range(len(unit))]
    hashed = SemHash.from_embeddings(unit, names, model=None)
    kept = np.zeros(len(unit), bool)
    kept[[int(name) for name in hashed.self_deduplicate(threshold=1 - EPS).selected]] = True
    return kept


def semdedup_keeps(unit: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(unit), bool)
    kept[Semdedup(eps=EPS).select(Candidates.of(vectors=unit), Budget("rows", len(unit)), seed=0)] = True
    return kept


def still_alike(unit: np.ndarray, kept: np.ndarray) -> int:
    """Kept vectors whose cosine with an earlier kept one is above the bound; each pair is looked at."""
    rows, found = unit[kept], 0
    for start in range(0, len(rows), 1024):
        products = rows[start : start + 1024] @ rows.T
        products[np.arange(len(rows)) >= np.arange(start, start + len(products))[:, None]] = -1
        found += int((products.max(1) > 1 - EPS).sum())
    return found


def beside_semhash(docs: list[str]) -> None:
    if find_spec("semhash") is None:
        print("semhash is not installed: semdedup is not compared with it (see the head of this file).")
        return
    unit = vectors(docs)
    theirs, ours = semhash_keeps(unit), semdedup_keeps(unit)
    for name, kept in (("curate", ours), ("semhash", theirs)):
        left = still_alike(unit, kept) / max(1, kept.sum())
        figure(f"semdedup: kept that are alike, {name}", left, "%", note=f"keeps {kept.sum():,} of {len(docs):,}")
    note = "of a group of like ones the two keep others"
    figure("semdedup: kept or dropped alike", float((theirs == ours).mean()), "%", note=note)
    found = ratios(lambda: semhash_keeps(unit), lambda: semdedup_keeps(unit))
    told("semdedup: semhash / curate", found, ">= 1x", found[0] >= 1, "CPU time", "products of vectors")


def main() -> None:
    if not SHARED.is_dir():
        sys.exit(f"the real data is not at {SHARED}; set CURATE_SHARED to its folder's parent")
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    machine("polars", "numpy", "rapidfuzz", "faiss-cpu")
    docs, of = corpus(rows)
    beside_rensa(docs, of)
    chosen = np.random.default_rng(0).permutation(len(docs))[: rows // 5]
    beside_semhash([docs[i] for i in chosen])


if __name__ == "__main__":
    main()
