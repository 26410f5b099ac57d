"""Questions with passages and with options: nothing of the prompt is left over, and the answer is what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.methods.metrics.choice import Choice
from curate.runs.evaluation import EvalSpec, questions
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl


def read(record: Any, **kwargs: Any) -> Any:
    return Reader(**kwargs).sample(record)


def said(record: Any, **kwargs: Any) -> list[str]:
    return [message["content"] for message in read(record, **kwargs).messages]


SQUAD = {
    "id": "1",
    "title": "Oslo",
    "context": "Oslo is in Norway.",
    "question": "Where is Oslo?",
    "answers": {"text": ["Norway", "in Norway"], "answer_start": [11, 8]},
}


@pytest.mark.parametrize(
    "answers",
    [SQUAD["answers"], ["Norway", "in Norway"], [{"text": "Norway"}], {"text": "Norway"}],
)
def test_a_passage_stands_before_its_question(answers: Any) -> None:
    sample = read({**SQUAD, "answers": answers})
    assert [m["content"] for m in sample.messages] == ["Oslo is in Norway.\n\nWhere is Oslo?", "Norway"]
    assert json.loads(sample.meta) == {"id": "1", "title": "Oslo", "answers": answers}  # further answers are not lost
    assert said({"passage": "P.", "question": "q?", "answer": True}) == ["P.\n\nq?", "true"]  # BoolQ
    assert said({"context": "", "question": "q?", "answer": "a"}) == ["q?", "a"]


def test_a_question_without_an_answer_in_its_passage_is_refused() -> None:
    with pytest.raises(Refused, match="answers is empty: the question has no answer in its passage"):
        read({**SQUAD, "answers": {"text": [], "answer_start": []}})


ASKED = "Which is red?\nA. sky\nB. blood\nC. grass"
TEXTS = ["sky", "blood", "grass"]


@pytest.mark.parametrize(
    "record",
    [
        {"choices": TEXTS, "answer": 1, "subject": "colours"},  # MMLU
        {"options": TEXTS, "answer": "B", "answer_index": 1},  # MMLU-Pro
        {"choices": TEXTS, "answer": "B"},
        {"choices": {"text": TEXTS, "label": ["A", "B", "C"]}, "answerKey": "B"},  # ARC
        {"options": dict(zip("ABCD", [*TEXTS, None], strict=True)), "answer": "blood", "answer_idx": "B"},  # MedQA
        {"choices": [{"label": label, "text": t} for label, t in zip("ABC", TEXTS, strict=True)], "answerKey": "B"},
    ],
)  # fmt: skip
def test_options_are_asked_and_the_answer_is_a_letter_or_a_text(record: Any) -> None:
    asked = {"question": "Which is red?", **record}
    assert said(asked) == [ASKED, "B"] and said(asked, choice_answer="text") == [ASKED, "blood"]
    assert json.loads(read(asked).meta)["options"] == ["A", "B", "C"]
    assert json.loads(read(asked, choice_answer="text").meta)["options"] == TEXTS


@pytest.mark.parametrize(
    "record",
    [
        {"goal": "Which is red?", "sol1": "grass", "sol2": "blood", "label": 1},  # PIQA
        {"ctx": "Which is red?", "endings": ["grass", "blood"], "label": "1", "ind": 7},  # HellaSwag
        {"question_stem": "Which is red?", "choices": {"text": ["grass", "blood"], "label": ["A", "B"]},
         "answerKey": "B"},  # OpenBookQA
    ],
)  # fmt: skip
def test_question_and_options_of_other_names_are_those(record: dict[str, Any]) -> None:
    asked = "Which is red?\nA. grass\nB. blood"
    assert said(dict(record)) == [asked, "B"] and said(dict(record), choice_answer="text") == [asked, "blood"]
    unanswered = {**record, ("answerKey" if "answerKey" in record else "label"): -1}
    with pytest.raises(Refused, match="has a question with options, and its (label|answerKey) -1 is none of them"):
        read(unanswered)
    assert said({**record, "prompt": "p", "completion": "c"}) == ["p", "c"]


def test_a_whole_number_is_an_index_whatever_the_texts_are() -> None:
    """MMLU's arithmetic: "What is 5-5?" with the options 4, 2, 0 and 6, of which the one of index 2 is right."""
    record = {"question": "What is 5-5?", "choices": ["4", "2", "0", "6"], "answer": 2}
    assert said(record)[-1] == "C" and said(record, choice_answer="text")[-1] == "0"


def test_labels_of_their_own_are_kept() -> None:
    record = {"question": "q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    assert said(record) == ["q?\n1. x\n2. y", "2"]


@pytest.mark.parametrize(
    ("choices", "answer"),
    [(TEXTS, "blood"), (["A", "B"], "B"), (["2", "1"], "1"), (TEXTS, "All of them are."), (["one"], "one")],
)
def test_an_answer_in_words_is_the_answer(choices: list[str], answer: Any) -> None:
    """The options stay beside it, where metrics find them; the texts 1 and 2 may be options themselves."""
    record = {"question": "q?", "choices": choices, "answer": answer}
    assert said(record) == ["q?", str(answer)] and json.loads(read(record).meta) == {"choices": choices}


@pytest.mark.parametrize("answer", [3, -1, "D", "x"])
def test_an_answer_that_is_no_option_is_refused(answer: Any) -> None:
    with pytest.raises(Refused, match=f"has 3 options, and its answer {answer!r} is none of them"):
        read({"question": "q?", "choices": TEXTS, "answer": answer})


@pytest.mark.parametrize("kind", ["letter", "text"])
def test_the_metric_judges_by_these_options(ws: Workspace, tmp_path: Path, kind: Any) -> None:
    rows = [{"question": f"{i}?", "choices": TEXTS, "answer": i} for i in range(3)]
    curate.target(ws, "colours", write_jsonl(tmp_path / "a.jsonl", rows), choice_answer=kind)
    asked = [question for _, question in questions(ws, EvalSpec("colours", Choice(), "val"))]
    assert [q.answer for q in asked] == (["A", "B", "C"] if kind == "letter" else TEXTS)
    assert {q.options for q in asked} == {("A", "B", "C") if kind == "letter" else tuple(TEXTS)}


def test_another_way_of_answering_reads_the_file_again(ws: Workspace, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q?", "choices": TEXTS, "answer": 1}])
    assert curate.ingest(ws, [path]).added == 1
    assert curate.ingest(ws, [path]).files_skipped == [path]
    assert curate.ingest(ws, [path], choice_answer="text").added == 1
