"""Tokenising samples and marking the supervised tokens: those of the assistant's turns, or all tokens of a raw text.

A chat is rendered by the model's own template, which also shows where the turns are (curate.models.rendering).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal, TypeAlias

import numpy as np

from curate.kinds.sample_text import contents
from curate.models.control_tokens import control_tokens, without_bounds
from curate.models.rendering import DATE, Rendered, Span, Template, Unrenderable
from curate.preferences import prompt_length

# A sample: {"messages": [{"role", "content", "extra"}], "text": None, "template_kwargs": JSON text or None}, or
# {"messages": None, "text": "…"}.
Sample: TypeAlias = Mapping[str, Any]
Special: TypeAlias = Literal["auto", "text", "parse"]


@dataclass
class Encoded:
    """One tokenised sample.

    ids: int32 [n]. supervised: bool [n]; never the first token. cut: whether it was truncated to the context.
    weight: float32 [n], how much each token's loss counts, where turns have weights of their own; else None.
    partial: whether some of the assistant's turns could not be located, and are not supervised, or something of the
    sample is not shown.
    error: why it cannot go through the model, or ''.
    """

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    supervised: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cut: bool = False
    partial: bool = False
    error: str = ""
    weight: np.ndarray | None = None


def encode(
    tokenizer: Any,
    samples: Sequence[Sample],
    context: int,
    too_long: str = "cut",
    view: str = "whole",
    today: date = DATE,
    add_eos_token: bool = False,
    special_tokens: Special = "text",
) -> list[Encoded]:
    """Tokenise samples to at most `context` tokens each; too_long: 'cut' (truncate the end) or 'refuse'; view: see
    kinds.passes.ForwardRequest; today: the date that a chat template prints, if it prints one; add_eos_token: whether
    raw texts end with EOS (once, also if they have it themselves); special_tokens: whether the control tokens in what
    a sample says are text, or parsed as the template's own are (curate.models.control_tokens)."""
    as_text = special_tokens != "parse"
    if view == "text":
        return _plain(tokenizer, [contents(sample) for sample in samples], context, too_long, as_text)
    if view in ("chosen", "rejected"):
        halves = [_half(sample, view) for sample in samples]
        rest = (context, too_long, "whole", today, False, special_tokens)
        encoded = encode(tokenizer, [half or _NOTHING for half in halves], *rest)
        no_pair = Encoded(error="has no rejected answer: it is no preference pair")
        return [item if half else no_pair for item, half in zip(encoded, halves, strict=True)]
    encoded = [Encoded() for _ in samples]
    chats, hidden = _rendered(Template(tokenizer, today), samples, encoded, as_text, view == "content")
    if view in ("last", "content"):
        chats = {i: replace(chat, spans=chat.spans[-1:], weights=chat.weights[-1:]) for i, chat in chats.items()}
    raw = [i for i, sample in enumerate(samples) if sample["messages"] is None]
    _fill(encoded, raw, _documents(tokenizer, [samples[i]["text"] or "" for i in raw], add_eos_token, as_text), None)
    plain = [i for i in chats if i not in hidden]
    _fill(encoded, plain, _tokens(tokenizer, [chats[i].text for i in plain], special=False), chats)
    if hidden:
        _fill(encoded, hidden, control_tokens(tokenizer).tokens([chats[i].text for i in hidden]), chats)
    for item in encoded:
        _fit(item, context, too_long)
    return (
        [_answer(item, s, tokenizer) for item, s in zip(encoded, samples, strict=True)] if view == "answer" else encoded
    )


def _rendered(
    template: Template, samples: Sequence[Sample], encoded: list[Encoded], as_text: bool, to_content: bool
) -> tuple[dict[int, Rendered], list[int]]:
    """The chats among the samples, rendered, by their places; and the places of those whose contents have control
    tokens, which are hidden in the rendering. What cannot be rendered is said in `encoded`. to_content: only as far as
    the last answer's content."""
    chats, hidden = dict[int, Rendered](), list[int]()
    control = control_tokens(template.tokenizer) if as_text else None
    for i, sample in enumerate(samples):
        if sample["messages"] is None:
            continue
        try:
            if control and control.in_chat(sample):
                sample = control.hidden(sample)
                hidden.append(i)
            chats[i] = template.render(sample["messages"], sample.get("template_kwargs"), sample.get("start", 0))
            encoded[i].partial = chats[i].partial
            if to_content:
                chats[i] = _to_content(template, sample, chats[i])
        except Unrenderable as error:
            encoded[i].error = str(error)
    return chats, [i for i in hidden if i in chats]


