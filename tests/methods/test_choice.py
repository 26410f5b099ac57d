"""Choosing among options: whose they are, how they are posed, and their likelihood against slow references."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.kinds.metric import Question
from curate.methods.metrics.choice import Choice
from curate.methods.metrics.loss import Loss
from curate.models.answers import answer_losses
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode, rendered
from curate.runs.evaluation import EvalSpec, questions
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

ASK = "Pavo has 7 lamps and finds 2 more. How many lamps has Pavo now?"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(ModelChoice("tiny", device="cpu"))


def said(question: str, answer: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": question, "extra": None},
        {"role": "assistant", "content": answer, "extra": None},
    ]


# --- the likelihood --------------------------------------------------------------------------------------


def log_p(model: Any, tokenizer: Any, prompt: str, option: str) -> tuple[list[float], float]:
    """log p of each token of an option behind a prompt, and of the EOS token behind it, one text at a time."""
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [*start, *tokenizer(option, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    each = [float(scores[t - 1, ids[t]]) for t in range(len(start), len(ids))]
    return each[:-1], each[-1]


def test_an_option_is_scored_by_what_it_says(lm: LanguageModel) -> None:
    """In float64, for every way to count its length, with and without the end of its turn; which is not the same."""
    options = ("7 + 2 = 9. Pavo has 9 lamps.", "7 + 2 = 5", "9 lamps", "Pavo", "über 9 Lampen ✓", "7 + 2 = 9.")
    slow = LanguageModel(ModelChoice("tiny", device="cpu")).model.double()
    chosen = dict[tuple[str, bool], list[int]]()
    asks = [ASK, "Say in Velic: big tree", "a"]
    lengths = {"sum": lambda _, n: 1, "mean": lambda _, n: n, "chars": lambda o, _: len(o)}
    lengths["bytes"] = lambda o, _: len(o.encode())
    for by, end in product(lengths, (False, True)):
        metric = Choice(by=by, end_of_turn=end)  # type: ignore[arg-type]
        for ask in asks:
            values = []
            for option in options:
                own, last = log_p(slow, lm.tokenizer, rendered(lm.tokenizer, said(ask, "")[:1]), option)
                tokens = [*own, last] if end else own
                values.append(sum(tokens) / lengths[by](option, len(tokens)))
            best = int(np.argmax(values))
            chosen.setdefault((by, end), []).append(best)
            posed = [Question(said(ask, right), options=options) for right in options]
            assert metric.evaluate(lm, posed).values.tolist() == [float(i == best) for i in range(len(options))]
    assert any(chosen[by, False] != chosen[by, True] for by in lengths)
    assert len({tuple(chosen[by, False]) for by in lengths}) > 1


def test_a_tie_and_what_cannot_be_judged(lm: LanguageModel) -> None:
    options = ("a", "b")
    unknown = Choice().evaluate(
        lm,
        [
            Question(said(ASK, "z"), options=options),
            Question(said(ASK, "z")),
            Question(said(ASK, "a"), options=("a", "a")),
        ],
    )
    assert unknown.error[0] == "its answer is 0 times among its options"
    assert "has no options of its own" in unknown.error[1] and "choice.options=subtask" in unknown.error[1]
    assert unknown.error[2] == "its answer is 2 times among its options" and not np.isfinite(unknown.values).any()


_ENDS_TURN = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n{% endfor %}"
TEMPLATES = {
    "own": None,
    "trims": _ENDS_TURN + "{% if add_generation_prompt %}[assistant] {% endif %}",
    "letters at its end": "{% for m in messages %}{{ m.role }}: {{ m.content }} end\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "thinks": "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["n", "end", "two words ", "</s> and more", "the mark zqend"])
def test_the_content_ends_where_the_turn_s_end_begins(name: str, answer: str, lm: LanguageModel) -> None:
    tokenizer = lm.tokenizer
    if TEMPLATES[name]:
        import copy

        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = TEMPLATES[name]
    sample = Question(said("which?", answer), shots=tuple(said("who?", answer))).sample()
    (content,), (last,) = (encode(tokenizer, [sample], 512, view=view) for view in ("content", "last"))
    assert not content.error and last.ids.tolist()[: len(content.ids)] == content.ids.tolist()
    assert len(content.ids) < len(last.ids) or name == "letters at its end"
    shown = tokenizer.decode(content.ids[content.supervised])
    assert shown.replace("<think>\n\n</think>\n\n", "").strip() == answer.strip()


def test_examples_are_computed_once_for_all_options(lm: LanguageModel) -> None:
    shots = tuple(m for n in range(9) for m in said(f"{ASK} ({n})", f"{n} + 2 = {n + 2}. Pavo has {n + 2} lamps."))
    options = tuple(f"{n} lamps" for n in range(9))
    posed = [
        Question(said(f"How many are {n} and 1?", f"{n + 1} lamps"), shots=shots, options=options) for n in range(8)
    ]
    samples = [question.sample(option) for question in posed for option in options]
    whole = encode(lm.tokenizer, samples, 512, view="content")
    total, longest = sum(len(item.ids) for item in whole), max(len(item.ids) for item in whole)
    assert not any(item.cut for item in whole)
    result = Choice().evaluate(lm, posed)
    assert result.usage.tokens < longest + total / 5
    alone = [Choice().evaluate(lm, [question]).values[0] for question in posed]
    assert result.values.tolist() == alone
    columns, _ = answer_losses(lm, samples, "content")
    one, _ = answer_losses(lm, samples[:1], "content")
    assert columns["mean"][0] == pytest.approx(one["mean"][0], rel=1e-4)


def test_options_that_are_cut_are_said(lm: LanguageModel) -> None:
    cut = LanguageModel(ModelChoice("tiny", device="cpu", context=40))
    posed = [Question(said(ASK, "9 " * 30), options=("9 " * 30, "5"))]
    assert "options were cut to the context" in Choice().evaluate(cut, posed).note
    assert Choice().evaluate(lm, posed).note == ""


# --- whose options ---------------------------------------------------------------------------------------


def stored(ws: Workspace, folder: Path, rows: list[dict[str, Any]], split: str = "test", **how: Any) -> None:
    curate.target(ws, "t", write_jsonl(folder / f"{split}.jsonl", rows), split=split, **how)


def posed(ws: Workspace, metric: Any, shots: int = 0) -> list[Question]:
    return [question for _, question in questions(ws, EvalSpec("t", metric, shots=shots))]


COLOURS = ["red", "green", "blue"]
ARC = {"text": COLOURS, "label": ["A", "B", "C"]}
RIGHT = {  # the right one is green
    "the number": {"choices": COLOURS, "answer": 1},
    "the number as text": {"choices": COLOURS, "answer": "1"},
    "the letter": {"choices": COLOURS, "answer": "B"},
    "the text": {"choices": COLOURS, "answer": "green"},
    "ARC": {"choices": ARC, "answerKey": "B"},
    "ARC by numbers": {"choices": {"text": COLOURS, "label": ["1", "2", "3"]}, "answerKey": "2"},
    "MedQA": {"options": {"A": "red", "B": "green", "C": "blue"}, "answer_idx": "B", "answer": "green"},
    "MedQA's letters": {"options": {"A": "red", "B": "green", "C": "blue"}, "answer": "B"},
    "label": {"choices": COLOURS, "label": 1},
    "records": {"choices": [{"label": c, "text": t} for c, t in zip("ABC", COLOURS, strict=True)], "answer": "B"},
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("choice_answer", ["letter", "text"])
def test_the_right_option_by_its_number_letter_or_text(
    name: str, choice_answer: Any, ws: Workspace, tmp_path: Path
) -> None:
    stored(ws, tmp_path, [{"question": "which?", **RIGHT[name]}], choice_answer=choice_answer)
    (text,) = posed(ws, Choice(options="own", answer_by="text", listed="no"))
    assert (text.answer, text.options) == ("green", ("red", "green", "blue"))
    assert text.prompt()[-1]["content"] == "which?"
    labels = ("1", "2", "3") if name == "ARC by numbers" else ("A", "B", "C")
    (letter,) = posed(ws, Choice(options="own", answer_by="letter", listed="yes"))
    assert (letter.answer, letter.options) == (labels[1], labels)
    assert letter.prompt()[-1]["content"] == "which?" + "".join(
        f"\n{label}. {text}" for label, text in zip(labels, COLOURS, strict=True)
    )
    (as_stored,) = posed(ws, Choice(options="own"))
    assert as_stored.answer in (labels[1], "green") and as_stored.answer in as_stored.options


def test_numbers_as_options(ws: Workspace, tmp_path: Path) -> None:
    """A number that is an option's text is that option; another one counts from 0."""
    rows = [
        {"prompt": "7 + 2", "completion": "9", "choices": [5, 9, 1]},
        {"prompt": "1", "completion": "0", "choices": [5, 9]},
    ]
    stored(ws, tmp_path, rows)
    assert [q.answer for q in posed(ws, Choice())] == ["9", "5"]


