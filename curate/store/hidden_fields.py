"""Fields of a record that are named as parts of a chat are, and went to `meta`, since they hold something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.store.input_preferences import wanted_by

_KINDS = {
    "tools": "no list of objects",
    "functions": "no list of objects",
    "documents": "no list of objects with a text each",
    "chat_template_kwargs": "no object",
}
HIDDEN = frozenset((*_KINDS, "label"))
_NOTHING = (None, "", [], {}, "[]", "{}", "null")


def hidden_in(meta: Mapping[str, Any]) -> Iterator[str]:
    """The fields among the metadata of a chat that may have been meant for its template or its loss."""
    for name in _KINDS:
        if meta.get(name) not in _NOTHING:
            yield name
    if not isinstance(meta.get("label"), bool) and wanted_by(meta.get("label")) is not None:
        yield "label"


def hidden_notes(samples: Mapping[str, int]) -> list[str]:
    """What to say of them. samples: field -> how many samples."""
    notes = [
        f"{name} of {n:,} samples is {_KINDS[name]} and went to meta, so that no model sees it"
        for name, n in samples.items()
        if name in _KINDS
    ]
    if n := samples.get("label"):
        notes.append(
            f"label of {n:,} samples is 1, 0 or a text and went to meta; if it says whether the answer is wanted "
            "(KTO), --map label=label reads it so"
        )
    return notes
