"""A sample as a reader sees it: its turns with calls and reasoning, its tools, and the fields beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curate import exact_json
from curate.errors import CurateFailure
from curate.preferences import prompt_length
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.views import at_rows

CONTENTS = ("messages", "text", "rejected", "template_kwargs", "meta")
BESIDE = ("id", "source", "copies", "n_chars", "wanted")
_REASONING = ("reasoning_content", "reasoning", "thinking")  # under which keys templates find it


def contents_at(ws: Workspace, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The samples at some rows of the pool, in that order, as `as_read` makes them. Rows beyond the pool are left out.

    Only the shards of those rows are opened, and in them only the parts of the file with those rows.
    """
    wanted = np.unique(np.asarray(rows, np.int64))
    query = at_rows(ws, (*BESIDE, *CONTENTS), wanted)
    found = {row["row"]: as_read(row) for row in sql.rows(ws, query)} if query else {}
    there = int(((wanted >= 0) & (wanted < ws.n_rows())).sum())
    if len(found) != there:
        raise CurateFailure(f"{ws.path}: of {there:,} samples only {len(found):,} were read; run `curate verify`.")
    return [found[row] for row in rows if row in found]


def as_read(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the pool, or of a target, as plain values.

    turns: of a chat, else []; rejected: of a preference pair, the turns of the other answer; text: of a raw text, else
    None; tools, documents, template: what a chat template is given beside the turns; meta: the input's other fields.
    """
    messages, other = sample["messages"], sample["rejected"]
    given = _decoded(sample["template_kwargs"]) or {}
    given = given if isinstance(given, dict) else {"": given}
    return {
        **{key: sample[key] for key in ("row", "subtask", "split", *BESIDE) if key in sample},
        "turns": [turn(message) for message in messages or ()],
        "rejected": [turn(message) for message in other[prompt_length(messages or (), other) :]] if other else [],
        "text": sample["text"],
        "tools": given.get("tools", []),
        "documents": given.get("documents", []),
        "template": {key: value for key, value in given.items() if key not in ("tools", "documents")},
        "meta": _decoded(sample["meta"]),
    }


def turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a reader sees it: role, content, reasoning, calls (name and arguments), weight (None: the usual 1),
    and what else a template prints of it."""
    extra = _decoded(message.get("extra")) or {}
    extra = dict(extra) if isinstance(extra, dict) else {"extra": extra}
    reasoning = [str(extra.pop(key)) for key in _REASONING if extra.get(key)]
    calls = extra.pop("tool_calls", [])
    return {
        "role": message["role"] or "",
        "content": message["content"] or "",
        "reasoning": "\n\n".join(dict.fromkeys(reasoning)),
        "calls": [_call(call) for call in (calls if isinstance(calls, list) else [calls])],
        "weight": extra.pop("weight", None),
        "more": extra,
    }


def _call(call: Any) -> dict[str, str]:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        return {"name": "", "arguments": exact_json.dumps(call)}
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else exact_json.dumps(arguments)
    return {"name": str(function.get("name", "")), "arguments": text}


def _decoded(text: Any) -> Any:
    """The value of a JSON text; the text itself if it is none."""
    if not isinstance(text, str):
        return text
    try:
        return exact_json.loads(text)
    except ValueError:
        return text


def cut(sample: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The sample with every text of its turns cut to `limit` characters; cut: how many characters were left out."""
    left_out = 0

    def short(text: str) -> str:
        nonlocal left_out
        left_out += max(0, len(text) - limit)
        return text if len(text) <= limit else f"{text[:limit]}…"

    def shortened(one: Mapping[str, Any]) -> dict[str, Any]:
        calls = [{"name": short(call["name"]), "arguments": short(call["arguments"])} for call in one["calls"]]
        return {**one, "content": short(one["content"]), "reasoning": short(one["reasoning"]), "calls": calls}

    turns, rejected = ([shortened(one) for one in sample[key]] for key in ("turns", "rejected"))
    text = sample["text"] if sample["text"] is None else short(sample["text"])
    return {**sample, "turns": turns, "rejected": rejected, "text": text, "cut": left_out}
