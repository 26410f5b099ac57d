"""Samples as the page gets them: JSON values in which every number of a user's data is text, as it was spelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate import exact_json
from curate.results import plain
from curate.tables.chats import cut

LISTED = 700  # characters of each text in a list


def listed(sample: Mapping[str, Any], mark: str, value: float) -> dict[str, Any]:
    """A sample in a list: its texts cut; value: what the list is by."""
    return {**whole(cut(sample, LISTED)), "mark": mark, "value": plain(float(value))}


def whole(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample with all its texts; tools, documents, meta and what else there is as pairs of a name and a text."""
    return {
        **{key: value for key, value in sample.items() if key not in ("meta", "tools", "documents", "template")},
        "turns": [_turn(turn) for turn in sample["turns"]],
        "rejected": [_turn(turn) for turn in sample["rejected"]],
        "tools": [_tool(tool) for tool in sample["tools"]],
        "documents": [_text(document) for document in sample["documents"]],
        "template": _pairs(sample["template"]),
        "meta": _pairs(sample["meta"]),
    }


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    weight = turn["weight"]
    return {**turn, "weight": None if weight is None else _text(weight), "more": _pairs(turn["more"])}


def _tool(tool: Any) -> dict[str, str]:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict):
        return {"name": "", "about": "", "parameters": _text(tool)}
    return {
        "name": str(function.get("name", "")),
        "about": str(function.get("description") or ""),
        "parameters": _text(function.get("parameters", {})),
    }


def _pairs(fields: Any) -> list[list[str]]:
    if not isinstance(fields, dict):
        return [["", _text(fields)]] if fields else []
    return [[str(key), _text(value)] for key, value in fields.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else exact_json.dumps(value)
