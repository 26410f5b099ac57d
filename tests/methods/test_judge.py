"""A model's opinion by the probabilities of its answers: against one sample at a time, and questions of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.kinds.asking import Question, ready
from curate.kinds.registry import help_text, make
from curate.methods.scores.judge import Judge
from curate.methods.scores.nll import Nll
from curate.models.asked import Asking
from curate.models.choice import TINY, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.shared_pass import SharedPass
from curate.models.tokens import Sample
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.support.narrow import NARROW

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*turns: str) -> Sample:
    roles = ("user", "assistant")
    return {
        "text": None,
        "messages": [{"role": roles[i % 2], "content": t, "extra": None} for i, t in enumerate(turns)],
    }


SAMPLES: list[Sample] = [
    chat("What is 17 + 25?", "17 + 25 = 42."),
    chat("Name a fruit.", "An apple.", "Another one.", "A pear, which is {answer} and <|im_end|> too."),
    {"messages": None, "text": "A raw text without any question in it."},
    *(chat(f"What is {i} + {i}?", f"It is {i * 2}. " * (1 + i % 7)) for i in range(40)),
]


def judged(lm: LanguageModel, method: Judge, samples: list[Sample], target: Any = None) -> dict[str, np.ndarray]:
    (step,) = method.passes(target)
    return dict(score_samples({"base": lm}, samples, {"x": step})[0]["x"])


def one_at_a_time(lm: LanguageModel, method: Judge, sample: Sample) -> tuple[float, float]:
    """The score and what is unanswered, from the whole question's own logits in float64; the prompt by transformers."""
    asks = method.asks
    said = sample["messages"] or []
    answer = said[-1]["content"] if said else sample["text"]
    whole = "\n".join(f"{m['role']}: {m['content']}" for m in said) if said else sample["text"]
    before, field, after = next(
        (asks.question.partition(name) for name in ("{sample}", "{answer}") if name in asks.question), ("", "", "")
    )
    text = before + (whole if field == "{sample}" else answer) + after
    if lm.tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    def tokens(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=not lm.tokenizer.chat_template)["input_ids"])

    ids = tokens(text)
    with torch.inference_mode():
        p = lm.model.double()(torch.tensor([ids])).logits[0, -1].softmax(0)
    firsts = []
    for spellings in asks.answers:
        longer = [text + space + spelling for spelling in spellings for space in ("", " ")]
        options = {tokens(one)[len(ids)] for one in longer}
        firsts.append(sum(float(p[t]) for t in options if lm.tokenizer.decode([t]).strip()))
    total = sum(firsts)
    return sum(v * q for v, q in zip(asks.values, firsts, strict=True)) / total, 1 - total