def test_a_worked_answer_with_the_number_beside_it(ws: Workspace, tmp_path: Path) -> None:
    rows = [{"instruction": "which?", "output": "Think.", "choices": COLOURS, "answer_idx": 2}]
    stored(ws, tmp_path, rows)
    (question,) = posed(ws, Choice())
    assert question.answer == "blue"
    (plain,) = posed(ws, Loss())
    assert plain.answer == "Think."


def test_examples_are_posed_as_the_question_is(ws: Workspace, tmp_path: Path) -> None:
    stored(ws, tmp_path, [{"question": "which?", "choices": COLOURS, "answer": 1}])
    stored(ws, tmp_path, [{"question": "who?", "choices": ["me", "you"], "answer": 0}], split="val")
    (question,) = posed(ws, Choice(listed="no", answer_by="text"), shots=1)
    assert [m["content"] for m in question.shots] == ["who?", "me"]
    (question,) = posed(ws, Choice(), shots=1)
    assert [m["content"] for m in question.shots] == ["who?\nA. me\nB. you", "A"]


def test_other_questions_answers_are_never_offered_in_silence(ws: Workspace, tmp_path: Path, lm: LanguageModel) -> None:
    rows = [{"question": f"{n}?", "answer": answer, "kind": "k"} for n, answer in enumerate("bcb")]
    stored(ws, tmp_path, rows, subtask="kind")
    found = {how: Choice(options=how) for how in ("auto", "own", "subtask")}  # type: ignore[arg-type]
    results = {how: metric.evaluate(lm, posed(ws, metric)) for how, metric in found.items()}
    assert "the questions have no options of their own" in results["auto"].note and not any(results["auto"].error)
    assert all("has no options of its own" in why for why in results["own"].error) and not results["own"].note
    assert not any(results["subtask"].error) and not results["subtask"].note
    assert [q.options for q in posed(ws, found["subtask"])] == [("b", "c")] * 3

    stored(
        ws, tmp_path, [*rows, {"question": "which?", "answer": "x", "options": ["x", "y"], "kind": "k"}], subtask="kind"
    )
    mixed = Choice().evaluate(lm, posed(ws, Choice()))
    assert [bool(why) for why in mixed.error] == [True, True, True, False] and not mixed.note
    (*_, own) = posed(ws, Choice(options="subtask"))
    assert own.options == ("b", "c", "x")  # one protocol for all

    done = curate.evaluate(ws, "base", [EvalSpec("t", Choice(options="subtask"))], model="tiny")
    assert done.evaluations[0]["settings"] == "options=subtask" and done.evaluations[0]["judged"] == 4
    with pytest.raises(CurateError, match="options"):
        curate.kinds.registry.make("metric", "choice", {"options": "others"})
