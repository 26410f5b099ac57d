"""Which tokens are supervised: by templates of several families, marked, refused, cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode, render
from tests.support.models import chat, raw, scored
from tests.support.templates import FAMILIES, FORGETFUL, MARKED


def turns(tokenizer: Any, messages: Any) -> tuple[str, list[tuple[int, int]]]:
    shown = render(tokenizer, messages)
    assert not shown.partial
    return shown.text, shown.spans


@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistants_turns_are_supervised_and_nothing_else(tiny: LanguageModel, family: str) -> None:
    template, end = FAMILIES[family]
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = template
    # The answers stand in the questions too, and are such that a search of the text would find them elsewhere.
    talk = chat("say user, or assistant", "assistant", "assistant, or [/INST] user?", "say user")
    text, spans = turns(tokenizer, talk["messages"])
    assert [text[a:b].strip() for a, b in spans] == [f"assistant{end}", f"say user{end}"]
    (one,) = encode(tokenizer, [talk], 512)
    assert not one.error
    said = tokenizer.decode(one.ids[one.supervised])
    assert said.replace(" ", "") == f"assistant{end}sayuser{end}".replace(" ", "")


def test_a_template_that_marks_the_assistants_words_is_believed(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = MARKED
    text, spans = turns(tokenizer, chat("a", "bc", "d", "e")["messages"])
    assert text == "U:a\nA:bc!\nU:d\nA:e!\n" and [text[a:b] for a, b in spans] == ["bc!", "e!"]


def test_a_template_that_takes_a_turn_back_is_read_as_it_stands_in_the_whole(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = FORGETFUL
    text, spans = turns(tokenizer, chat("a", "b", "c", "d")["messages"])
    assert text == "user: a\nassistant: b\nuser: c\nassistant: (thinks) d\n"
    assert [text[start:stop] for start, stop in spans] == ["b", "(thinks) d"]


def test_a_template_that_refuses_gives_its_own_reason(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = FAMILIES["mistral"][0]
    system = {"text": None, "messages": [{"role": "system", "content": "x"}, *chat("a", "b")["messages"]]}
    (refused,) = encode(tokenizer, [system], 512)
    assert "only user and assistant here" in refused.error


def test_a_model_without_a_template_gets_a_plain_one(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = None
    text, spans = turns(tokenizer, chat("a", "b", "c", "d")["messages"])
    assert text == "<|begin|>a\nb<|end|>\nc\nd<|end|>"
    assert [text[a:b] for a, b in spans] == ["b<|end|>", "d<|end|>"]


def test_what_has_nothing_to_score_has_a_reason_and_leaves_the_others_alone(tiny: LanguageModel) -> None:
    long = chat("long", "x " * 2000)
    given = [chat("a?", "b."), chat("only a question"), raw(""), long]
    columns = scored(tiny, given)["nll"]
    assert "no assistant's turn" in columns["error"][1] and "or no text" in columns["error"][2]
    assert np.isnan(columns["score"][[1, 2]]).all()
    alone = scored(tiny, given[:1])["nll"]
    assert abs(alone["score"][0] - columns["score"][0]) < 1e-5


def test_a_sample_over_the_context_is_cut_and_counted_or_refused(tiny: LanguageModel) -> None:
    long, short = chat("long", "x " * 2000), chat("a?", "b.")
    passes = {"nll": Nll().passes(None)[0]}
    columns, usage = score_samples({"base": tiny}, [long, short], passes)
    assert usage.cut == 1 and np.isfinite(columns["nll"]["score"]).all()
    refusing = LanguageModel(ModelChoice("tiny", too_long="refuse", context=100))
    columns, usage = score_samples({"base": refusing}, [long, short], passes)
    assert "more than the context of 100" in columns["nll"]["error"][0] and usage.cut == 0
    with pytest.raises(CurateError, match="more than the 512 tokens"):
        LanguageModel(ModelChoice("tiny", context=1000))