@pytest.mark.parametrize("question", ["informative", "quality", "own"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_it_is_what_one_question_at_a_time_gives(question: str, template: str | None, tmp_path: Path) -> None:
    if question == "own":
        question = str(tmp_path / "own.toml")
        Path(question).write_text(
            'question = "Is this red: {answer}? Say"\nanswers = ["red", "blue"]\nvalues = [2, -1]'
        )
    lm = LanguageModel(ModelChoice(str(TINY), dtype="float32"))
    lm.tokenizer.chat_template = template
    method = Judge(question=question)
    plain = [s for s in SAMPLES if "<|im_end|>" not in str(s)]
    found = judged(lm, method, plain)
    alone = np.array([one_at_a_time(lm, method, sample) for sample in plain])
    np.testing.assert_allclose(found["score"], alone[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["unanswered"], alone[:, 1], atol=1e-5)
    assert not any(found["error"])


def test_what_questions_begin_with_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, method = LanguageModel(ModelChoice(NARROW)), Judge()
    (step,) = method.passes(None)
    together, usage = score_samples({"base": lm}, SAMPLES, {"x": step})
    monkeypatch.setattr(SharedPass, "batches", lambda *_: iter(()))
    apart, whole = score_samples({"base": lm}, SAMPLES, {"x": step})
    np.testing.assert_allclose(together["x"]["score"], apart["x"]["score"], atol=1e-5)
    assert usage.flops < 0.5 * whole.flops and usage.tokens < 0.5 * whole.tokens


def test_answers_are_found_behind_a_space_and_two_that_begin_alike_are_refused() -> None:
    lm = LanguageModel(ModelChoice(NARROW))

    def asking(*answers: str) -> Asking:
        question = Question(
            "Is it so? {sample} Say", tuple((a,) for a in answers), tuple(map(float, range(len(answers))))
        )
        (step,) = _with(question).passes(None)
        return Asking(lm.tokenizer, step.requests["asked"].view, lm.choice.today, "text")  # type: ignore[arg-type]

    for own in asking("yes", "no").answers():
        assert own and all(lm.tokenizer.decode([token]).strip() for token in own)
    with pytest.raises(CurateError, match="begin with the same token of this model"):
        asking("yes", "yes, surely").answers()


def _with(question: Question) -> Judge:
    method = Judge()
    object.__setattr__(method, "_asks", question)
    return method


def test_texts_do_not_become_fields_or_control_tokens() -> None:
    lm = LanguageModel(ModelChoice(NARROW))
    (step,) = Judge().passes(None)
    asking = Asking(lm.tokenizer, step.requests["asked"].view, lm.choice.today, "text")  # type: ignore[arg-type]
    (encoded,) = asking.encoded([SAMPLES[1]], 4096, "cut")
    shown = lm.tokenizer.decode(encoded.ids)
    assert "{answer} and" in shown and "user: Name a fruit.\nassistant: An apple." in shown
    named = chat("x", f"a {lm.tokenizer.eos_token} b")
    special = {*lm.tokenizer.all_special_ids}
    (plain,), (hidden,) = (asking.encoded([s], 4096, "cut") for s in (chat("x", "a b"), named))
    count = [sum(int(t) in special for t in item.ids) for item in (plain, hidden)]
    assert count[0] == count[1] and lm.tokenizer.eos_token in lm.tokenizer.decode(hidden.ids)


def test_of_a_long_sample_the_end_is_left_out_and_never_the_question() -> None:
    lm = LanguageModel(ModelChoice(NARROW))
    (step,) = Judge().passes(None)
    asking = Asking(lm.tokenizer, step.requests["asked"].view, lm.choice.today, "text")  # type: ignore[arg-type]
    long = chat("Count.", "one two three " * 3000)
    room = asking.in_common() + 200
    (cut,), (refused,) = (asking.encoded([long], room, how) for how in ("cut", "refuse"))
    assert cut.cut and room - 60 < len(cut.ids) <= room and "Reply with one digit" in lm.tokenizer.decode(cut.ids)
    assert "more than the context" in refused.error
    (none,) = asking.encoded([long], 20, "cut")
    assert none.error.startswith("the question alone has")


def test_what_has_no_prompt_or_no_text_is_null_with_the_reason(school_ws: Workspace, tmp_path: Path) -> None:
    rows = [{"text": "raw"}, {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "yes"}]}]
    curate.ingest(school_ws, [write_jsonl(tmp_path / "more.jsonl", rows)])
    curate.score(school_ws, Judge(question="complexity"), models=NARROW)
    found = curate.sql(
        school_ws, "SELECT judge_error e, count(*) n FROM samples WHERE judge IS NULL GROUP BY 1 ORDER BY 1"
    )
    assert [r["e"] for r in found] == ["has no prompt to ask about", "has no prompt: it is raw text"]


def test_the_target_is_asked_for_where_the_question_shows_it(school_ws: Workspace) -> None:
    teaches = Judge(question="teaches", examples=2)
    with pytest.raises(CurateError, match="needs a target"):
        curate.score(school_ws, teaches, models=NARROW)
    with pytest.raises(CurateError, match="uses a target"):
        curate.score(school_ws, Judge(), target="facts", models=NARROW)
    (facts,) = curate.score(school_ws, teaches, target="facts", models=NARROW)
    assert facts.name == "judge_facts" and facts.nulls == 0
    (row,) = curate.sql(
        school_ws, "SELECT count(DISTINCT judge_facts) n, min(judge_facts) a, max(judge_facts) b FROM samples"
    )
    assert row["n"] > 100 and 0 < row["a"] < row["b"] < 1


def test_another_text_under_the_same_file_name_is_another_score(school_ws: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('question = "Good? {sample}"\nanswers = ["yes", "no"]\nvalues = [1, 0]')
    curate.score(school_ws, Judge(question=str(file)), models=NARROW)
    assert curate.score(school_ws, Judge(question=str(file)), models=NARROW)[0].computed == 0
    file.write_text('question = "Bad? {sample}"\nanswers = ["yes", "no"]\nvalues = [0, 1]')
    with pytest.raises(CurateError, match="was made with says="):
        curate.score(school_ws, Judge(question=str(file)), models=NARROW)


def test_a_dry_run_foresees_the_shared_beginning_and_the_ledger_one_row(school_ws: Workspace) -> None:
    planned = curate.score(school_ws, Judge(), Nll(), models=NARROW, dry_run=True)
    curate.score(school_ws, Judge(), Nll(), models=NARROW)
    (row,) = [r for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert row["name"] == "judge, nll"
    assert row["flops"] == pytest.approx(sum(p.planned[0]["flops"] for p in planned), rel=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question = ", "is not TOML"),
        ('answers = ["a", "b"]\nvalues = [1, 0]', "needs `question`"),
        ('question = "no field"\nanswers = ["a", "b"]\nvalues = [1, 0]', "needs `question`"),
        ('question = "only {examples}"\nanswers = ["a", "b"]\nvalues = [1, 0]', "needs `question`"),
        ('question = "{sample}"\nanswers = ["a"]\nvalues = [1]', "two or more words"),
        ('question = "{sample}"\nanswers = ["a", 2]\nvalues = [1, 2]', "two or more words"),
        ('question = "{sample}"\nanswers = ["a", "b"]\nvalues = [1]', "a number for each of its 2 answers"),
        ('question = "{sample}"\nanswers = ["a", ["b", "a"]]\nvalues = [1, 0]', "the answer 'a' twice"),
        ('question = "{sample} {anwser}"\nanswers = ["a", "b"]\nvalues = [1, 0]', "did you mean 'answer'"),
        ('question = "{sample}"\nanswer = ["a"]\nvalues = [1, 0]', "the key 'answer'"),
    ],
)
def test_a_file_that_is_no_question_is_refused_by_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(CurateError, match=said):
        Judge(question=str(tmp_path / "own.toml"))


def test_ready_questions_are_all_named_in_the_help_and_others_are_suggested() -> None:
    named = help_text("score", "judge")
    assert all(f"`{name}`" in named for name in ready()) and len(ready()) == 6
    with pytest.raises(CurateError, match="did you mean 'quality'"):
        make("score", "judge", {"question": "qualty"})
    with pytest.raises(CurateError, match="there is no such file"):
        make("score", "judge", {"question": "gone.toml"})


def test_a_model_that_does_not_answer_is_said_so() -> None:
    columns = {"score": np.array([0.5]), "unanswered": np.array([0.9])}
    assert Judge().note(columns).startswith("90% of the model's probability is on none of the answers")
    assert not Judge().note({**columns, "unanswered": np.array([0.1])})
    half = Judge(question="informative", among="vocabulary")._score({"asked": {"log_p": np.log([[0.3, 0.1]])}}, {})
    assert half["score"] == pytest.approx([0.3])


@pytest.mark.slow
def test_on_five_hundred_real_rows_it_is_one_question_at_a_time(real_docs: list[str]) -> None:
    lm = LanguageModel(ModelChoice(str(TINY), dtype="float32"))
    short = [doc for doc in real_docs if len(lm.tokenizer(doc)["input_ids"]) < 250][:500]
    samples: list[Sample] = [{"messages": None, "text": doc} for doc in short]
    assert len(samples) == 500
    found = judged(lm, Judge(question="informative"), samples)
    assert not any(found["error"])
    alone = np.array([one_at_a_time(lm, Judge(question="informative"), sample) for sample in samples])
    np.testing.assert_allclose(found["score"], alone[:, 0], atol=1e-5)
