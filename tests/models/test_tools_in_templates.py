"""What a sample has beside its messages reaches the model: tools, documents, variables of the template, weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.gradients.backward import Backward
from curate.hashing import content_id
from curate.methods.scores.nll import Nll
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.rendering import Template, Unrenderable
from curate.models.tokens import encode, render
from curate.runs.config import TrainingSpec
from curate.training.settings import TrainSettings
from tests.conftest import write_jsonl
from tests.models.test_real_templates import NAMES, plain_tokenizer, says, tokenizer_with, user

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}},
    },
}
TOOLS = json.dumps({"tools": [WEATHER]})
# Templates without tools: what a sample has of them is not shown, which is told.
NO_TOOLS = {"deepseekv3"}  # shows calls, and not the tools
WITHOUT = {"deepseek_r1_distill", "idefics3", "llama3", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm", "lfm2"}


def calling(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    answer = {"name": "get_weather", "tool_call_id": "abcdef123"}
    return [
        user("Is it warm?"),
        says("", tool_calls=[call]),
        {"role": "tool", "content": "30 degrees", "extra": json.dumps(answer)},
        says("It is."),
    ]


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_supervised_however_its_arguments_are_stored_and_the_tools_are_shown(name: str) -> None:
    tokenizer = tokenizer_with(name)
    try:
        shown = render(tokenizer, calling({"city": "Oslo"}), template_kwargs=TOOLS)
    except Unrenderable as refused:
        assert str(refused).startswith("its chat template refuses it: ")
        return
    as_text = render(tokenizer, calling('{"city": "Oslo"}'), template_kwargs=TOOLS)
    assert (as_text.text, as_text.spans) == (shown.text, shown.spans)
    assert shown.partial == (name in WITHOUT | NO_TOOLS)
    supervised = "".join(shown.text[start:stop] for start, stop in shown.spans)
    assert "It is." in supervised and "30 degrees" not in supervised and "Tells the weather." not in supervised
    assert name in WITHOUT or ("get_weather" in supervised and "Oslo" in supervised)
    if not shown.partial:
        assert "Tells the weather." in shown.text
        assert "Tells" not in render(tokenizer, calling({"city": "Oslo"})).text


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "qwen3_5_think", "glm4moe"])
def test_the_text_is_what_transformers_renders(name: str) -> None:
    tokenizer, chat = tokenizer_with(name), calling({"city": "Oslo"})
    given = [
        {"role": m["role"], "content": m["content"], **json.loads(m["extra"] if m.get("extra") else "{}")} for m in chat
    ]
    dated = {"date_string": "26 Jul 2024"} if name.startswith("llama") else {}
    kwargs = json.dumps({"tools": [WEATHER], "chat_template_kwargs": dated})
    want = tokenizer.apply_chat_template(given, tools=[WEATHER], tokenize=False, **dated)
    assert render(tokenizer, chat, template_kwargs=kwargs).text == want


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
def test_variables_of_the_template_are_given_to_it_and_arguments_of_the_tokenizer_are_not() -> None:
    tokenizer, chat = tokenizer_with("qwen3"), [user("Name a city.")]
    thinking = Template(tokenizer).prompt(chat)
    quiet = Template(tokenizer).prompt(chat, json.dumps({"chat_template_kwargs": {"enable_thinking": False}}))
    assert quiet == thinking + "<think>\n\n</think>\n\n"
    refused = json.dumps({"chat_template_kwargs": {"tokenize": True, "chat_template": "x"}})
    with pytest.raises(Unrenderable, match="have chat_template, tokenize, which no template is given"):
        render(tokenizer, [*chat, says("Oslo.")], template_kwargs=refused)


@pytest.mark.parametrize(
    ("kwargs", "begins"),
    [
        ({}, "default"),
        ({"tools": [WEATHER]}, "with get_weather"),
        ({"tools": [WEATHER["function"]]}, "with get_weather"),  # bare functions, which this template does not take
        ({"documents": [{"title": "t", "text": "A fact."}]}, "from A fact."),
    ],
)
def test_of_templates_by_name_the_one_for_tools_or_documents_is_taken(kwargs: dict[str, Any], begins: str) -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    rest = "{% for m in messages %}|{{ m.role }}:{{ m.content }}{% endfor %}"
    names = "{% for tool in tools %}{{ tool['function']['name'] + '' }}{% endfor %}"
    tokenizer.chat_template = {
        "default": f"default{rest}",
        "tool_use": f"with {names}{rest}",
        "rag": f"from {{{{ documents[0].text }}}}{rest}",
    }
    shown = render(tokenizer, [user("q"), says("a")], template_kwargs=json.dumps(kwargs) if kwargs else None)
    assert shown.text.startswith(begins) and not shown.partial
    assert [shown.text[a:b] for a, b in shown.spans] == ["|assistant:a"] or shown.text[slice(*shown.spans[0])] == "a"


MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
DROPS = (  # shows the last answer otherwise than earlier ones, so that no prefix of the chat is one of its text
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '!' if loop.last else '' }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [None, MARKED, DROPS])
def test_a_turn_of_weight_0_is_shown_and_not_supervised(template: str | None) -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = template or tokenizer.chat_template
    chat = [user("one?"), says("bad answer", weight=0), user("two?"), says("good answer", weight=0.5)]
    shown = render(tokenizer, chat)
    assert "bad answer" in shown.text and "weight" not in shown.text and shown.weights == [0.5]
    (span,) = shown.spans
    assert "good answer" in shown.text[slice(*span)] and "bad" not in shown.text[slice(*span)]
    (item,) = encode(tokenizer, [{"messages": chat, "text": None}], 512)
    assert item.weight is not None and set(item.weight[item.supervised]) == {0.5}
    (plain,) = encode(tokenizer, [{"messages": [chat[0], says("bad answer"), *chat[2:]], "text": None}], 512)
    assert plain.supervised.sum() > item.supervised.sum()


def test_a_weight_multiplies_the_losses_of_its_turn_in_scores_and_gradients() -> None:
    """Against the same turns alone, in float64: half the loss of one and all of the other."""
    lm = LanguageModel(ModelChoice("tiny", dtype="float64"))
    chat = [user("one and two?"), says("it is three"), user("two and two?"), says("it is four")]

    def with_weights(a: float, b: float) -> dict[str, Any]:
        turns = [chat[0], says("it is three", weight=a), chat[2], says("it is four", weight=b)]
        return {"messages": turns, "text": None}

    samples = [with_weights(1, 0), with_weights(0, 1), with_weights(0.5, 1), with_weights(1, 1)]
    passes = {"nll": Nll().passes(None)[0]}
    columns, _ = score_samples({"base": lm}, samples, passes)
    mean, count = columns["nll"]["nll"].astype(np.float64), columns["nll"]["tokens"]
    first, second = mean[0] * count[0], mean[1] * count[1]
    assert count[3] == count[0] + count[1] == count[2]
    assert mean[2] * count[2] == pytest.approx(0.5 * first + second, rel=1e-6)
    assert mean[3] * count[3] == pytest.approx(first + second, rel=1e-6)
    backward = Backward([CheckpointChoice(lm.choice)])
    backward.lm.model.requires_grad_(True)

    def gradient(sample: dict[str, Any]) -> Any:
        ids, supervised = backward.padded(encode(lm.tokenizer, [sample], 512), 64)
        backward.lm.model.zero_grad()
        loss = backward.losses(ids, supervised)[0]
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(mean[samples.index(sample)]), rel=1e-5)
        parameters = [p.grad for p in backward.lm.model.parameters() if p.grad is not None]
        return torch.cat([g.flatten() for g in parameters]).numpy().copy()

    own, other, both = (gradient(sample) for sample in samples[:3])
    assert np.allclose(both * count[2], 0.5 * own * count[0] + other * count[1], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_nll_is_that_of_every_answer_in_the_one_whole_rendering(tools: str | None) -> None:
    """Qwen3's template drops the thought of an earlier turn; each answer is scored by a loop, in float64."""
    lm = LanguageModel(ModelChoice("tiny", dtype="float64"))
    lm.tokenizer = tokenizer_with("qwen3")
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    chat = [user("Is it warm?"), says("Yes.", reasoning_content="30 degrees."), user("Sure?"), says("I am.")]
    sample = {"messages": chat, "text": None, "template_kwargs": tools}
    columns, _ = score_samples({"base": lm}, [sample], {"nll": Nll().passes(None)[0]})
    given = [{**m, **json.loads(m.pop("extra", None) or "{}")} for m in map(dict, chat)]
    text = lm.tokenizer.apply_chat_template(given, tools=json.loads(tools)["tools"] if tools else None, tokenize=False)
    assert "30 degrees" not in text and ("Tells the weather." in text) == bool(tools)
    whole = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    losses, after = [], 0
    for answer in ("Yes.<|im_end|>", "<think>\n\n</think>\n\nI am.<|im_end|>"):
        start = text.index(answer, after)
        after = start + len(answer)
        for i, (_, end) in enumerate(whole["offset_mapping"]):
            if start < end <= after:
                with torch.no_grad():
                    logits = lm.model(input_ids=torch.tensor([whole["input_ids"][:i]])).logits[0, -1]
                losses.append(-float(torch.log_softmax(logits, -1)[whole["input_ids"][i]]))
    assert columns["nll"]["tokens"][0] == len(losses)
    assert float(columns["nll"]["nll"][0]) == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_training_multiplies_the_losses_too(tmp_path: Path) -> None:
    steps = {}
    for weight in (1, 0.5):
        turns = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "no", "weight": 0}]
        turns += [{"role": "user", "content": "?"}, {"role": "assistant", "content": "it is four", "weight": weight}]
        ws = curate.open_workspace(tmp_path / f"ws{weight}")
        told = curate.ingest(ws, [write_jsonl(tmp_path / f"{weight}.jsonl", [{"messages": turns}])])
        assert any("have a weight of their own" in warning for warning in told.warnings)
        settings = TrainSettings(steps=1, batch_size=1)
        curate.train(ws, "r", TrainingSpec(ModelChoice("tiny"), Uniform(), settings))
        steps[weight] = next(iter(curate.sql(ws, "SELECT loss, supervised, grad_norm FROM metrics")))
    assert steps[0.5]["supervised"] == steps[1]["supervised"] > 0
    assert steps[0.5]["loss"] == pytest.approx(steps[1]["loss"] / 2, rel=1e-5)
    assert steps[0.5]["grad_norm"] == pytest.approx(steps[1]["grad_norm"] / 2, rel=1e-4)


def test_tools_change_the_id_and_the_score_and_a_sample_without_keeps_its_id() -> None:
    chat = [{"role": "user", "content": "hi", "extra": None}, {"role": "assistant", "content": "hello", "extra": None}]
    assert content_id(chat, None) == content_id(chat, None, None) != content_id(chat, None, TOOLS)
    spaced = json.dumps(json.loads(TOOLS), indent=1)
    assert content_id(chat, None, TOOLS) == content_id(chat, None, spaced)
