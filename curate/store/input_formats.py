"""From one input record to one sample: the common formats of instruction data, and why a record is refused.

The format is detected for each record from its field names, so a file may mix formats. The first match wins, in this
order:

    preference          {"chosen", "rejected"} and {"prompt"}, or another format's question, or two conversations  TRL
    messages            {"messages": [{"role", "content"}, …]}                         OpenAI, TRL
    sharegpt            {"conversations": [{"from", "value"}, …]}                      ShareGPT
    prompt-completion   {"prompt", "completion" or "response"}, texts or message lists  TRL, P3
    alpaca              {"instruction", "input" or "context"?, "output" or "response", "history"?}  Alpaca, Dolly,
                        LLaMA-Factory
    question-answer     {"question", "answer"}, or with "context" and "answers", or    GSM8K, SQuAD, MMLU, ARC
                        "choices" and the number or letter of the right one
    text                {"text"}                                                       raw text

A "system" field beside any chat shape becomes the first message. A boolean "label" (or "kto_tag") beside one says
whether its last answer is wanted, as KTO has it. All other fields go to `meta`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from curate import exact_json
from curate.errors import CurateError, nearest
from curate.hashing import content_id
from curate.preferences import prompt_length
from curate.store import question_formats
from curate.store.hidden_fields import HIDDEN, hidden_in, hidden_notes
from curate.store.input_preferences import is_pair, read_pair, refuse_ranked, take_label
from curate.store.special_tokens import special_in, stripped, texts_of
from curate.store.turns import Message, Record, Refused, TurnReader, as_text, template_kwargs

RAW_CUT = 4096  # how many characters of a refused line are stored


@dataclass(frozen=True)
class Unreadable:
    """A row, or the rest of a file, that could not be parsed as a record."""

    reason: str
    raw: str = ""


class Sample(NamedTuple):
    """One sample, ready for the pool. One is made of every row, which takes a frozen dataclass five times as long."""

    id: str
    messages: list[Message] | None
    text: str | None
    n_chars: int
    meta: str
    source: str | None = None
    subtask: str = ""
    split: str | None = None
    template_kwargs: str | None = None
    rejected: list[Message] | None = None
    wanted: bool | None = None
    special: frozenset[str] = frozenset()  # control tokens of models that stood in its texts


@dataclass
class Shape:
    """What was made of the records of one format: the first sample, and the fields that went to `meta`."""

    first: Sample
    meta_fields: set[str] = field(default_factory=set)

    def shown(self, most: int = 4, cut: int = 160) -> list[str]:
        """The first sample as a model sees it, a line for each message and keyword argument of its template."""
        lines = [("text", self.first.text or "")]
        if self.first.messages is not None:
            kwargs = exact_json.loads(self.first.template_kwargs) if self.first.template_kwargs else {}
            lines = [(name, exact_json.dumps(value)) for name, value in kwargs.items()]
            lines += [(str(m["role"]), _said_in(m)) for m in self.first.messages]
        if self.first.messages is not None and self.first.rejected is not None:
            other = self.first.rejected[prompt_length(self.first.messages, self.first.rejected) :]
            lines += [("rejected", _said_in(m)) for m in other]
        if self.first.wanted is not None:
            lines.append(("wanted", exact_json.dumps(self.first.wanted)))
        shown = [f"{name}: {' '.join(text.split())}" for name, text in lines]
        omitted = [f"… {len(shown) - most} more"] if len(shown) > most else []
        return [line if len(line) <= cut else f"{line[:cut]}…" for line in shown[:most]] + omitted


@dataclass
class Reader:
    """Turns records into samples according to the user's options, and counts the formats encountered.

    fmt: a format's name, or 'auto'. mapping: our field name -> the record's (`--map`). turn_keys: further keys of turns
    that the chat template prints. choice_answer: what the answer to a question with options is. strip_special:
    whether control tokens of models are left out of texts. shapes: what was made of the records of each format.
    """

    fmt: str = "auto"
    mapping: Mapping[str, str] = field(default_factory=dict)
    turn_keys: frozenset[str] = frozenset()
    choice_answer: Literal["letter", "text"] = "letter"
    strip_special: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fmt != "auto" and self.fmt not in FORMATS:
            raise CurateError(f"there is no format '{self.fmt}': {nearest(self.fmt, ['auto', *FORMATS])}")
        self.turns = TurnReader(self.turn_keys, self.choice_answer)
        self._meta_fields: Collection[str] = ()
        self._hidden: Counter[str] = Counter()
        for ours in self.mapping:
            if ours not in MAPPABLE:
                raise CurateError(f"--map knows no field '{ours}': {nearest(ours, MAPPABLE)}")

    def sample(self, record: Any) -> Sample:
        """The sample in a record. Raises Refused with the reason if there is none."""
        if isinstance(record, Unreadable):
            raise Refused(record.reason, shape=True)
        if not isinstance(record, dict):
            raise Refused(f"is a JSON {type(record).__name__}, and a sample is an object", shape=True)
        try:
            name, sample = self._convert(record)
        except exact_json.NotFiniteError as error:
            raise Refused(f"holds NaN or an infinity ({error})") from None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:  # a value that cannot be encoded
            raise Refused(f"holds what cannot be stored ({error})") from None
        self.seen[name] += 1
        if name not in self.shapes:
            self.shapes[name] = Shape(sample)
        self.shapes[name].meta_fields.update(self._meta_fields)
        return sample

    def fresh(self) -> Reader:
        """A reader with the same options, which has counted nothing."""
        return Reader(self.fmt, self.mapping, self.turn_keys, self.choice_answer, self.strip_special)

    def absorb(self, later: Reader) -> None:
        """Add what another reader counted of records that come after one's own."""
        self.seen.update(later.seen)
        for name, shape in later.shapes.items():
            self.shapes.setdefault(name, Shape(shape.first)).meta_fields |= shape.meta_fields
        self._hidden.update(later._hidden)
        self.turns.metadata.update(later.turns.metadata)
        self.turns.weighted += later.turns.weighted

    def notes(self) -> list[str]:
        """What was made of keys of turns and of what stands beside them, where that is not plain."""
        notes = hidden_notes(self._hidden)
        if self.turns.metadata:
            keys = ", ".join(f"{key} ({n:,} turns)" for key, n in self.turns.metadata.most_common())
            notes.append(
                f"keys of turns that chat templates do not print went to meta: {keys}; --turn-key NAME makes one part "
                "of the sample"
            )
        if self.turns.weighted:
            notes.append(
                f"{self.turns.weighted:,} of the assistant's turns have a weight of their own in the loss (0: not "
                "trained on)"
            )
        return notes

    def _convert(self, record: Record) -> tuple[str, Sample]:
        fields, shadowed = self._mapped(record)
        labels = {key: fields.pop(key) for key in ("source", "subtask", "split") if key in self.mapping}
        shadowed |= {self.mapping[key]: value for key, value in labels.items() if key != "source"}
        name = self._format_of(fields)
        rejected = wanted = None
        if name == "preference":
            (messages, rejected), text = read_pair(fields, self.turns, _prompt), None
        else:
            messages, text = FORMATS[name].convert(fields, self.turns)  # removes the fields that it uses
            wanted = take_label(fields, messages, "label" in self.mapping)
        kwargs = None if messages is None else template_kwargs(fields)
        meta = {**fields, **shadowed}
        self._meta_fields = meta
        if messages is not None and not HIDDEN.isdisjoint(meta):
            self._hidden.update(hidden_in(meta))
        content = {
            "messages": messages,
            "text": text,
            "template_kwargs": kwargs,
            "rejected": rejected,
            "wanted": wanted,
        }
        special = special_in(texts_of(content))
        if special and self.strip_special:
            content = stripped(content)
        return name, _sample(content, meta, labels, special)

    def _mapped(self, record: Record) -> tuple[Record, Record]:
        """The record with fields renamed by `mapping`, and those of its own fields that the new names would hide."""
        if not self.mapping:
            return dict(record), {}
        mapped_fields = set(self.mapping.values())
        for ours, theirs in self.mapping.items():
            if theirs not in record:
                raise Refused(
                    f"has no field '{theirs}' (--map {ours}={theirs}); {nearest(theirs, record).rstrip('.')}",
                    shape=True,
                )
        fields = {k: v for k, v in record.items() if k not in mapped_fields and k not in self.mapping}
        shadowed = {k: v for k, v in record.items() if k in self.mapping and k not in mapped_fields}
        return fields | {ours: record[theirs] for ours, theirs in self.mapping.items()}, shadowed

    def _format_of(self, fields: Record) -> str:
        if self.fmt != "auto":
            if FORMATS[self.fmt].fits(fields):
                return self.fmt
            raise Refused(f"is not {self.fmt}: its fields are {', '.join(map(str, fields)) or 'none'}", shape=True)
        # In tables every row has every column, so null fields are ignored if a format matches without them.
        filled = {k: v for k, v in fields.items() if v is not None} if None in fields.values() else fields
        for candidate in (filled, fields):
            for name, shape in FORMATS.items():
                if shape.fits(candidate):
                    return name
        refuse_ranked(fields)
        raise Refused(
            f"has fields no format has ({', '.join(map(str, fields)) or 'none'}); name them with --map, "
            "as in --map prompt=FIELD,completion=FIELD or --map text=FIELD",
            shape=True,
        )


