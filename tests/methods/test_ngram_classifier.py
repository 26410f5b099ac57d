"""A classifier trained here, the target against the pool: a slow one by scikit-learn, unseen data, kills, faults."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nltk.tokenize import WordPunctTokenizer
from sklearn.linear_model import LogisticRegression

import curate
from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.registry import make
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.methods.scores.ngram_classifier import _PENALTIES, NgramClassifier
from curate.numerics.logistic import auroc
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE, write_jsonl

FRUIT = ("apple", "pear", "plum", "fig", "lime")
TARGET = [f"the {FRUIT[i % 5]} number {i} is ripe and red" for i in range(24)]
POOL = [
    *(f"print({i}) if x == {i}: return {FRUIT[i % 3]}" for i in range(60)),
    *(f"a {fruit} is ripe" for fruit in FRUIT),
    TARGET[3],
    "   ",
]


def features(text: str, ngrams: int, buckets: int) -> dict[int, float]:
    """Counts by bucket, scaled to length 1, in plain Python."""
    words = WordPunctTokenizer().tokenize(text.lower())
    grams = [" ".join(words[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(words) - n + 1)]
    counts = Counter(int.from_bytes(hashlib.sha256(gram.encode()).digest(), "big") % buckets for gram in grams)
    length = sum(c * c for c in counts.values()) ** 0.5
    return {bucket: count / length for bucket, count in counts.items()}


def slowly(method: NgramClassifier, target: Target, pool: Text) -> np.ndarray:
    """The scores of the pool, sample by sample, with scikit-learn's classifiers."""
    texts = {_key(t): t for t in pool.whole}
    positives = {_key(t): t for t in target.text.whole}
    others = [i for i in texts if i not in positives and texts[i].strip()]
    others.sort(key=lambda i: _number(i, method.seed, "negatives"))
    negatives = others[: round(method.negatives * len(target.text))]
    ids = [*positives, *negatives]
    part = dict[int, int]()
    for kind in (positives, negatives):
        for k, i in enumerate(sorted(kind, key=lambda i: _number(i, method.seed, "folds"))):
            part[i] = k % method.folds

    def matrix(some: list[int]) -> np.ndarray:
        x = np.zeros((len(some), method.buckets))
        for row, i in enumerate(some):
            for bucket, value in features({**texts, **positives}[i], method.ngrams, method.buckets).items():
                x[row, bucket] = value
        return x

    def trained(some: list[int], penalty: float) -> Any:
        settings = {"C": 1 / (penalty * len(some)), "tol": 1e-10, "max_iter": 20_000}
        return LogisticRegression(**settings).fit(matrix(some), [i in positives for i in some])

    def models(penalty: float) -> list[Any]:
        return [trained([i for i in ids if part[i] != fold], penalty) for fold in range(method.folds)]

    def loss(those: list[Any]) -> float:
        odds = [(1 if i in positives else -1) * those[part[i]].decision_function(matrix([i]))[0] for i in ids]
        return float(np.logaddexp(0, -np.array(odds)).mean())

    best = min(map(models, _PENALTIES), key=loss)
    found = []
    for i in map(_key, pool.whole):
        odds = [float(m.decision_function(matrix([i]))[0]) for m in best]
        found.append(odds[part[i]] if i in part else np.mean(odds))
    return np.array([value if text.strip() else np.nan for value, text in zip(found, pool.whole, strict=True)])


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _number(i: int, seed: int, purpose: str) -> float:
    return float(keyed_uniform(np.array([i], np.uint64), seed, purpose)[0])


@pytest.mark.parametrize("settings", [{}, {"negatives": 2.0, "ngrams": 1, "folds": 3, "seed": 4}])
def test_scores_are_those_of_plain_classifiers_that_have_not_seen_the_sample(settings: dict[str, Any]) -> None:
    method = NgramClassifier(buckets=997, **settings)
    target, pool = Target.of(TARGET), Text.of(POOL)
    (whole,) = run(method, [pool], target)
    np.testing.assert_allclose(whole["score"], slowly(method, target, pool), atol=1e-3)
    parts = run(method, [Text(pool.frame[a:b].to_arrow()) for a, b in ((0, 7), (7, 40), (40, 67))], target)
    np.testing.assert_allclose(np.concatenate([p["score"] for p in parts]), whole["score"], atol=1e-9)
    assert whole["trained"][65] == 1 and (whole["trained"] == -1).sum() == round(24 * method.negatives)
    assert whole["error"][66] == "has no words"


