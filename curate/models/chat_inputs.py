"""What a chat template is given: stored messages as it takes them, and the keyword arguments beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

Chat: TypeAlias = list[dict[str, Any]]
Kwargs: TypeAlias = dict[str, Any]
Arguments: TypeAlias = Literal["object", "text", "either"]  # of a call: how a template takes them

PROBE: Chat = [{"role": "user", "content": "zq probe"}]  # its generation prompt shows the assistant's header
_CALL = {"name": "zqcall", "arguments": {"zqkey": "zqvalue"}}
CALLING: Chat = [
    *PROBE,
    {"role": "assistant", "content": "", "tool_calls": [{"id": "zq0000001", "type": "function", "function": _CALL}]},
]  # some templates want ids of nine letters and digits
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqtold",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string", "description": "zqtold"}}},
    },
}
_OWN = frozenset(  # arguments of apply_chat_template that are no variables of a template
    "messages conversation chat_template tokenize add_generation_prompt continue_final_message padding truncation "
    "max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs processor_kwargs".split()
)


class Unrenderable(Exception):
    """The chat template cannot render these messages; the message gives the reason."""


def _stored(text: str) -> Any:
    """Stored JSON as templates take it. Raises Unrenderable."""
    try:
        return json.loads(text)
    except ValueError:  # what is stored is JSON, but an integer may have more digits than Python converts
        raise Unrenderable(
            f"has an integer of more than {sys.get_int_max_str_digits():,} digits, which no template prints"
        ) from None


def as_given(message: Mapping[str, Any], arguments: Arguments = "either") -> dict[str, Any]:
    """A stored message as templates take it: with its further keys (tool calls, reasoning, …) beside the content, and
    the arguments of calls as an object or as JSON text; what weighs its loss is not shown."""
    extra = _stored(message["extra"]) if message.get("extra") else {}
    extra.pop("weight", None)
    if arguments != "either" and isinstance(extra.get("tool_calls"), list):
        extra["tool_calls"] = [_with_arguments(call, arguments) for call in extra["tool_calls"]]
    return {"role": message["role"], "content": message["content"], **extra}


def loss_weight(message: Mapping[str, Any]) -> float:
    """How much the losses of a stored message's tokens count."""
    extra = message.get("extra")
    return float(_stored(extra).get("weight", 1)) if extra and '"weight"' in extra else 1.0


def _with_arguments(call: Any, wanted: Arguments) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    given = function["arguments"]
    if wanted == "text" and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    elif wanted == "object" and isinstance(given, str):
        given = _object(given)
    taken = {**function, "arguments": given}
    return {**call, "function": taken} if "function" in call else taken


def _object(text: str) -> Any:
    """The object that a text is as JSON; the text itself if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def printed_arguments(text: str) -> bool:
    """Whether the rendering of CALLING with an object shows it as one: as JSON, or key by key, not as Python does."""
    return "zqkey" in text and "zqvalue" in text and "'zqkey'" not in text


def kwargs_of(stored: str | None) -> tuple[Kwargs, list[str]]:
    """The keyword arguments of a template, from a sample's `template_kwargs`; and names that may not be among them."""
    if not stored:
        return {}, []
    found = _stored(stored)
    kwargs = {**found.pop("chat_template_kwargs", {}), **found}
    return kwargs, sorted(_OWN & kwargs.keys())


def wrapped(kwargs: Mapping[str, Any]) -> Kwargs:
    """The same, with tools that are bare functions as OpenAI's {"type": "function", "function": …}."""
    tools = kwargs.get("tools")
    return {**kwargs, "tools": [t if "function" in t else {"type": "function", "function": t} for t in tools or ()]}


def has_bare_tools(kwargs: Mapping[str, Any]) -> bool:
    """Whether a tool is a function without OpenAI's wrapping."""
    return any("function" not in tool for tool in kwargs.get("tools") or ())


def in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as a list of one part."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def trailing_blank(message: Mapping[str, Any]) -> str:
    """The white space at the end of the content."""
    content = message.get("content")
    return content[len(content.rstrip()) :] if isinstance(content, str) else ""


def with_mark(message: dict[str, Any], mark: str, thoughts: Sequence[str]) -> dict[str, Any]:
    """The message with a mark at the end of what it prints last: its calls, its content, or its reasoning."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[-1], dict):
        call = calls[-1]
        function = call.get("function", call)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            named = {**function, "name": function["name"] + mark}
            return {
                **message,
                "tool_calls": [*calls[:-1], {**call, "function": named} if "function" in call else named],
            }
    for key in ("content", *thoughts):
        if isinstance(said := message.get(key), str) and said.strip():
            bare = said.rstrip()
            return {**message, key: bare + mark + said[len(bare) :]}
    return message