def _sample(content: Record, meta: Record, labels: Record, special: frozenset[str]) -> Sample:
    """A sample with the columns of schema.CONTENT in `content`; special: control tokens that stood in its texts."""
    messages = content["messages"]
    contents = [content["text"] or ""] if messages is None else [m["content"] or "" for m in messages]
    if not any(c and not c.isspace() for c in contents):
        raise Refused("has no text")
    contents += [m["content"] or "" for m in content["rejected"] or ()]
    return Sample(
        id=content_id(**content),
        n_chars=sum(map(len, contents)),
        meta=exact_json.dumps(meta),
        source=_label(labels.get("source")),
        subtask=_label(labels.get("subtask")) or "",
        split=_label(labels.get("split")),
        special=special,
        **content,
    )


def _said_in(message: Message) -> str:
    return " ".join(filter(None, (message["content"], message["extra"])))


def _label(value: Any) -> str | None:
    """A label as text. Raises UnicodeEncodeError if it cannot be encoded as UTF-8."""
    return None if value is None else str(value).encode().decode()


def refusal(path: str, line: int, record: Any, refused: Refused, into: str = "pool") -> dict[str, Any]:
    """A row of the table `rejects`; its raw text is truncated, and always valid Unicode."""
    raw = _raw(record)[:RAW_CUT].encode("utf-8", "replace").decode()
    reason = str(refused).encode("utf-8", "replace").decode()
    return {"file": path, "line": line, "reason": reason, "raw": raw, "into": into}


