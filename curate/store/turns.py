"""From the turns of a record to messages, and what a chat template is given beside them.

A turn's keys are of three kinds:

- What templates print: calls of tools, reasoning, names (PRINTED, and the keys that the user names with --turn-key).
  They are part of the sample, and stored in the message's `extra`.
- What says how much its tokens' losses count: `weight` (OpenAI), `train`, `training`, `trainable` (axolotl), `loss`
  (ms-swift), `mask`, `masked`. Stored in `extra` as `weight`, unless it is 1.
- All others, such as ids, addresses and times, are metadata: they go to the sample's `meta`, under the name of the list
  of turns, so that they neither reach a model nor make equal conversations different samples.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from curate import exact_json

Record = dict[str, Any]
Message = dict[str, str | None]

PRINTED = frozenset(
    "tool_calls tool_call_id name reasoning_content reasoning thinking tool_plan tool_responses "  # chat templates'
    "function_calls functions tools documents citations prefix channel recipient builtin_tools".split()
)
_SWITCHES = {"train": 1, "training": 1, "trainable": 1, "loss": 1, "mask": 0, "masked": 0}  # key -> weight where true
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
}
_FOR_TEMPLATES = frozenset(("template_kwargs", "tools", "functions", "documents", "chat_template_kwargs"))
_CALLS = ("function_call", "tool_call")  # roles of turns that are calls, in ShareGPT's format


class Refused(Exception):
    """A record that cannot become a sample. shape: whether the reason is that its fields match no format."""

    def __init__(self, reason: str, shape: bool = False):
        super().__init__(reason)
        self.shape = shape


@dataclass
class TurnReader:
    """Reads turns. keys: further keys that the chat template prints. choice_answer: what the answer to a question with
    options is, the letter or the text of the right one. metadata: how many turns had each key that went to `meta`.
    weighted: how many turns are trained on with another weight than 1."""

    keys: frozenset[str] = frozenset()
    choice_answer: Literal["letter", "text"] = "letter"
    metadata: Counter[str] = field(default_factory=Counter)
    weighted: int = 0

    def messages(self, fields: Record, name: str) -> list[Message]:
        """The turns in a field, as messages; the field is replaced by the turns' metadata, or removed. Raises
        Refused."""
        turns = _rows(fields.pop(name))
        if not isinstance(turns, list) or not turns:
            raise Refused(f"{name} is {'empty' if turns == [] else 'no list'}")
        messages, metadata = [], []
        for i, turn in enumerate(turns):
            message, rest = self._message(turn, f"{name}[{i}]")
            messages.append(message)
            metadata.append(rest or None)
        if any(metadata):
            fields[name] = metadata
        return messages

    def _message(self, turn: Any, where: str) -> tuple[Message, Record]:
        if not isinstance(turn, dict):
            raise Refused(f"{where} is no object")
        fields = {k: v for k, v in turn.items() if not _is_missing(v, k)}
        role = fields.pop("role", None) or fields.pop("from", None)
        if not isinstance(role, str) or not role.strip():
            raise Refused(f"{where} names no role")
        role = role.lower()
        content = fields.pop("content") if "content" in fields else fields.pop("value", None)
        if not fields and role not in _CALLS:  # as nearly all turns are
            role = _ROLES.get(role, role)
            return {"role": role, "content": content_of(content, role, where), "extra": None}, {}
        if role in _CALLS:
            role, fields, content = "assistant", {"tool_calls": _said_calls(content, where), **fields}, None
        role = _ROLES.get(role, role)
        extra, metadata = self._sorted(fields, role, where)
        if content is None and extra:
            content = ""
        message = {"role": role, "content": content_of(content, role, where)}
        return {**message, "extra": exact_json.dumps(extra) if extra else None}, metadata

    def _sorted(self, fields: Record, role: str, where: str) -> tuple[Record, Record]:
        """What of a turn's further keys is part of the sample, and what is metadata."""
        extra, metadata = _stored_extra(fields), Record()
        for key, value in fields.items():
            weight = _weight(key, value, where) if role == "assistant" else None
            if weight is not None and weight != 1:
                extra["weight"] = weight
            elif key == "tool_calls" and (calls := _list_of_objects(value, f"{where}.{key}")):
                extra[key] = calls
            elif key == "function_call":
                extra["tool_calls"] = _said_calls(value, f"{where}.{key}")
            elif value not in ("", []) and (key in PRINTED or key in self.keys):
                extra[key] = value
            else:
                metadata[key] = value
                if value not in ("", []) and weight is None:
                    self.metadata[key] += 1
        self.weighted += "weight" in extra
        return extra, metadata


