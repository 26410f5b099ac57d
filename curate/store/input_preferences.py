"""Preference data: pairs of a chosen and a rejected answer, in every common layout, and labelled answers (KTO).

A pair is two conversations with the same prompt, which is given beside the answers, or is what both begin with. A label
says of one conversation whether its last answer is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curate import preferences
from curate.store.turns import Message, Record, Refused, TurnReader, as_text

_ANSWERS = (str, list, dict)
_LABELS = dict.fromkeys(("label", "kto_tag", "wanted"))  # in the order in which they count
_RANKS = frozenset("rank ranks ranking score scores overall_score reward rewards rating ratings".split())


def is_pair(fields: Record) -> bool:
    """Whether a record has a chosen and a rejected answer; `messages` and `rejected` as whole conversations is how
    exports to columns have them."""
    if not isinstance(fields.get("rejected"), _ANSWERS) or fields["rejected"] in ([], {}):
        return False
    return isinstance(fields.get("chosen"), _ANSWERS) or ("chosen" not in fields and _stored(fields))


def _stored(fields: Record) -> bool:
    return isinstance(fields.get("messages"), list) and _is_conversation(fields["rejected"])


def _is_conversation(value: Any) -> bool:
    """Whether turns begin with a question, and so are more than an answer."""
    first = value[0] if isinstance(value, list) and value else None
    role = (first.get("role") or first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and role.lower() in ("user", "human", "prompter", "system", "developer")


def read_pair(
    fields: Record, turns: TurnReader, prompt: Callable[[Record, TurnReader], list[Message]]
) -> tuple[list[Message], list[Message]]:
    """The conversations with the chosen and the rejected answer, their fields removed from the record. prompt: reads
    what stands beside the answers. Raises Refused."""
    chosen = "messages" if fields.get("chosen") is None else "chosen"
    whole = _is_conversation(fields[chosen]) and _is_conversation(fields["rejected"])
    asked = prompt({"system": fields.pop("system", None)} if whole else fields, turns)
    if not whole and not any(message["role"] != "system" for message in asked):
        raise Refused(
            "has a chosen and a rejected answer and no prompt; name its field, as in --map prompt=FIELD", shape=True
        )
    pair = [*asked, *_turns(fields, chosen, turns)], [*asked, *_turns(fields, "rejected", turns)]
    length = preferences.prompt_length(*pair)
    if pair[0] == pair[1]:
        raise Refused("has a chosen and a rejected answer that are equal")
    if not length:
        raise Refused("has a chosen and a rejected conversation without a common prompt before the assistant's turn")
    for name, messages in zip(("chosen", "rejected"), pair, strict=True):
        if preferences.says_nothing(messages[length:]):
            raise Refused(f"has an empty {name} answer")
    return pair


def _turns(fields: Record, name: str, turns: TurnReader) -> list[Message]:
    if isinstance(fields[name], str):
        return [{"role": "assistant", "content": as_text(fields.pop(name), name), "extra": None}]
    if isinstance(fields[name], dict) and ({"role", "from"} & fields[name].keys()):
        fields[name] = [fields[name]]
    return turns.messages(fields, name)


def take_label(fields: Record, messages: list[Message] | None, named: bool = False) -> bool | None:
    """Whether a conversation's answer is wanted, removed from the record (`label`, LLaMA-Factory's `kto_tag`, or
    `wanted`, as exports to columns have it); None where nothing says so. named: whether the user has said that `label`
    does (`--map`), so that it may be 1 or 0, or a text, as in CSV. Raises Refused."""
    if messages is None or _LABELS.keys().isdisjoint(fields):  # as of most records
        return None
    if named and fields.get("label") is not None:
        if (wanted := wanted_by(fields["label"])) is None:
            raise Refused(f"has the label {fields['label']!r}, and true or false (or 1, 0) is wanted")
        fields["label"] = wanted
    if (tag := wanted_by(fields.get("kto_tag"))) is not None:
        fields["kto_tag"] = tag
    name = next((name for name in _LABELS if isinstance(fields.get(name), bool)), None)
    if name is None:
        return None
    length = preferences.asked_length(messages)
    if length in (0, len(messages)):
        raise Refused(f"has a {name} that says whether its answer is wanted, and no prompt with an answer at its end")
    if preferences.says_nothing(messages[length:]):
        raise Refused("has a label and an empty answer")
    return fields.pop(name)


def wanted_by(label: Any) -> bool | None:
    """What a label says, spelled in any way; None if it is neither true nor false."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())


def refuse_ranked(fields: Record) -> None:
    """Raises Refused for several answers with ranks or scores."""
    for name in ("answers", "responses", "completions", "output"):
        answers = fields.get(name)
        if not isinstance(answers, list) or len(answers) < 2:
            continue
        if _RANKS & fields.keys() or all(isinstance(one, dict) and _RANKS & one.keys() for one in answers):
            raise Refused(
                f"has a ranked list of answers ({name}); make a row of each pair you want, with the fields prompt, "
                "chosen and rejected",
                shape=True,
            )
