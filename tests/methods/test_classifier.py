"""A classifier's outputs as scores: as transformers' own pipeline gives them, long texts in parts, labels by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.classifier import Classifier
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.sequence_classifier import SequenceClassifier, classifier_context
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.support.classifiers import choice, classifier
from tests.support.narrow import NARROW

TEXTS = [
    "One apple.",
    "a river runs through the town " * 3,
    "x",
    *(f"{i} plus {i} is {2 * i}. " * (1 + i % 9) for i in range(40)),
]
LONG = "the mill turns and the river runs " * 30


def scored(method: Classifier, model: ModelChoice, texts: list[str]) -> dict[str, Any]:
    samples = [{"messages": None, "text": text} for text in texts]
    (step,) = method.passes(None)
    return dict(score_samples({"classifier": SequenceClassifier(model)}, samples, {"x": step})[0]["x"])


def pipeline(folder: str, texts: list[str]) -> np.ndarray:
    """The outputs of every label, one text at a time, by transformers' pipeline, float64 [N, L]."""
    from transformers import pipeline

    ask = pipeline("text-classification", model=folder, device="cpu", dtype="float32")
    rows = [ask(text, top_k=None, truncation=True) for text in texts]
    return np.array([[found["score"] for found in sorted(row, key=lambda one: one["label"])] for row in rows])


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize(
    ("labels", "problem"),
    [(1, "regression"), (1, None), (3, None), (3, "single_label_classification"), (3, "multi_label_classification")],
)
def test_outputs_are_those_of_transformers_pipeline(kind: str, labels: int, problem: str | None) -> None:
    texts = [*TEXTS, LONG]
    wanted = pipeline(classifier(kind, labels, problem), texts)
    model = choice(kind, labels, problem)
    for label in range(labels):
        method = Classifier(label=f"LABEL_{label}" if labels > 1 else "")
        np.testing.assert_allclose(scored(method, model, texts)["score"], wanted[:, label], atol=1e-5)


def test_values_give_an_expectation_and_further_labels_columns() -> None:
    wanted = pipeline(classifier(), TEXTS)
    found = scored(Classifier(values="0, 1, 5", further="LABEL_2,0"), choice(), TEXTS)
    np.testing.assert_allclose(found["score"], wanted @ [0, 1, 5], atol=1e-5)
    np.testing.assert_allclose(found["label_2"], wanted[:, 2], atol=1e-5)
    np.testing.assert_allclose(found["c_0"], wanted[:, 0], atol=1e-5)


def test_of_a_long_text_the_parts_count_as_it_is_said() -> None:
    model = SequenceClassifier(choice("bert", 1, "regression"))
    inner = model.context - 2
    tokens = model.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    parts = [model.tokenizer.decode(tokens[a : a + inner]) for a in range(0, len(tokens), inner)]
    assert len(parts) > 3
    each = pipeline(classifier("bert", 1, "regression"), parts)[:, 0]
    sizes = np.array([len(model.tokenizer(part)["input_ids"]) for part in parts])
    for long, wanted in (("first", each[0]), ("mean", (each * sizes).sum() / sizes.sum()), ("max", each.max())):
        found = scored(Classifier(long=long), choice("bert", 1, "regression"), ["short", LONG, "x"])  # type: ignore[arg-type]
        assert found["score"][1] == pytest.approx(wanted, abs=1e-5), long
    refused = ModelChoice(classifier("bert", 1, "regression"), too_long="refuse")
    assert "more tokens than the context of 64" in scored(Classifier(), refused, ["short", LONG])["error"][1]


