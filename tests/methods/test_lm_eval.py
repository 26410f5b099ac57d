"""Our judges against lm-evaluation-harness's own code, on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import curate
from curate.kinds.metric import Question
from curate.methods.metrics.choice import Choice
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.lm_eval import LmEval
from curate.models import harness
from curate.models.answers import answer_losses
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import rendered
from curate.runs.evaluation import EvalSpec, questions
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

pytest.importorskip("lm_eval")

ASK = "Pavo has {} lamps and finds {} more. How many lamps has Pavo now?"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(ModelChoice("tiny", device="cpu"))


def said(question: str, answer: str) -> list[dict[str, Any]]:
    turns = {"user": question, "assistant": answer}
    return [{"role": role, "content": content, "extra": None} for role, content in turns.items()]


def lamps() -> list[Question]:
    """Options of many lengths, some with characters of several bytes."""
    options = (
        "9 lamps",
        "7 + 2 = 9. Pavo has 9 lamps.",
        "über 9 Lampen ✓✓✓✓",
        "Pavo",
        "a",
        "7 + 2 = 5. Pavo has 5 lamps.",
    )
    return [Question(said(ASK.format(n, 2), options[n % 6]), options=options) for n in range(3, 15)]


@pytest.mark.parametrize("by", ["sum", "chars", "bytes"])
def test_choice_is_the_harness_s(by: Any, lm: LanguageModel) -> None:
    ours, theirs = Choice(by=by).evaluate(lm, lamps()), LmEval(by=by).evaluate(lm, lamps())
    assert ours.values.tolist() == theirs.values.tolist() and 0 < ours.values.mean() < 1
    assert theirs.usage.flops > ours.usage.flops / 2


def test_an_option_s_likelihood_is_the_harness_s(lm: LanguageModel) -> None:
    from lm_eval.api.instance import Instance

    model = harness.harness_model(lm)
    asked = lamps()[:3]
    samples = [(rendered(lm.tokenizer, q.prompt()), option, q) for q in asked for option in q.options]
    instances = [Instance("loglikelihood", {}, (prompt, option), k) for k, (prompt, option, _) in enumerate(samples)]
    theirs = [value for value, _ in model.loglikelihood(instances, disable_tqdm=True)]
    columns, _ = answer_losses(lm, [q.sample(option) for _, option, q in samples], "content")
    assert (-columns["mean"] * columns["tokens"]).tolist() == pytest.approx(theirs, rel=1e-4, abs=1e-3)
    with_end, _ = answer_losses(lm, [q.sample(option) for _, option, q in samples])
    assert max(abs(with_end["mean"] * with_end["tokens"] + theirs)) > 1


def test_what_is_generated_is_judged_alike(lm: LanguageModel) -> None:
    right = [f"{n} + 2 = {n + 2}. Pavo has {n + 2} lamps." for n in range(3, 9)]
    asked = [Question(said(ASK.format(n, 2), text)) for n, text in enumerate(right, start=3)]
    generated = ExactMatch("whole", max_new_tokens=24).evaluate(lm, asked)
    theirs = LmEval(output_type="generate_until", max_new_tokens=24).evaluate(lm, asked)
    assert theirs.answers == generated.answers and theirs.usage.flops > 0
    assert theirs.values.tolist() == generated.values.tolist() and generated.values.any()


KINDS = {
    "dates": ["2020-01-31", "2021-02-28", "1999-12-31"],
    "times": ["2020-01-31T10:00:00", "2021-02-28 11:12:13", "10:00"],
    "numbers": ["1", "2.50", "007"],
    "truths": ["true", "False", "null"],
    "texts": ["a", "b", "c"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_kind_stay_text(
    kind: str, lm: LanguageModel, ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All answers of a kind: what reads them as a file would take them for something else than text. The model says the
    right one of every second question."""
    texts = KINDS[kind]
    rows = [{"question": f"When {n}?", "answer": text, "options": texts} for n, text in enumerate(texts)]
    curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", rows), split="test")

    def asked(metric: Any) -> list[Question]:
        return [question for _, question in questions(ws, EvalSpec("t", metric))]

    chosen = LmEval().evaluate(lm, asked(LmEval()))
    assert not chosen.error.any() and chosen.values.tolist() == Choice().evaluate(lm, asked(Choice())).values.tolist()

    says = {text: text if n % 2 == 0 else "something else" for n, text in enumerate(texts)}
    model = harness.harness_model(lm)
    monkeypatch.setattr(
        type(model), "generate_until", lambda _, requests, **__: [says[r.doc["answers"][0]] for r in requests]
    )
    metric = LmEval(output_type="generate_until")
    result = metric.evaluate(lm, asked(metric))
    assert result.values.tolist() == [1.0, 0.0, 1.0] and not result.error.any()


def test_any_of_several_right_answers(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Question(said("when?", "2020"), meta={"answers": ["2020", "last year"]}), Question(said("who?", "I"))]
    model = harness.harness_model(lm)
    for texts, values in ((["Last year", "I"], [1.0, 1.0]), (["2020", "you"], [1.0, 0.0]), (["2021", "I"], [0.0, 1.0])):
        monkeypatch.setattr(type(model), "generate_until", lambda _, requests, texts=texts, **__: texts)
        assert LmEval(output_type="generate_until").evaluate(lm, asked).values.tolist() == values
