"""Real chat templates, as TRL ships them, × kinds of conversation: what is rendered, and what of it is supervised."""

from __future__ import annotations

import copy
import json
import re
import sys
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from curate.errors import CurateError
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice, prints_date
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.rendering import Template, Unrenderable, as_given
from curate.models.tokens import encode, render
from curate.tables.inputs import changed_settings, model_recipe

TRL = find_spec("trl")
PLACES = list(TRL.submodule_search_locations or ()) if TRL else []
FOLDER = Path(PLACES[0]) / "chat_templates" if PLACES else None
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja") if "_training" not in p.stem) if FOLDER else []
SPECIAL = re.compile(r"<\|\w+\|>|</s>|<s>|<(?:end|start)_of_turn>|<｜[^｜>]+｜>|<\|?turn\|?>|<end_of_utterance>")
CALL = [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}, "id": "abcdef123"}]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "extra": json.dumps(more) if more else None}


def thinks(content: str, thought: str) -> dict[str, Any]:
    return says(content, reasoning_content=thought, thinking=thought)


TOOL = {
    "role": "tool",
    "content": "Sunny.",
    "extra": json.dumps({"name": "get_weather", "tool_call_id": "abcdef123"}),
}
CONVERSATIONS = {
    "one turn": [user("What is 1+1?"), says("Two.")],
    "system": [{"role": "system", "content": "Be kind."}, user("What is 1+1?"), says("Two.")],
    "turns": [user("Name a city."), says("Paris."), user("And another?"), says("Rome.")],
    "reasoning": [
        user("Name a city."), thinks("Paris.", "I know France."), user("Another?"), thinks("Rome.", "I know Italy."),
    ],
    "reasoning in the content": [
        user("Name a city."), says("<think>\nI know France.\n</think>\n\nParis."),
        user("Another?"), says("<think>\nI know Italy.\n</think>\n\nRome."),
    ],
    "a call": [user("Weather in Paris?"), says("", tool_calls=CALL), TOOL, says("It is lovely.")],
    "the assistant first": [says("Welcome."), user("Name a city."), says("Paris.")],
    "a question last": [user("Name a city."), says("Paris."), user("And another?")],
}  # fmt: skip


@cache
def plain_tokenizer() -> Any:
    return load(ModelChoice("tiny"))[1]


def tokenizer_with(name: str) -> Any:
    assert FOLDER is not None
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    special = sorted(set(SPECIAL.findall(tokenizer.chat_template)))  # as the model's own tokenizer has them
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_renders_is_supervised_where_it_stands(name: str, kind: str) -> None:
    tokenizer, messages = tokenizer_with(name), CONVERSATIONS[kind]
    try:
        shown = render(tokenizer, messages)
    except Unrenderable as refused:
        assert str(refused).startswith("its chat template refuses it: "), "a reason of ours, and not the template's"
        return
    if len(shown.spans) < sum(message["role"] == "assistant" for message in messages):
        assert shown.partial
    assert not shown.partial or kind == "a call"  # a template without tools
    supervised = [shown.text[start:stop] for start, stop in shown.spans]
    assert all(a[1] <= b[0] for a, b in zip(shown.spans, shown.spans[1:], strict=False))
    outside = "".join(shown.text[a:b] for a, b in gaps(shown.spans, len(shown.text)))
    for message in messages:
        content = message["content"].rpartition("</think>")[2].strip()
        if message["role"] == "assistant" and content:
            assert any(content in turn for turn in supervised), content
        elif message["role"] != "assistant":
            assert not any(content in turn for turn in supervised), content
    assert "Paris." not in outside and "Rome." not in outside and "Two." not in outside


PADDED = [user("Name a city. "), says("  Paris. \n"), user(" And another?\n"), says("Rome.\t")]


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("name", NAMES)
def test_white_space_around_contents_moves_no_turn(name: str) -> None:
    tokenizer = tokenizer_with(name)
    bare, padded = (
        render(tokenizer, chat) for chat in ([dict(m, content=m["content"].strip()) for m in PADDED], PADDED)
    )
    shown = [["".join(r.text[a:b].split()) for a, b in r.spans] for r in (bare, padded)]
    assert shown[0] == shown[1] and len(shown[0]) == 2