def _to_content(template: Template, sample: Sample, chat: Rendered) -> Rendered:
    """A chat up to the end of its last answer's content, which a mark behind that shows. Raises Unrenderable."""
    *before, last = sample["messages"]
    for content in (last["content"] or "", (last["content"] or "").rstrip()):
        mark = "zqend"
        while mark in chat.text:
            mark += "z"
        text = template.render([*before, {**last, "content": content + mark}], sample.get("template_kwargs")).text
        end = text.rfind(mark)
        if end > chat.spans[-1][0] and chat.text.startswith(text[:end]):
            return replace(chat, text=chat.text[:end], spans=[*chat.spans[:-1], (chat.spans[-1][0], end)])
    raise Unrenderable("its chat template prints the last answer otherwise than it is written, or it is empty")


_NOTHING: Sample = {"messages": None, "text": ""}


def _half(sample: Sample, view: str) -> Sample | None:
    """One conversation of a preference pair, supervised behind the prompt (`start`); None if the sample is no pair."""
    chosen, rejected = sample["messages"], sample.get("rejected")
    if chosen is None or rejected is None:
        return None
    shown = chosen if view == "chosen" else rejected
    return {**sample, "messages": shown, "start": prompt_length(chosen, rejected)}


def weights_of(encoded: Sequence[Encoded]) -> np.ndarray | None:
    """How much each supervised token counts, float64 [S], sample after sample; None if all count 1."""
    if all(item.weight is None for item in encoded):
        return None
    one = [np.ones(len(item.ids)) if item.weight is None else item.weight for item in encoded]
    return np.concatenate([w[item.supervised] for w, item in zip(one, encoded, strict=True)]).astype(np.float64)


def marked(encoded: Sequence[Encoded]) -> dict[str, int]:
    """How many samples were cut, and of how many some turns could not be located, as fields of a Usage."""
    return {"cut": sum(item.cut for item in encoded), "partial": sum(item.partial for item in encoded)}


def _plain(tokenizer: Any, texts: list[str], context: int, too_long: str, as_text: bool) -> list[Encoded]:
    """Texts with the tokenizer's special tokens around them, which a truncated text keeps."""
    encoded = []
    tokens = _tokens(tokenizer, [text.strip() for text in texts], special=True, as_text=as_text)
    for text, (ids, _) in zip(texts, tokens, strict=True):
        item = Encoded(np.array(ids, np.int32), np.zeros(len(ids), bool))
        if not text.strip():
            item.error = "has no text"
        elif len(ids) > context and too_long == "cut":
            options = {"truncation": True, "max_length": context, "split_special_tokens": as_text}
            kept = tokenizer(text.strip(), **options)["input_ids"]
            item = Encoded(np.array(kept, np.int32), np.zeros(len(kept), bool), cut=True)
        _fit(item, context, too_long)
        encoded.append(item)
    return encoded


def _answer(encoded: Encoded, sample: Sample, tokenizer: Any) -> Encoded:
    """The supervised tokens without their context: the same token ids, since re-tokenising the answer alone could split
    it differently."""
    if sample["messages"] is None:
        return Encoded(error=encoded.error or "has no prompt: it is raw text")
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = np.concatenate([begin, encoded.ids[encoded.supervised]]).astype(np.int32)
    weight = encoded.weight
    if weight is not None:
        weight = np.concatenate([np.zeros(len(begin)), weight[encoded.supervised]]).astype(np.float32)
    error = encoded.error or ("" if len(ids) else "has no tokens")
    return Encoded(ids, np.arange(len(ids)) > 0, encoded.cut, error=error, weight=weight)