def test_it_reads_the_part_of_a_sample_that_is_asked_for(school_ws: Workspace) -> None:
    model, found = choice("bert", 1, "regression"), {}
    for part in ("contents", "chat", "prompt", "answer"):
        curate.score(school_ws, Classifier(of=part), names={"classifier": part}, models=model)  # type: ignore[arg-type]
    rows = list(
        curate.sql(school_ws, "SELECT messages, contents, chat, prompt, answer FROM samples ORDER BY row LIMIT 8")
    )
    for row in rows:
        said = [m["content"] for m in row["messages"]]
        found = {
            "contents": "\n".join(said),
            "chat": "\n".join(f"{m['role']}: {m['content']}" for m in row["messages"]),
            "prompt": said[0],
            "answer": said[-1],
        }
        wanted = pipeline(classifier("bert", 1, "regression"), list(found.values()))[:, 0]
        np.testing.assert_allclose([row[part] for part in found], wanted, atol=1e-5)
    (row,) = [r for r in curate.ledger(school_ws) if r["name"] == "contents"]
    assert row["flops"] > 0 and row["phase"] == "classify"


def test_a_dry_run_foresees_it_and_resuming_computes_nothing_again(school_ws: Workspace, tmp_path: Path) -> None:
    model = choice("bert", 3)
    method = Classifier(label="LABEL_1", further="LABEL_0,LABEL_2")
    (planned,) = curate.score(school_ws, method, models=model, dry_run=True)
    (result,) = curate.score(school_ws, method, models=model)
    (row,) = [r for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert row["flops"] == pytest.approx(planned.planned[0]["flops"], rel=0.1) and result.computed == 200
    assert curate.score(school_ws, method, models=model)[0].computed == 0
    (sums,) = curate.sql(
        school_ws, "SELECT max(abs(classifier + classifier_label_0 + classifier_label_2 - 1)) off FROM samples"
    )
    assert sums["off"] < 1e-5
    curate.ingest(school_ws, [write_jsonl(tmp_path / "more.jsonl", [{"text": "one more"}])])
    assert curate.score(school_ws, method, models=model)[0].computed == 1


@pytest.mark.parametrize(
    ("settings", "labels", "said"),
    [
        ({}, 3, "has 3 labels: name one by --set label=NAME"),
        ({"label": "LABEL_9"}, 3, "has no label 'LABEL_9'"),
        ({"values": "1,2"}, 3, "values=1,2 are 2, and the classifier has 3 labels"),
        ({"values": "1,x"}, 3, "numbers with commas between"),
        ({"values": "1,2,3", "label": "LABEL_0"}, 3, "not both"),
        ({"further": "a,A"}, 3, "two further columns would be called 'a'"),
        ({"label": "LABEL_0", "further": "Score"}, 3, "every score has a column 'score' of its own"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    settings: dict[str, Any], labels: int, said: str, school_ws: Workspace
) -> None:
    with pytest.raises(CurateError, match=re.escape(said)):
        curate.score(school_ws, Classifier(**settings), models=choice("bert", labels))


def test_the_positions_of_robertas_kin_begin_behind_the_padding() -> None:
    model = SequenceClassifier(choice("roberta", 1, "regression"))
    model.tokenizer.model_max_length = 1 << 30
    places = model.model.config.max_position_embeddings - model.model.config.pad_token_id - 1
    assert classifier_context(model.model, model.tokenizer, model.choice) == places
    whole = SequenceClassifier(choice("bert", 1, "regression"))
    whole.tokenizer.model_max_length = 1 << 30
    assert classifier_context(whole.model, whole.tokenizer, whole.choice) == 72


def test_what_is_no_classifier_is_refused(school_ws: Workspace) -> None:
    with pytest.raises(CurateError, match=r"lacks 1 of the weights of LlamaForSequenceClassification \(score.weight\)"):
        curate.score(school_ws, Classifier(), models=NARROW)


@pytest.mark.slow
def test_on_five_hundred_real_rows_it_is_the_pipeline(real_docs: list[str], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from curate.models.choice import resolve

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve("minilm"), num_labels=1, problem_type="regression"
    )
    model.save_pretrained(tmp_path / "head")
    tokenizer = AutoTokenizer.from_pretrained(resolve("minilm"))
    tokenizer.save_pretrained(tmp_path / "head")
    texts = [text for text in real_docs if text.strip()][:500]
    assert len(texts) == 500
    found = scored(Classifier(), ModelChoice(str(tmp_path / "head"), dtype="float32"), texts)
    np.testing.assert_allclose(found["score"], pipeline(str(tmp_path / "head"), texts)[:, 0], atol=1e-5)