def test_an_end_that_only_the_last_turn_has_is_not_looked_for_in_what_follows() -> None:
    """Of plain words: earlier answers end with nothing, the last with a word, and blanks move no end."""
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] }}{{ ' (over)' if loop.last else '' }}"
        "{% endfor %}{{ '\nassistant: ' if add_generation_prompt else '' }}"
    )
    shown = render(tokenizer, [user("a city"), says("Paris "), user("more"), says("Rome")])
    assert [shown.text[a:b].strip() for a, b in shown.spans] == ["Paris", "Rome (over)"]


@pytest.mark.parametrize("place", ["tools", "a call"])
def test_a_number_that_python_does_not_print_is_a_reason_and_no_end_of_the_run(place: str) -> None:
    number = "9" * (sys.get_int_max_str_digits() + 1)
    said = f'{{"tool_calls":[{{"function":{{"name":"f","arguments":{{"a":{number}}}}}}}]}}'
    call = {"role": "assistant", "content": "", "extra": said if place == "a call" else None}
    kwargs = f'{{"tools":[{{"name":"f","a":{number}}}]}}' if place == "tools" else None
    samples = [{"messages": [user("q"), call, says("a")], "text": None, "template_kwargs": kwargs}] * 2
    samples[1] = {"messages": CONVERSATIONS["one turn"], "text": None}
    first, second = encode(plain_tokenizer(), samples, 512)
    assert "has an integer of more than 4,300 digits, which no template prints" in first.error and not second.error


def gaps(spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for span in spans for edge in span), length]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize("kind", [kind for kind in CONVERSATIONS if kind != "a call"])
@pytest.mark.parametrize("name", ["llama3", "llama3_2", "qwen2_5", "gemma", "cohere2", "lfm2", "qwen3_instruct_2507"])
def test_marks_and_prefixes_show_the_same_turns_where_both_do(name: str, kind: str) -> None:
    template, chat = Template(tokenizer_with(name)), [as_given(message) for message in CONVERSATIONS[kind]]
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    try:
        text = template.text(chat)
    except Unrenderable:
        return
    prefixes, marks = template._by_prefixes(chat, text, turns), template._by_marks(chat, text, turns)
    assert marks is not None and (prefixes is None) == (kind == "the assistant first")
    assert prefixes is None or marks == prefixes


@pytest.mark.skipif(not NAMES, reason="trl with its chat templates is not installed (pip install trl)")
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("qwen3", "turns", ["Paris.<|im_end|>", "<think>\n\n</think>\n\nRome.<|im_end|>"]),
        ("qwen3", "reasoning", ["Paris.<|im_end|>", "<think>\nI know Italy.\n</think>\n\nRome.<|im_end|>"]),
        ("qwen3", "reasoning in the content",
         ["Paris.<|im_end|>", "<think>\nI know Italy.\n</think>\n\nRome.<|im_end|>"]),
        (
            "qwen3",
            "a call",
            [
                '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
                "<think>\n\n</think>\n\nIt is lovely.<|im_end|>",
            ],
        ),
        ("deepseek_r1_distill", "turns", ["Paris.<｜end▁of▁sentence｜>", "Rome.<｜end▁of▁sentence｜>"]),
        ("deepseek_r1_distill", "a call", ["It is lovely.<｜end▁of▁sentence｜>"]),
        ("gptoss", "turns", ["<|channel|>final<|message|>Paris.<|end|>", "<|channel|>final<|message|>Rome.<|return|>"]),
        (
            "gptoss",
            "reasoning",
            [
                "<|channel|>final<|message|>Paris.<|end|>",
                "<|channel|>analysis<|message|>I know Italy.<|end|><|start|>assistant<|channel|>final<|message|>Rome."
                "<|return|>",
            ],
        ),
        ("glm4moe", "reasoning", ["\n<think></think>\nParis.", "\n<think>I know Italy.</think>\nRome."]),
        ("nemotron_3_nano", "one turn", ["</think>Two.<|im_end|>"]),
        ("llama3_2", "the assistant first", ["Welcome.<|eot_id|>", "Paris.<|eot_id|>"]),
        ("qwen2_5", "the assistant first", ["Welcome.<|im_end|>", "Paris.<|im_end|>"]),
        ("smolvlm", "turns", [" Paris.<end_of_utterance>", " Rome.<end_of_utterance>"]),
    ],
)  # fmt: skip
def test_turns_written_out(name: str, kind: str, expected: list[str]) -> None:
    shown = render(tokenizer_with(name), CONVERSATIONS[kind])
    assert [shown.text[start:stop] for start, stop in shown.spans] == expected


