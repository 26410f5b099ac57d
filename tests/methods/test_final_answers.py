"""The final answer in a text, and what counts as the same one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from curate.errors import CurateError
from curate.kinds.metric import Question
from curate.methods.metrics import exact_match, token_f1
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.token_f1 import TokenF1
from tests.support.laws import narrow, said


def judged(metric: Any, monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[str, Question]]) -> Any:
    """A metric's result where the model generates the given texts."""
    texts = [text for text, _ in pairs]

    def generated(model: Any, questions: Any, max_new_tokens: int) -> Any:
        _, error, usage = real(model, questions, 1)
        return texts, error, usage

    real = exact_match.generate_answers
    for module in (exact_match, token_f1):
        monkeypatch.setattr(module, "generate_answers", generated)
    result = metric.evaluate(narrow(), [question for _, question in pairs])
    monkeypatch.undo()
    return result


def asked(answer: str, **meta: Any) -> Question:
    return Question(said(answer), meta=meta)


def is_right(metric: ExactMatch, generated: str, gold: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    result = judged(metric, monkeypatch, [(generated, asked(gold))])
    assert not result.error[0]
    return bool(result.values[0])


def test_worked_answers_of_bbh_end_in_their_short_ones(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated: the 81 worked answers. Right: what stands behind their last "the answer is ", cut by hand here, which
    is of the kind that the sub-task's test questions have."""
    rows = [json.loads(line) for line in (shared / "targets/bbh_val.jsonl").read_text().splitlines()]
    of_test: dict[str, set[str]] = {}
    for row in map(json.loads, (shared / "eval/bbh_test.jsonl").read_text().splitlines()):
        of_test.setdefault(row["subtask"], set()).add(re.sub(r"\w+", "x", row["target"].split()[0]))
    short = [row["answer"][row["answer"].rindex("the answer is ") + 14 : -1] for row in rows]
    for row, gold in zip(rows, short, strict=True):
        assert re.sub(r"\w+", "x", gold.split()[0]) in of_test[row["subtask"]], (row["subtask"], gold)
    metric = ExactMatch("answer_is")
    worked = [row["answer"] for row in rows]
    for golds in (short, worked):  # a reference that is worked text itself is extracted, too
        result = judged(metric, monkeypatch, [(w, asked(g)) for w, g in zip(worked, golds, strict=True)])
        assert result.values.tolist() == [1.0] * 81, result.error
    others = [next(s for s in short if s.lower() != own.lower()) for own in short]
    wrong = judged(metric, monkeypatch, [(w, asked(g)) for w, g in zip(worked, others, strict=True)])
    assert wrong.values.tolist() == [0.0] * 81


@pytest.mark.parametrize(
    ("generated", "gold", "right"),
    [
        ("So the answer is (B).", "(B)", True),
        ("So the answer is B.", "(B)", True),
        ("the answer is (B) 12/12/2018.", "B", True),
        ("the answer is (B) 12/12/2018.", "(A)", False),
        ("So the answer is (A). No: the answer is (B). Because it rains, (A) is out.", "B", True),
        ("The answer is B. Because of (A).", "(B)", True),
        ("**Answer:** option (C)", "C", True),
        ("The final answer is: **1,200**", "1200", True),
        ("Answer: $1,200.00", "1200", True),
        ("the answer is -219.", "-219", True),
        ("the answer is \u2212219.", "-219", True),
        ("the answer is 219.", "-219", False),
        ("the answer is 3.5.", "3.50", True),
        ("the answer is 3.5.", "3", False),
        ("the answer is 12.", "1,2", False),
        ("The answer is St. Louis.", "St. Louis", True),
        ("The answer is St. Louis.", "St. Paul", False),
        ("The answer is No. It is not.", "no", True),
        ("the answer is ] } ].", "] } ]", True),
        ("the answer is ] } ].", "] ) ]", False),
        ('The answer is "costume oven".', "Costume  oven", True),
        ("It is B", "(B)", False),  # says no answer
        ("The answer is:\n(B)", "(B)", True),
    ],
)
def test_what_follows_the_answer_is(generated: str, gold: str, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_right(ExactMatch("answer_is"), generated, gold, monkeypatch) == right


@pytest.mark.parametrize(
    ("generated", "gold", "right"),
    [
        (r"first \boxed{3}, so \boxed{\frac{1}{2}}.", r"We get $\boxed{\dfrac12}$.", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{\frac{2}{4}}", "1/2", True),
        (r"\boxed{\frac{1}{3}}", "0.33", False),
        (r"\boxed{-\frac{1}{2}}", r"-\frac{1}{2}", True),
        (r"\boxed{\sqrt{\frac{a}{b+\{c\}}}}", r"\sqrt{\frac ab+\{c\}}", False),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", True),
        (r"\boxed{1,200}", "1200", True),
        (r"\boxed{x^{2}+1}", "x^{2} + 1", True),
        (r"\boxed{\text{(C)}}", "C", True),
        (r"\boxed{45^\circ}", "45", True),
        (r"$\boxed 7$", "7", True),
        (r"it is 7", "7", False),
        (r"\boxed{7", "7", False),
    ],
)
def test_what_is_in_the_last_box(generated: str, gold: str, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_right(ExactMatch("boxed"), generated, gold, monkeypatch) == right


def test_a_pattern_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = ExactMatch("regex", pattern=r"<a>(.*?)</a>|Final: (\S+)")
    assert is_right(metric, "<a>2</a> <a>1,000</a>", "1000", monkeypatch)
    assert not is_right(metric, "<a>2</a> <a>1,000</a>", "2", monkeypatch)
    assert is_right(metric, "Final: Yes.", "so <a>yes</a>", monkeypatch)
    assert is_right(ExactMatch("regex", pattern=r"[A-D]\b"), "A or B", "B", monkeypatch)
    for settings, why in (
        ({"final_answer": "regex"}, "give both, or none"),
        ({"pattern": "x"}, "give both, or none"),
        ({"final_answer": "regex", "pattern": "("}, "no regular expression"),
    ):
        with pytest.raises(CurateError, match=why):
            ExactMatch(**settings)


def test_the_first_answer_of_a_model_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "So the answer is 4.\n\nQ: five?\nA: So the answer is 5.\n#### 6"
    for how, first, last in (("answer_is", "4", "5"), ("number", "6", "6"), ("boxed", "", "")):
        assert ExactMatch(how, take="first").final(text) == first  # type: ignore[arg-type]
        assert ExactMatch(how).final(text) == last  # type: ignore[arg-type]
    assert ExactMatch("number", take="first").final("4 and 5") == "4"


def test_a_reference_without_a_final_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("the answer is 4.", asked("first this\nthen that")), ("the answer is 4.", asked("4"))]
    result = judged(ExactMatch("answer_is"), monkeypatch, pairs)
    assert 'no "the answer is' in result.error[0] and result.values.tolist()[1:] == [1.0]
    result = judged(ExactMatch(), monkeypatch, [("4", asked("four"))])
    assert result.error.tolist() == ["its answer has no number"]


# --- several right answers -------------------------------------------------------------------------------

_SQUAD: list[tuple[str, Any]] = [
    ("list", ["Denver Broncos", "the Broncos", "Broncos of Denver"]),
    ("SQuAD", {"text": ["Denver Broncos", "the Broncos", "Broncos of Denver"], "answer_start": [1, 2, 3]}),
    ("records", [{"text": t} for t in ("Denver Broncos", "the Broncos", "Broncos of Denver")]),
]


@pytest.mark.parametrize(("shape", "answers"), _SQUAD, ids=[name for name, _ in _SQUAD])
def test_the_best_of_several_right_answers(shape: str, answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    question = asked("Denver Broncos", answers=answers)
    texts = ["The Broncos!", "a Denver Broncos fan", "Denver", "Carolina"]
    exact = judged(ExactMatch("words"), monkeypatch, [(text, question) for text in texts])
    assert exact.values.tolist() == [1.0, 0.0, 0.0, 0.0]
    f1 = judged(TokenF1(), monkeypatch, [(text, question) for text in texts])
    by_hand = [1.0, 2 * (2 / 3) * 1 / (2 / 3 + 1), 2 * 1 * 0.5 / 1.5, 0.0]  # precision and recall of the nearest
    assert f1.values.tolist() == pytest.approx(by_hand)


def test_a_question_without_an_answer_is_said_by_f1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(TokenF1(), monkeypatch, [("x", Question([{"role": "user", "content": "?"}]))])
    assert result.error.tolist() == ["has no answer"]