def _is_missing(value: Any, key: str) -> bool:
    """Whether a value is null, or NaN, as tables have it where nothing stands; or infinite, which JSON does not have
    (an infinite weight is there, and refused)."""
    if not isinstance(value, float) or math.isfinite(value):
        return value is None
    return math.isnan(value) or key != "weight"


def _stored_extra(fields: Record) -> Record:
    """The keys in an `extra` field that curate wrote (JSON text), removed from the turn; any other `extra` stays."""
    try:
        keys = exact_json.loads(fields["extra"])
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(keys, dict):
        return {}
    fields.pop("extra")
    return keys


def _weight(key: str, value: Any, where: str) -> float | None:
    """How much the losses of a turn's tokens count, by one of its keys; None if the key does not say so."""
    if key == "train_detail":
        raise Refused(f"{where} has train_detail, which trains on parts of a turn; a turn here has one weight")
    if key == "weight":
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise Refused(f"{where}.weight is {value!r}, and a number of at least 0 is wanted")
        return value + 0
    if key in _SWITCHES and (isinstance(value, bool) or value in (0, 1) and key != "loss"):
        return _SWITCHES[key] if value else 1 - _SWITCHES[key]
    return None


def content_of(content: Any, role: str, where: str) -> str:
    """A content as one text: a string, or a list of text parts as in OpenAI's format, joined. What a tool has answered
    may be any JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if role == "tool" and isinstance(content, dict | list):
        return exact_json.dumps(content)
    if isinstance(content, list):
        raise Refused(f"{where}.content has parts that are no text")
    return as_text(content, f"{where}.content")


def as_text(value: Any, where: str) -> str:
    """A text, number or truth value as text. Raises Refused for anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        raise Refused(f"{where} is null")
    if isinstance(value, exact_json.Spelled):
        return value.text
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{where} is {value}, as a table has it where nothing stands")
    if isinstance(value, bool | float):
        return exact_json.dumps(value)
    if isinstance(value, int):
        return str(value)
    raise Refused(f"{where} is a {type(value).__name__}, and a text is wanted")


def _rows(value: Any) -> Any:
    """A struct of lists, in which `datasets` keeps a sequence of structs, as the list of structs that it stands for."""
    if not isinstance(value, dict) or not value or not all(isinstance(column, list) for column in value.values()):
        return value
    lengths = {len(column) for column in value.values()}
    return (
        [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        if len(lengths) == 1
        else value
    )


# --- tools -----------------------------------------------------------------------------------------------


def _said_calls(value: Any, where: str) -> list[Record]:
    """Calls as OpenAI's `tool_calls`, from one or several {"name", "arguments"}, which may be JSON text."""
    calls = _decoded(value)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise Refused(f'{where} is a call of a tool, and not JSON like {{"name": …, "arguments": …}}')
    return [{"type": "function", "function": call} for call in calls]


def _list_of_objects(value: Any, where: str) -> list[Record]:
    """A list of objects that may be JSON text, as a whole or one by one; [] for what says there is none."""
    items = _decoded(value)
    items = [_decoded(item) for item in (items if isinstance(items, list) else [items] if items else [])]
    if not all(isinstance(item, dict) for item in items):
        raise Refused(f"{where} is no list of objects")
    return items


def template_kwargs(fields: Record) -> str | None:
    """What a chat template is given beside the messages, removed from a record's fields, as JSON text: tools (or, as
    OpenAI's older format has it, functions), documents, chat_template_kwargs. None if there is nothing."""
    if _FOR_TEMPLATES.isdisjoint(fields):
        return None
    found: Record = {}
    stored = _decoded(fields.get("template_kwargs"))
    if isinstance(stored, dict) and isinstance(fields["template_kwargs"], str):  # as curate writes it
        found = stored
        del fields["template_kwargs"]
    for key in ("tools", "functions", "documents"):
        values = _objects(fields.get(key))
        if not values or (key == "documents" and not all(isinstance(value.get("text"), str) for value in values)):
            continue
        if key == "functions":
            if "tools" in found:
                continue
            values = [{"type": "function", "function": value} for value in values]
        found["tools" if key == "functions" else key] = values
        del fields[key]
    if isinstance(kwargs := _decoded(fields.get("chat_template_kwargs")), dict) and kwargs:
        found["chat_template_kwargs"] = kwargs
        del fields["chat_template_kwargs"]
    return exact_json.dumps(found) if found else None


def _objects(value: Any) -> list[Record]:
    """A list of objects, which may be JSON text; [] for anything else."""
    try:
        return _list_of_objects(value, "")
    except Refused:
        return []


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return exact_json.loads(value)
    except ValueError:
        return value
