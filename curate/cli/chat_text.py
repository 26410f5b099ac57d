"""Samples as text for a terminal: chats turn by turn, and nothing that a terminal would take for a command."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from curate.text_table import one_line, visible


def chat(sample: dict[str, Any], most: int | None = None) -> str:
    """The contents of a sample. most: characters of each text that are shown; None: all."""
    lines = [_part("tool", f"{_tool(tool)}", most) for tool in sample["tools"]]
    lines += [_part("document", _json(document), most) for document in sample["documents"]]
    lines += [_part(key, _json(value), most) for key, value in sample["template"].items()]
    lines += [_turn(turn, most) for turn in sample["turns"]]
    lines += [_part("text", sample["text"], most)] if sample["text"] is not None else []
    lines += [_turn(turn, most, "rejected ") for turn in sample["rejected"]]
    lines += [_part("wanted", str(sample["wanted"]).lower(), most)] if sample["wanted"] is not None else []
    return "\n".join(lines)


def _turn(turn: dict[str, Any], most: int | None, before: str = "") -> str:
    role = before + turn["role"]
    if turn["weight"] is not None:
        role += f" (weight {turn['weight']})"
    parts = [_part(f"{role}, reasoning", turn["reasoning"], most)] if turn["reasoning"] else []
    if turn["content"] or not (turn["calls"] or parts):
        parts.append(_part(role, turn["content"], most))
    parts += [_part(f"{role}, calls {call['name']}", call["arguments"], most) for call in turn["calls"]]
    parts += [_part(f"{role}, {key}", _json(value), most) for key, value in turn["more"].items()]
    return "\n".join(parts)


def _part(heading: str, text: str, most: int | None) -> str:
    cut = (
        text if most is None or len(text) <= most else f"{text[:most].rstrip()}… ({len(text) - most:,} more characters)"
    )
    return f"{one_line(heading)}:\n{textwrap.indent(visible(cut), '  ', lambda _: True)}"


def _tool(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict):
        return _json(tool)
    about = f": {function['description']}" if function.get("description") else ""
    return f"{function.get('name', '')}{about}\n{_json(function.get('parameters', {}))}"


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def meta_lines(meta: Any) -> Sequence[str]:
    """The other fields of a sample's input, a line for each."""
    if not isinstance(meta, dict):
        return [one_line(_json(meta))] if meta else []
    return [one_line(f"{key}: {_json(value)}") for key, value in meta.items()]
