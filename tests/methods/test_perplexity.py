"""Perplexity of documents and of corpora, and averages over sub-tasks, against slow references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.kinds.metric import EvalResult, Question
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.loss import Loss
from curate.methods.metrics.perplexity import Perplexity
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.runs.evaluation import EvalSpec, questions
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.support.narrow import NARROW

CONTEXT = 24
TEXTS = ["the mill turns and the river runs " * 9, "a tree", "one two three four five six seven " * 4, ""]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(ModelChoice(NARROW, device="cpu", context=CONTEXT))


@pytest.fixture(scope="module")
def slow() -> Any:
    return LanguageModel(ModelChoice(NARROW, device="cpu")).model.double()


def chat(text: str) -> Question:
    return Question(
        [{"role": "user", "content": "say it", "extra": None}, {"role": "assistant", "content": text, "extra": None}]
    )


def slowly(slow: Any, ids: list[int], supervised: list[bool], stride: int) -> list[float]:
    """The loss of every supervised token, one by one: its window is the first one that reaches as far as it."""
    losses = []
    for t in (t for t, wanted in enumerate(supervised) if wanted):
        begin = next(begin for begin in range(0, len(ids), stride) if begin + CONTEXT > t)
        with torch.no_grad():
            logits = slow(input_ids=torch.tensor([ids[begin:t]])).logits[0, -1].double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[ids[t]]))
    return losses


@pytest.mark.parametrize("stride", [1, 7, CONTEXT - 1])
@pytest.mark.parametrize("over", ["documents", "tokens"])
def test_windows_score_every_token_once(stride: int, over: Any, lm: LanguageModel, slow: Any) -> None:
    asked = [Question(None, text) for text in TEXTS[:3]] + [chat("the mill turns " * 12), chat("yes")]
    result = Perplexity(over=over, stride=stride).evaluate(lm, asked)
    each = []
    for question in asked:
        (item,) = encode(lm.tokenizer, [question.sample()], 10_000, view="last")
        each.append(slowly(slow, item.ids.tolist(), item.supervised.tolist(), stride))
    assert max(map(len, each)) > 2 * CONTEXT
    assert np.log(result.values).tolist() == pytest.approx([np.mean(losses) for losses in each], abs=1e-5)
    spec = EvalSpec("t", Perplexity(over=over, stride=stride))
    value = spec.metric.summary(result.values)
    if over == "tokens":
        assert result.weights is not None and result.weights.tolist() == [len(losses) for losses in each]
        value = spec.metric.weighted(result.values, result.weights)
        assert np.log(value) == pytest.approx(np.mean(np.concatenate(each)), abs=1e-5)
    else:
        assert np.log(value) == pytest.approx(np.mean([np.mean(losses) for losses in each]), abs=1e-5)


def test_windows_of_short_texts_are_the_texts(lm: LanguageModel) -> None:
    asked = [Question(None, TEXTS[1]), chat("yes"), Question(None, "")]
    whole, windows = Perplexity().evaluate(lm, asked), Perplexity(stride=5).evaluate(lm, asked)
    assert windows.values[:2] == pytest.approx(whole.values[:2], rel=1e-5)
    assert whole.error[2] and windows.error[2] and not windows.note and not whole.note


def test_a_text_that_is_cut_is_said_and_a_stride_that_is_none_refused(lm: LanguageModel) -> None:
    cut = Perplexity().evaluate(lm, [Question(None, TEXTS[0])])
    assert "longer texts were cut to the context of 24 tokens; perplexity.stride=N reads them whole" in cut.note
    for stride in (CONTEXT, 100):
        with pytest.raises(CurateError, match="it is from 1 to 23"):
            Perplexity(stride=stride).evaluate(lm, [Question(None, TEXTS[0])])
    with pytest.raises(CurateError, match="stride"):
        Perplexity(stride=-1)


def test_settings_that_came_later_leave_stored_results_valid() -> None:
    assert Perplexity().shaping() == {} and Perplexity(stride=4).shaping() == {"stride": 4}
    assert ExactMatch().shaping() == ExactMatch().settings()


# --- averages --------------------------------------------------------------------------------------------


@pytest.fixture
def languages(ws: Workspace, tmp_path: Path) -> Workspace:
    rows = [{"question": f"{k}?", "answer": text, "lang": lang} for k, (lang, text) in enumerate(_SAID)]
    curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", rows), split="test", subtask="lang")
    return ws


_SAID = [
    ("de", "ja"),
    ("de", "der Fluss"),
    ("de", "die Mühle dreht"),
    ("en", "yes"),
    ("fr", "oui"),
    ("fr", "la rivière"),
]


@pytest.mark.parametrize("metric", [Loss(), Perplexity(), Perplexity(over="tokens")])
def test_a_macro_average_is_the_mean_of_the_sub_tasks(metric: Any, languages: Workspace) -> None:
    model = ModelChoice(NARROW, device="cpu")
    evals = [EvalSpec("t", metric, average=average) for average in ("micro", "macro")]  # type: ignore[arg-type]
    done = curate.evaluate(languages, "base", evals, model=model)
    micro, macro = done.evaluations
    assert (micro["settings"], macro["settings"]) == tuple(
        ", ".join(filter(None, ["over=tokens" if getattr(metric, "over", "") == "tokens" else "", more]))
        for more in ("", "average=macro")
    )
    asked = [question for _, question in questions(languages, evals[0])]
    result: EvalResult = metric.evaluate(LanguageModel(model), asked)
    tokens = result.weights if result.weights is not None else np.ones(6)
    scale, back = (np.log, np.exp) if isinstance(metric, Perplexity) else (np.asarray, float)
    means, of = {}, np.array([lang for lang, _ in _SAID])
    for lang in ("de", "en", "fr"):
        own = of == lang
        means[lang] = back((scale(result.values[own]) * tokens[own]).sum() / tokens[own].sum())
    assert micro["value"] == pytest.approx(back((scale(result.values) * tokens).sum() / tokens.sum()))
    assert macro["value"] == pytest.approx(sum(means.values()) / 3) and macro["value"] != pytest.approx(micro["value"])
    rows = [(row["subtask"], row["judged"]) for row in done.subtasks]
    assert rows == [("de", 3), ("en", 1), ("fr", 2)] * 2
    assert [row["value"] for row in done.subtasks] == pytest.approx([*means.values()] * 2)


def test_an_average_that_is_none_is_refused() -> None:
    with pytest.raises(CurateError, match="micro or macro, not 'mean'"):
        EvalSpec("t", Loss(), average="mean")  # type: ignore[arg-type]


def test_the_command_line_averages(languages: Workspace, cli: Any) -> None:
    done = cli("evaluate", "base", "--model", "tiny", "--target", "t", "--average", "macro", ws=languages)
    assert done.returncode == 0, done.stderr
    assert "sub-task" in done.stdout and "fr" in done.stdout