def test_it_finds_the_target_s_skill_and_says_how_sure_that_is(sample_ws: Workspace) -> None:
    curate.target(sample_ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    (result,) = curate.score(sample_ws, NgramClassifier(), target="facts")
    rows = curate.sql(sample_ws, "SELECT ngram_classifier_facts s, meta->>'skill' = 'facts' AS is FROM samples")
    assert auroc(np.array([r["s"] for r in rows]), np.array([r["is"] for r in rows])) > 0.98
    assert "on samples that it had not seen its AUROC is 0." in result.note
    again = curate.score(sample_ws, NgramClassifier(), target="facts")[0]
    assert again.computed == 0 and again.note == result.note


def test_two_processes_write_what_one_writes(sample_ws: Workspace, tmp_path: Path) -> None:
    curate.target(sample_ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    other = curate.open_workspace(shutil.copytree(sample_ws.path, tmp_path / "other"))
    found = []
    for ws, workers in ((sample_ws, 1), (other, 2)):
        curate.score(ws, NgramClassifier(), target="facts", executor=make("executor", "local", {"workers": workers}))
        found.append(sorted(p.read_bytes() for p in (ws.path / "scores/ngram_classifier_facts").glob("part-*")))
    assert found[0] == found[1]


def test_a_target_of_a_few_examples_is_refused(school_ws: Workspace, tmp_path: Path) -> None:
    curate.target(school_ws, "few", write_jsonl(tmp_path / "few.jsonl", [{"text": "one"}, {"text": "two"}]))
    with pytest.raises(CurateError, match="the target 'few' has 2 examples, and 2 other samples of the pool"):
        curate.score(school_ws, NgramClassifier(), target="few")
    for settings in ({"ngrams": 0}, {"buckets": 1}, {"folds": 2}, {"negatives": 0.0}, {"buckets": 10**8}):
        with pytest.raises(CurateError, match="ngram_classifier needs ngrams >= 1"):
            make("score", "ngram_classifier", settings)


def test_a_text_of_the_target_s_is_no_negative_whatever_is_beside_it(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    texts = [f"the {FRUIT[i % 5]} number {i} is ripe" for i in range(20)]
    chats = [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": t}]} for t in texts]
    rows = [*({**chat, "tools": tools} for chat in chats), *({"text": f"print({i})"} for i in range(20))]
    curate.ingest(ws, write_jsonl(tmp_path / "rows.jsonl", rows))
    curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", chats))
    (result,) = curate.score(ws, NgramClassifier(), target="t")
    trained = [row["t"] for row in curate.sql(ws, "SELECT ngram_classifier_t_trained t FROM samples ORDER BY row")]
    assert trained == [1] * 20 + [-1] * 20 and "AUROC is 1.000" in result.note


def test_a_pool_of_the_target_s_own_texts_is_refused_and_one_that_grows_is_stale(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TARGET])
    curate.ingest(ws, rows)
    curate.target(ws, "t", rows)
    with pytest.raises(CurateError, match="has 24 examples, and 0 other samples of the pool were drawn"):
        curate.score(ws, NgramClassifier(), target="t")
    curate.ingest(ws, write_jsonl(tmp_path / "more.jsonl", [{"text": text} for text in POOL]))
    assert curate.score(ws, NgramClassifier(), target="t")[0].note
    shutil.rmtree(ws.path / "prepared")  # what it may be computed from again
    assert curate.score(ws, NgramClassifier(), target="t")[0].computed == 0


@pytest.mark.slow
def test_of_real_data_it_finds_gsm8k_by_128_of_its_examples(shared: Path, tmp_path: Path) -> None:
    """DataComp-LM's recipe; the figures of docs/scores-by-a-model.md."""
    ws = curate.open_workspace(tmp_path / "ws")
    names = (
        "gpteacher_code.json",
        "gpteacher_roleplay.json",
        "gsm8k.jsonl",
        "p3.jsonl.gz",
        "seed_tasks_messages.jsonl",
    )
    for path in (*(shared / "pool" / name for name in names), shared / "eval/gsm8k_test.jsonl"):
        curate.ingest(ws, str(path))
    curate.target(ws, "gsm8k", str(shared / "targets/gsm8k_val.jsonl"))
    curate.score(ws, NgramClassifier(), target="gsm8k")
    rows = list(curate.sql(ws, "SELECT source, ngram_classifier_gsm8k s FROM samples"))
    source, score = np.array([r["source"] for r in rows]), np.array([r["s"] for r in rows])
    unseen, rest = source == "gsm8k_test", ~np.isin(source, ["gsm8k", "gsm8k_test"])
    assert auroc(score[unseen | rest], unseen[unseen | rest]) > 0.999
    top = np.argsort(-score)[: len(score) // 20]
    assert set(source[top]) == {"gsm8k", "gsm8k_test"}