def _tokens(
    tokenizer: Any, texts: list[str], special: bool, as_text: bool = False
) -> list[tuple[list[int], list[Span]]]:
    """Token ids and offsets; special: with those that the tokenizer adds around a text; as_text: control tokens in the
    texts are text."""
    if not texts:
        return []
    # verbose=False: no warning about long texts, which are truncated later
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    encoding = tokenizer(texts, add_special_tokens=special, split_special_tokens=as_text, **options)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def _documents(
    tokenizer: Any, texts: list[str], add_eos_token: bool, as_text: bool
) -> list[tuple[list[int], list[Span]]]:
    """Raw texts in tokens, each with its bounds."""
    if not texts:
        return []
    ends = add_eos_token or tokenizer("x")["input_ids"][-1:] == [tokenizer.eos_token_id]
    begins = [list[int]() for _ in texts]
    if as_text:
        begins, texts = map(list, zip(*(without_bounds(tokenizer, text) for text in texts), strict=True))
    tokens = _tokens(tokenizer, texts, special=True, as_text=as_text)
    return [_bounded(tokenizer, begin + ids, ends) for begin, (ids, _) in zip(begins, tokens, strict=True)]


def _bounded(tokenizer: Any, ids: list[int], ends: bool) -> tuple[list[int], list[Span]]:
    """The tokens of a document with one BOS, where the tokenizer adds one to a text that has it, and one EOS or none,
    whether the text has it or not. Without offsets, which nothing asks for where all tokens are supervised."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = 1 if bos is not None and ids[:2] == [bos, bos] else 0
    stop = len(ids)
    while eos is not None and stop > start and ids[stop - 1] == eos:
        stop -= 1
    if stop == start or stop == start + 1 and ids[start] == bos:  # a document of nothing else
        return ids, []
    return ids[start:stop] + ([eos] if ends and eos is not None else []), []


def _fill(
    encoded: list[Encoded],
    places: list[int],
    tokens: list[tuple[list[int], list[Span]]],
    chats: Mapping[int, Rendered] | None,
) -> None:
    for i, (ids, offsets) in zip(places, tokens, strict=True):
        encoded[i].ids = np.array(ids, np.int32)
        ends = np.array([end for _, end in offsets] if chats else [], np.int64)
        inside = np.full(len(ids), chats is None)
        weight = np.zeros(len(ids), np.float32)
        for (start, stop), turn_weight in zip(chats[i].spans, chats[i].weights, strict=True) if chats else []:
            turn = (ends > start) & (ends <= stop)  # also a token that begins before the turn and ends in it
            inside |= turn
            weight[turn] = turn_weight
        inside[:1] = False
        encoded[i].supervised = inside
        if chats and any(turn_weight != 1 for turn_weight in chats[i].weights):
            encoded[i].weight = weight


def _fit(encoded: Encoded, context: int, too_long: str) -> None:
    n = len(encoded.ids)
    if encoded.error:
        return
    if n == 0:
        encoded.error = "has no tokens"
    elif n > context and too_long == "refuse":
        encoded.error = f"has {n} tokens, more than the context of {context}"
    elif n > context:
        encoded.ids, encoded.supervised, encoded.cut = encoded.ids[:context], encoded.supervised[:context], True
        encoded.weight = None if encoded.weight is None else encoded.weight[:context]


def prompt_ids(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    today: date = DATE,
    template_kwargs: str | None = None,
    special_tokens: Special = "text",
) -> list[int]:
    """The tokens of the messages with the generation prompt. Raises Unrenderable."""
    sample: Sample = {"messages": messages, "template_kwargs": template_kwargs}
    control = control_tokens(tokenizer)
    if special_tokens == "parse" or not control.in_chat(sample):
        text = rendered(tokenizer, messages, today, template_kwargs)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    hidden = control.hidden(sample)
    text = rendered(tokenizer, hidden["messages"], today, hidden["template_kwargs"])
    return control.tokens([text])[0][0]


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], today: date = DATE, template_kwargs: str | None = None
) -> Rendered:
    """The messages rendered by the chat template, and where the assistant's turns are. Raises Unrenderable."""
    return Template(tokenizer, today).render(messages, template_kwargs)


def rendered(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], today: date = DATE, template_kwargs: str | None = None
) -> str:
    """The messages rendered by the chat template, with the generation prompt. Raises Unrenderable."""
    return Template(tokenizer, today).prompt(messages, template_kwargs)
