"""Every score against its slow, obvious reference, and against the packages that define it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rank_bm25 import BM25Okapi, BM25Plus

from curate.errors import CurateError
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.kinds.words import WORDS
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from tests.oracles import scores as oracle

VARIANTS = ["okapi", "lucene", "robertson", "atire", "bm25l", "bm25plus"]


def toy(n: int, seed: int = 0) -> list[str]:
    """Texts over few words, so that all of them meet; some empty, some long."""
    dice = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(30)] + ["the"] * 20
    return [" ".join(dice.choices(vocabulary, k=dice.choice([1, 5, 20, 60]))) for _ in range(n)]


# --- bm25 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("aggregate", ["mean", "max", "subtask_max"])
def test_bm25_equals_its_formula(variant: str, aggregate: str) -> None:
    docs, queries, subtasks = toy(40), [*toy(6, seed=1), "w1 unseen words w1"], ["a", "b", "a", "c", "a", "c", "b"]
    method = Bm25(variant=variant, aggregate=aggregate, k1=1.2, b=0.6)  # type: ignore[arg-type]
    parts = run(method, [Text.of(docs[:13]), Text.of(docs[13:])], Target.of(queries, subtasks))
    got = np.concatenate([columns["score"] for columns in parts])
    want = oracle.bm25(docs, queries, variant, aggregate, subtasks, k1=1.2, b=0.6)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("variant", "peer"), [("okapi", BM25Okapi), ("bm25plus", BM25Plus)], ids=["okapi", "plus"])
def test_bm25_equals_rank_bm25_on_real_documents(variant: str, peer: type, real_docs: list[str], shared: Path) -> None:
    """2,000 documents, 40 queries, the same tokens: within 1e-5 relative."""
    queries = (shared / "targets/gsm8k_val.jsonl").read_text().splitlines()[:40]
    index = peer(tokenised(real_docs))
    want = np.mean([index.get_scores(query) for query in tokenised(queries)], axis=0)
    (got,) = run(Bm25(variant=variant), [Text.of(real_docs)], Target.of(queries))  # type: ignore[arg-type]
    np.testing.assert_allclose(got["score"], want, rtol=1e-5)
    assert len(real_docs) == 2000


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25l", "bm25plus"])
def test_bm25_equals_bm25s_on_real_documents(variant: str, real_docs: list[str], shared: Path) -> None:
    """The other package, which computes in float32."""
    import bm25s

    queries = (shared / "targets/gsm8k_val.jsonl").read_text().splitlines()[:10]
    index = bm25s.BM25(method={"bm25plus": "bm25+"}.get(variant, variant), k1=1.5, b=0.75, delta=0.5)
    index.index(tokenised(real_docs), show_progress=False)
    want = np.mean([index.get_scores(query) for query in tokenised(queries)], axis=0)
    delta = {"delta": 0.5} if variant in ("bm25l", "bm25plus") else {}
    (got,) = run(Bm25(variant=variant, **delta), [Text.of(real_docs)], Target.of(queries))  # type: ignore[arg-type]
    np.testing.assert_allclose(got["score"], want, rtol=2e-4)


def tokenised(texts: list[str]) -> list[list[str]]:
    return pl.Series(texts).str.to_lowercase().str.extract_all(WORDS).to_list()


def test_bm25_keeps_the_mean_of_every_subtask() -> None:
    docs, queries, subtasks = toy(10), toy(5, seed=2), ["a", "b", "a", "b", "b"]
    (columns,) = run(Bm25(keep_subtasks=True), [Text.of(docs)], Target.of(queries, subtasks))
    for name in "ab":
        asked = [q for q, s in zip(queries, subtasks, strict=True) if s == name]
        np.testing.assert_allclose(columns["subtasks"][name], oracle.bm25(docs, asked), rtol=1e-12)
    np.testing.assert_allclose(columns["score"], oracle.bm25(docs, queries), rtol=1e-12)  # weighted by their sizes


def test_bm25_settings_out_of_range_are_refused() -> None:
    bad = [{"b": 1.5}, {"k1": 0.0}, {"k1": float("nan")}, {"pattern": "("}, {"aggregate": "max", "keep_subtasks": True}]
    for settings in [*bad, {"delta": 1.0}, {"variant": "bm25l", "delta": -1.0}]:
        with pytest.raises(CurateError, match="bm25"):
            Bm25(**settings)


def test_bm25_splits_words_as_told_in_the_pool_and_in_the_target() -> None:
    docs, queries = ["Red red-ish apple", "red apple", "Pear"], ["Red apple", "re"]
    (got,) = run(Bm25(lowercase=False, pattern=r"[A-Za-z]+"), [Text.of(docs)], Target.of(queries))
    plain = [re.sub(r"[^A-Za-z]+", " ", d).replace("R", "xx") for d in docs]  # one case and one kind of word left
    want = oracle.bm25(plain, [q.replace("R", "xx") for q in queries])
    np.testing.assert_allclose(got["score"], want, rtol=1e-12)


def test_bm25_adds_up_more_partials_than_it_holds_at_once() -> None:
    docs, queries = toy(60), toy(4, seed=9)
    many = run(Bm25(), [Text.of([d]) for d in docs], Target.of(queries))
    np.testing.assert_allclose(np.concatenate([c["score"] for c in many]), oracle.bm25(docs, queries), rtol=1e-12)


def test_bm25_of_a_pool_without_the_targets_words_is_zero() -> None:
    (columns,) = run(Bm25(), [Text.of(["abc def", "ghi jkl"])], Target.of(["mno pqr"]))
    assert columns["score"].tolist() == [0.0, 0.0]


# --- dsir ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ngrams", [1, 2, 3, 4])
def test_dsir_equals_its_formula(ngrams: int) -> None:
    docs, target = [*toy(30), "it's a test, isn't it?"], [*toy(5, seed=3), "one."]
    parts = run(Dsir(min_tokens=1, ngrams=ngrams), [Text.of(docs[:11]), Text.of(docs[11:])], Target.of(target))
    got = np.concatenate([columns["score"] for columns in parts])
    np.testing.assert_allclose(got, oracle.dsir(docs, target, ngrams), rtol=1e-9)


def test_dsir_counts_what_the_authors_package_counts() -> None:
    """The features of p-lambda/dsir (package data-selection) on twenty texts, bucket by bucket."""
    ngram_dsir = pytest.importorskip("data_selection.hashed_ngram_dsir")
    docs = [*toy(17, seed=4), "Don't panic: it's 42!", "e-mail me @ noon...", "Ünïcode wörds, too."]
    for doc in docs:
        want = ngram_dsir.get_ngram_counts(doc, n=2, num_buckets=10_000)
        assert Dsir()._count(Text.of([doc]), {})["counts"].tolist() == want.tolist()


def test_dsir_settings_do_what_they_say() -> None:
    docs, target = toy(20), toy(3, seed=7)
    (few,) = run(Dsir(min_tokens=1, buckets=50, eps=1e-3), [Text.of(docs)], Target.of(target))
    np.testing.assert_allclose(few["score"], oracle.dsir(docs, target, buckets=50, eps=1e-3), rtol=1e-9)
    for settings in ({"ngrams": 0}, {"buckets": 1}, {"eps": -1.0}, {"eps": float("nan")}):
        with pytest.raises(CurateError, match="dsir needs"):
            Dsir(**settings)


def test_dsir_gives_short_samples_no_score() -> None:
    (columns,) = run(Dsir(min_tokens=100), [Text.of(["too short", "long enough " * 50])], Target.of(["long"]))
    assert np.isnan(columns["score"]).tolist() == [True, False]
    assert columns["error"].tolist() == ["has fewer than 100 tokens", ""]


# --- repetition and length -------------------------------------------------------------------------------

REPEATING = [
    "a line\na line\nanother line\n\nb b b b b",
    "one paragraph\nof two lines\n\none paragraph\nof two lines\n\nthe end",
    "the cat sat on the mat and " * 6,
    "no word comes twice here",
    "x",
    "   \n  \n ",
    "tail\n\n\n\ntail\n   \ntail",
    "para one \n\npara one",
    "para one\r\nline two\r\n\r\npara one\r\nline two\r\n",
    "x\n\u00a0y\n\nz\n\u00a0y",
    "\u3000一\n\u3000二\n\n\u3000一\n\u3000二",
    *toy(30, seed=5),
    *[t.replace(" w1", "\nw1").replace(" w2", "\n\nw2") for t in toy(30, seed=6)],
]


def test_repetition_equals_its_formula() -> None:
    (got,) = run(Repetition(), [Text.of(REPEATING)])
    for i, text in enumerate(REPEATING):
        for name, want in oracle.repetition(text).items():
            assert got[name][i] == pytest.approx(want, abs=1e-12), (text, name)


def test_length_equals_its_formula(sample_ws) -> None:
    import curate

    rows = [*curate.sql(sample_ws, "SELECT messages, text FROM pool LIMIT 200"), {"messages": None, "text": "a  b\nc"}]
    (got,) = run(Length(), [Text.of([r["messages"] or r["text"] for r in rows])])
    (whole,) = run(Length(of="whole"), [Text.of([r["messages"] or r["text"] for r in rows])])
    assert whole["score"].tolist() == got["words"].tolist()
    for i, row in enumerate(rows):
        for name, want in oracle.length(row["messages"], row["text"]).items():
            assert got[name][i] == want


def test_bm25_finds_the_targets_skill_in_the_sample(sample_ws) -> None:
    import curate

    curate.score(sample_ws, Bm25(), target="arithmetic")
    rows = curate.sql(sample_ws, "SELECT bm25_arithmetic AS s, meta->>'skill' = 'arithmetic' AS y FROM samples")
    assert auroc([r["s"] for r in rows], [r["y"] for r in rows]) > 0.99


def auroc(scores: list[float], labels: list[bool]) -> float:
    """Probability that a positive outranks a negative (Mann-Whitney)."""
    from scipy.stats import rankdata

    ranks, y = rankdata(scores), np.array(labels)
    return (ranks[y].sum() - y.sum() * (y.sum() + 1) / 2) / (y.sum() * (~y).sum())
