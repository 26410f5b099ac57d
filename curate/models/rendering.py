"""A chat as a model's template prints it, and where in that text the assistant's turns are.

A template is any program: it may print a turn otherwise once more messages follow, drop earlier reasoning, open a
thought in the generation prompt, or end the last turn with another token. What is trained on is one whole rendering, so
the turns are located in that:

1. A template that marks the assistant's tokens itself (`{% generation %}`) is trusted.
2. If every prefix of the messages is rendered as a prefix of the whole, the bounds of the turns are these prefixes.
3. Else the messages are rendered once more with a mark at the end of every content. If taking the marks out gives the
   whole rendering, the marks show where each content ends; a turn begins behind the header that the template prints for
   the assistant (its generation prompt, as far as the whole has it), and ends behind its end-of-turn token.
4. Else only the last turn is supervised, if its prompt is a prefix of the whole.

Samples with turns that could not be located, or of which the template does not show something (calls or tools, in a
template without tools), are counted. Reasoning that it drops from an earlier turn is not in that turn. Turns of weight
0 are shown, and not supervised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any, TypeAlias

from curate.models import chat_inputs, choice
from curate.models.chat_inputs import (
    CALLING,
    PROBE,
    TOOL,
    Arguments,
    Chat,
    Kwargs,
    Unrenderable,
    as_given,
    in_parts,
)

DATE = date.fromisoformat(choice.DATE)
Span: TypeAlias = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# For models without a template: the contents, each on a line of its own; an answer ends with the EOS token.
PLAIN = (
    "{{ bos_token or '' }}"
    "{% for m in messages %}{{ m['content'] }}"
    "{{ (eos_token or '') if m['role'] == 'assistant' else '' }}{{ '' if loop.last else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt and messages %}{{ '\\n' }}{% endif %}"
)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_SHOWN = ("tools", "documents")  # keyword arguments that a template prints, or leaves out without a word
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message that templates print as reasoning


@dataclass(frozen=True)
class Rendered:
    """A rendered chat. spans: character ranges of the assistant's turns whose weight is not 0, in order. weights: of
    these turns. partial: whether some turns could not be located, or something of the sample is not shown at all."""

    text: str
    spans: list[Span]
    weights: list[float]
    partial: bool = False


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template; the date that it prints, if it prints one, since today's would make every rendering
    different from yesterday's; and its keyword arguments (tools, documents, …)."""

    tokenizer: Any
    today: date = DATE
    kwargs: Kwargs = field(default_factory=dict)

    def render(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: str | None = None, start: int = 0
    ) -> Rendered:
        """The whole chat, and where the assistant's turns are; template_kwargs: as the sample has them; start: the
        message from which on turns are supervised. Raises Unrenderable."""
        template = self._with(template_kwargs)
        weights = {
            i: chat_inputs.loss_weight(message) if i >= start else 0.0
            for i, message in enumerate(messages)
            if message["role"] == "assistant"
        }
        rendered = template._located(template._taken(messages), weights)
        hidden = not template._shows_kwargs or (_has_calls(messages) and not template._shows_calls)
        return replace(rendered, partial=True) if hidden else rendered

    def prompt(self, messages: Sequence[Mapping[str, Any]], template_kwargs: str | None = None) -> str:
        """The chat with the generation prompt. Raises Unrenderable."""
        template = self._with(template_kwargs)
        return template.text(template._taken(messages), open_turn=True)

    def _with(self, template_kwargs: str | None) -> Template:
        """The template with a sample's keyword arguments. Raises Unrenderable if they are not for a template."""
        kwargs, refused = chat_inputs.kwargs_of(template_kwargs)
        if refused:
            raise Unrenderable(f"its chat_template_kwargs have {', '.join(refused)}, which no template is given")
        if not kwargs:
            return self
        template = replace(self, kwargs=kwargs)
        if chat_inputs.has_bare_tools(kwargs):  # most templates print a tool as it is; some want it wrapped
            try:
                template.text(PROBE)
            except Unrenderable:
                return replace(self, kwargs=chat_inputs.wrapped(kwargs))
        return template

    def _taken(self, messages: Sequence[Mapping[str, Any]]) -> Chat:
        """Stored messages as this template takes them."""
        arguments: Arguments = self._takes_arguments if _has_calls(messages) else "either"
        return [as_given(message, arguments) for message in messages]

    def _located(self, chat: Chat, weights: Mapping[int, float]) -> Rendered:
        """The chat and the turns that could be located; weights: of the assistant's turns. Raises Unrenderable."""
        if _GENERATION.search(self._source()):
            return self._marked_by_itself(chat, list(weights.values()))
        text, turns = self.text(chat), list(weights)
        spans = self._by_prefixes(chat, text, turns)
        if spans is None:
            spans = self._by_marks(chat, text, turns)
        if spans is None:
            spans = self._by_prefixes(chat, text, turns[-1:])
        if spans is None:
            raise Unrenderable("its chat template does not show where the assistant's turns begin and end")
        of_spans = [weights[i] for i in spans]
        return _learnt(text, list(spans.values()), of_spans, partial=len(spans) < len(turns))

    def text(self, chat: Chat, open_turn: bool = False) -> str:
        """The chat as text; open_turn: with the generation prompt. Raises Unrenderable."""
        try:
            return self._text([in_parts(message) for message in chat] if self.takes_parts else chat, open_turn)
        except Exception as error:  # a template may raise anything, e.g. for unknown roles  # noqa: BLE001
            raise _refused(error) from None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether contents are lists of parts for it, as for models that see pictures: a plain text is refused, or left
        out without a word."""
        shown = []
        for chat in (PROBE, [in_parts(message) for message in PROBE]):
            try:
                shown.append(PROBE[0]["content"] in self._text(chat, False))
            except Exception:  # as above  # noqa: BLE001
                shown.append(False)
        return shown == [False, True]

    @cached_property
    def _takes_arguments(self) -> Arguments:
        """How it takes the arguments of calls: some templates print an object as JSON, others join a text to theirs."""
        as_text = [CALLING[0], as_given({**CALLING[1], "extra": json.dumps(CALLING[1])}, "text")]
        tries: list[tuple[Arguments, Chat]] = [("object", CALLING), ("text", as_text)]
        for arguments, chat in tries:
            with suppress(Unrenderable):
                if chat_inputs.printed_arguments(self.text(chat)):
                    return arguments
        return "either"

    @property
    def _shows_calls(self) -> bool:
        """Whether calls of tools are printed."""
        if self._takes_arguments != "either":
            return True
        try:
            return CALLING[1]["tool_calls"][0]["function"]["name"] in self.text(CALLING)
        except Unrenderable:  # of a chat that ends with a call; whether this sample's is printed is not known
            return True

    @property
    def _shows_kwargs(self) -> bool:
        """Whether tools and documents that a sample has are printed."""
        try:
            bare = replace(self, kwargs={k: v for k, v in self.kwargs.items() if k not in _SHOWN})
            probes = {"tools": [TOOL], "documents": [{"title": "zqtitle", "text": "zqtold"}]}
            given = {key: probes[key] for key in _SHOWN if self.kwargs.get(key)}
            return not given or bare.text(PROBE) != replace(self, kwargs=given).text(PROBE)
        except Unrenderable:  # of a chat without an answer; what is printed of this sample's is not known
            return True

    def _text(self, chat: Chat, open_turn: bool) -> str:
        return self.tokenizer.apply_chat_template(
            chat,
            chat_template=self._source(),
            tokenize=False,
            add_generation_prompt=open_turn,
            **self.kwargs,
        )

    def _source(self) -> str:
        """The template's text; of several by name, the one for tools or documents where there are any, else the one
        called `default`."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            names = [name for key, name in (("tools", "tool_use"), ("documents", "rag")) if self.kwargs.get(key)]
            name = next((name for name in (*names, "default") if name in template), None)
            if name is None:
                raise Unrenderable(f"its chat templates are {', '.join(template)}, and none is the default")
            template = template[name]
        return self._dated(template or PLAIN)

    def _dated(self, source: str) -> str:
        """The template with the date in place of the calls that print today's."""

        def printed(call: re.Match[str]) -> str:
            return json.dumps(self.today.strftime(call[2]))

        dated = _TODAY.sub(printed, source)
        if "strftime_now(" in dated:
            raise Unrenderable(
                "its chat template prints today's date in a form that cannot be fixed, so that it would be rendered "
                "differently every day"
            )
        return dated

    def _marked_by_itself(self, chat: Chat, weights: list[float]) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [chat],
                chat_template=self._source(),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
                **self.kwargs,
            )
        except Exception as error:  # as above  # noqa: BLE001
            raise _refused(error) from None
        located = [(int(start), int(stop)) for start, stop in spans[0]]
        if len(located) != len(weights):  # it marks parts of turns, or several as one
            if set(weights) != {1.0}:
                raise Unrenderable(
                    f"its chat template marks {len(located)} parts as the assistant's, and its {len(weights)} turns "
                    "have different weights"
                )
            weights = [1.0] * len(located)
        return _learnt(str(texts[0]), located, weights)

    # --- turns as prefixes -------------------------------------------------------------------------------

    def _by_prefixes(self, chat: Chat, text: str, turns: Sequence[int]) -> dict[int, Span] | None:
        """The spans of these turns, if the messages before each and up to each are rendered as prefixes of the whole;
        else None."""
        spans = {}
        for i in turns:
            if not i:  # what stands before the first turn is no messages, and still a header, perhaps a system prompt
                return None
            try:
                before = self.text(chat[:i], open_turn=True)
                through = text if i == len(chat) - 1 else self.text(chat[: i + 1])
            except Unrenderable:  # a template may want the messages to end, or to begin, otherwise
                return None
            if not (text.startswith(through) and through.startswith(before)):
                return None
            spans[i] = (len(before), len(through.rstrip()))  # trailing white space belongs to the template
        return spans

    # --- turns by marks ----------------------------------------------------------------------------------

    def _by_marks(self, chat: Chat, text: str, turns: Sequence[int]) -> dict[int, Span] | None:
        """The spans of the turns that the whole shows, by marks at the ends of contents; None if marks change the
        rendering. A template that takes the other roles' contents apart is tried with marks in the assistant's only."""
        for roles in (None, "assistant"):
            ends = self._ends(chat, text, roles)
            if ends is None or turns[-1] not in ends:
                continue
            spans = self._around(chat, text, turns, ends)
            if spans and (roles is None or not _holds_other(chat, text, list(spans.values()))):
                return spans
        return None

    def _ends(self, chat: Chat, text: str, role: str | None) -> dict[int, int] | None:
        """Message -> the place in `text` where its content (or reasoning, or call) ends. role: mark only its messages.

        None if marks change the rendering.
        """
        stem = _unused(text, "x")
        marks = {f"{stem}{i}e": i for i, message in enumerate(chat) if role in (None, message["role"])}
        marked = list(chat)
        for mark, i in marks.items():
            marked[i] = chat_inputs.with_mark(chat[i], mark, _THOUGHTS)
        try:
            with_marks = self.text(marked)
        except Unrenderable:
            return None
        pieces = re.split(rf"({stem}\d+e)", with_marks)
        if "".join(pieces[::2]) != text:
            return None
        ends, place = {}, 0
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            place += len(piece)
            if mark:
                ends.setdefault(marks[mark], place)  # a tool's answer may be headed by the name that was called
        return ends

    def _around(self, chat: Chat, text: str, turns: Sequence[int], ends: Mapping[int, int]) -> dict[int, Span] | None:
        """The spans around the marked ends: from the header, or else the content, to the end-of-turn token."""
        headers, spans, done = self._headers(chat, turns), dict[int, Span](), 0
        for i in range(len(chat)):
            if i not in ends:
                continue
            if i not in turns:
                done = max(done, ends[i])
            else:
                # The first header, since a thought may stand between it and another one; but behind turns that the
                # template shows nothing of, the last.
                behind_unseen = any(done_turn not in ends for done_turn in turns if done_turn < i)
                start = _behind_header(text, done, ends[i], headers, last=behind_unseen)
                start = _content_start(chat[i], text, ends[i]) if start is None else start
                if start is None:
                    return None
                following = text[ends[i] : min((ends[j] for j in ends if j > i), default=len(text))]
                done = ends[i] + self._end_of_turn(following, chat[: i + 1])
                spans[i] = (start, done)
        return spans

    def _headers(self, chat: Chat, turns: Sequence[int]) -> list[str]:
        """What a template may print before an answer: its generation prompt and, shorter, the parts of this that end a
        line or a token; the longest first. Empty if it prints none."""
        for before in (*(chat[:i] for i in turns if i), PROBE):
            try:
                closed, opened = self.text(before), self.text(before, open_turn=True)
            except Unrenderable:
                continue
            # Without the generation prompt some templates end the chat, so that only a part of it is a prefix.
            if header := opened[_shared(closed, opened) :]:
                ends = {len(header), *(match.end() for match in re.finditer(r"[>\n\]]", header))}
                return [header[:end] for end in sorted(ends, reverse=True)]
        return []

    def _end_of_turn(self, following: str, through: Chat) -> int:
        """How much of what follows a turn's mark ends the turn. through: the messages up to it, as which the turn would
        be the last one: what is printed behind it then is its end, unless only a last turn ends so."""
        mark, closing = _unused(json.dumps(through), "z"), "-"
        with suppress(Unrenderable):  # some templates want the messages to begin with a user's
            marked = self.text([*through[:-1], chat_inputs.with_mark(through[-1], mark, _THOUGHTS)])
            closing = marked.partition(mark)[2].replace(mark, "").rstrip()
        shared = closing if following.startswith(closing) else following[: _shared(closing, following)].rstrip()
        if shared or not closing:
            return len(shared)
        blank = chat_inputs.trailing_blank(through[-1])  # of the content itself, behind the mark
        place = len(blank) if following.startswith(blank) else 0
        return max((place + len(token) for token in self._special() if following.startswith(token, place)), default=0)

    def _special(self) -> list[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return [*self.tokenizer.all_special_tokens, *(str(token) for token in added.values() if token.special)]


def _has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any("tool_calls" in (message.get("extra") or "") for message in messages)


def _learnt(text: str, spans: list[Span], weights: list[float], partial: bool = False) -> Rendered:
    """Without the turns whose weight is 0."""
    kept = [i for i, weight in enumerate(weights) if weight]
    return Rendered(text, [spans[i] for i in kept], [weights[i] for i in kept], partial)


def _refused(error: Exception) -> Unrenderable:
    return Unrenderable(f"its chat template refuses it: {(str(error).splitlines() or [''])[0][:200]}")


def _unused(text: str, letter: str) -> str:
    """A word that does not occur in the text, of letters and digits, which no template takes apart."""
    return next(word for word in (f"zq{n}{letter}" for n in range(1 << 20)) if word not in text)


def _content_start(message: Mapping[str, Any], text: str, end: int) -> int | None:
    """The place where a content begins that ends at `end`; None if something else is there."""
    content = message["content"].strip() if isinstance(message["content"], str) else ""
    return end - len(content) if content and text[:end].endswith(content) else None


def _holds_other(chat: Chat, text: str, spans: Sequence[Span]) -> bool:
    """Whether another role's content may be in one of the spans."""
    others = {m["content"].strip() for m in chat if m["role"] != "assistant" and isinstance(m["content"], str)}
    return any(content in text[start:stop] for start, stop in spans for content in others if content)


def _behind_header(text: str, start: int, stop: int, headers: Sequence[str], last: bool) -> int | None:
    """The place behind the first (or last) header in a part of the text, of the longest header there; None without."""
    for header in headers:
        place = text.rfind(header, start, stop) if last else text.find(header, start, stop)
        if place >= 0:
            return place + len(header)
    return None


def _shared(closed: str, opened: str) -> int:
    """The length of the common prefix of two texts, without a part of a token such as `<|` at its end."""
    n = next((i for i, (a, b) in enumerate(zip(closed, opened, strict=False)) if a != b), min(len(closed), len(opened)))
    return n if n == len(closed) else len(re.sub(r"[<\[][^<\[>\]\s]*$", "", opened[:n]))