def test_a_date_in_a_template_is_the_setting_s_and_never_today_s() -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% set year = strftime_now(\"%Y\") %} ({{ year }})\n"
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt else '' }}"
    )
    messages = CONVERSATIONS["one turn"]
    assert render(tokenizer, messages).text.startswith("26 Jul 2024 (2024)\n")
    assert render(tokenizer, messages, date(2031, 2, 3)).text.startswith("03 Feb 2031 (2031)\n")
    tokenizer.chat_template = "{{ strftime_now(messages[0]['content']) }}"
    with pytest.raises(Unrenderable, match="prints today's date in a form that cannot be fixed"):
        render(tokenizer, messages)


def test_only_a_template_that_prints_the_date_makes_it_part_of_the_recipe(tmp_path: Path) -> None:
    assert not prints_date(ModelChoice("tiny")) and not model_recipe(ModelChoice("tiny", date="2031-02-03")).date
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    recipe = model_recipe(ModelChoice("tiny", chat_template=str(template)))
    assert recipe.date == "2024-07-26" and recipe.shape()["date"] == "2024-07-26"
    later = model_recipe(ModelChoice("tiny", chat_template=str(template), date="2031-02-03"))
    assert changed_settings(later) == {"chat_template": str(template), "date": "2031-02-03"}
    with pytest.raises(CurateError, match="model.date is a date as 2024-07-26, not 'today'"):
        ModelChoice("tiny", date="today")


def test_of_several_templates_by_name_the_default_is_used() -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{{ '' if add_generation_prompt else '' }}"
    tokenizer.chat_template = {"default": template, "rag": "{{ raise_exception('not this one') }}"}
    assert render(tokenizer, CONVERSATIONS["one turn"]).text == "What is 1+1?\nTwo.\n"
    tokenizer.chat_template = {"rag": template}
    with pytest.raises(Unrenderable, match="its chat templates are rag, and none is the default"):
        render(tokenizer, CONVERSATIONS["one turn"])


SHOUTS = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{{ (m['content'] | upper)[:5] if m['role'] == 'assistant' and not loop.last else m['content'] }}\n{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt else '' }}"
)


def test_what_cannot_be_located_is_not_supervised_and_counted() -> None:
    """Earlier answers are shown in other words, so that no mark comes through."""
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = SHOUTS
    messages = [user("a city"), says("Paris is one."), user("more"), says("Rome is another.")]
    shown = render(tokenizer, messages)
    assert shown.partial and [shown.text[a:b] for a, b in shown.spans] == ["Rome is another."]
    sample = {"messages": messages, "text": None}
    (encoded,) = encode(tokenizer, [sample], 512)
    assert encoded.partial and not encoded.error
    model = LanguageModel(ModelChoice("tiny"))
    model.tokenizer.chat_template = SHOUTS
    columns, usage = score_samples({"base": model}, [sample], {"nll": Nll().passes(None)[0]})
    assert usage.partial == 1 and not columns["nll"]["error"][0]


def test_where_nothing_can_be_located_there_is_a_reason() -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{{ messages | length }}\n{% endfor %}"
    with pytest.raises(Unrenderable, match="does not show where the assistant's turns begin and end"):
        render(tokenizer, CONVERSATIONS["turns"])