def _raw(record: Any) -> str:
    if isinstance(record, Unreadable):
        return record.raw
    try:
        return json.dumps(record, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        return f"(a {type(record).__name__} that cannot be written: {error})"


# --- the formats -----------------------------------------------------------------------------------------

Converted = tuple[list[Message] | None, str | None]


@dataclass(frozen=True)
class Format:
    """An input format. fits: whether a record has it. convert: to messages or a text, removing the fields used, except
    for the metadata of turns."""

    fits: Callable[[Record], bool]
    convert: Callable[[Record, TurnReader], Converted]


def _messages(fields: Record, turns: TurnReader) -> Converted:
    return _with_system(fields, turns.messages(fields, "messages")), None


def _sharegpt(fields: Record, turns: TurnReader) -> Converted:
    key = "conversations" if "conversations" in fields else "conversation"
    return _with_system(fields, turns.messages(fields, key)), None


def _prompt(fields: Record, turns: TurnReader) -> list[Message]:
    """What a preference pair has beside its answers, in any format's fields."""
    for name in ("prompt", "messages", "conversations", "conversation"):
        if isinstance(fields.get(name), list):
            return _with_system(fields, turns.messages(fields, name))
        if name == "prompt" and fields.get(name) is not None:
            return _with_system(fields, [_said("user", fields.pop(name), name)])
    if fields.get("instruction") is not None:
        return _with_system(fields, _instruction(fields))
    if fields.get("question") is not None:
        return _with_system(fields, [_said("user", fields.pop("question"), "question")])
    return _with_system(fields, [])


def _prompt_completion(fields: Record, turns: TurnReader) -> Converted:
    messages = []
    for role, name in (("user", "prompt"), ("assistant", _first(fields, "completion", "response"))):
        if isinstance(fields[name], list):
            messages += turns.messages(fields, name)
        else:
            messages.append(_said(role, fields.pop(name), name))
    return _with_system(fields, messages), None


def _alpaca(fields: Record, _: TurnReader) -> Converted:
    asked = _instruction(fields)
    answer = _said("assistant", fields.pop(_first(fields, "output", "response")), "output")
    return _with_system(fields, [*asked, answer]), None


def _instruction(fields: Record) -> list[Message]:
    """An instruction with its history and its input."""
    turns = []
    history = fields.pop("history", None) or []
    if not isinstance(history, list):
        raise Refused("history is no list")
    for pair in history:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise Refused("history is not a list of [question, answer] pairs")
        turns += [_said("user", pair[0], "history"), _said("assistant", pair[1], "history")]
    question = _said("user", fields.pop("instruction"), "instruction")
    for name in ("input", "context"):  # Dolly's passages are called context; joined as LLaMA-Factory joins them
        context = fields.pop(name, None)
        if context not in (None, ""):
            question["content"] = f"{question['content']}\n{as_text(context, name)}"
    return [*turns, question]


def _question_answer(fields: Record, turns: TurnReader) -> Converted:
    return _with_system(fields, question_formats.question(fields, turns.choice_answer)), None


def _raw_text(fields: Record, _: TurnReader) -> Converted:
    return None, as_text(fields.pop("text"), "text")


def _preference(fields: Record, turns: TurnReader) -> Converted:
    return read_pair(fields, turns, _prompt)[0], None


FORMATS: dict[str, Format] = {
    "preference": Format(is_pair, _preference),
    "messages": Format(lambda f: "messages" in f, _messages),
    "sharegpt": Format(lambda f: "conversations" in f or "conversation" in f, _sharegpt),
    "prompt-completion": Format(lambda f: "prompt" in f and ("completion" in f or "response" in f), _prompt_completion),
    "alpaca": Format(lambda f: "instruction" in f and ("output" in f or "response" in f), _alpaca),
    "question-answer": Format(question_formats.is_question, _question_answer),
    "text": Format(lambda f: "text" in f, _raw_text),
}
MAPPABLE = (
    *("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history"),
    *("question", "answer", "chosen", "rejected", "label", "text", "system", "source", "subtask", "split"),
)


# --- their parts -----------------------------------------------------------------------------------------


def _with_system(fields: Record, turns: list[Message]) -> list[Message]:
    system = fields.pop("system", None)
    return [_said("system", system, "system"), *turns] if system not in (None, "") else turns


def _first(fields: Record, *names: str) -> str:
    """The first of `names` whose value is present and not null, or at least present."""
    there = [name for name in names if name in fields]
    return there[0] if len(there) == 1 else next((name for name in there if fields[name] is not None), there[0])


def _said(role: str, value: Any, where: str) -> Message:
    return {"role": role, "content": as_text(value, where), "extra": None}
