from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.export import Export, Row

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Trl(Export):
    """JSONL for TRL's SFTTrainer: `messages`, or `prompt` and `completion`, or `text`.

    Format: `NAME.jsonl`, one object a line, of one shape throughout: {"messages": [{"role", "content"}]} for chat
    (with `style=prompt_completion` {"prompt": [...], "completion": [the last answer]}, for which TRL computes the loss
    on the completion only), {"text"} for raw text. There is no other column, so that TRL detects the shape, except
    `tools` where the input had that field.

    Cost: one read of the selected shards.

    Reference: https://huggingface.co/docs/trl/dataset_formats. TRL's SFT takes no weight per row (issue 5761), so a
    weighted manifest is refused, or its rows repeat (weights=repeats); or give `curate export --to jsonl` to
    curate.training.weighted_trainer.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Trl(style="prompt_completion").example(Row.of(said))["completion"]
    [{'role': 'assistant', 'content': 'an apple'}]
    """

    style: Literal["messages", "prompt_completion"] = "messages"
    """Shape of chat samples: whole conversations, or the last answer separate from what comes before it."""
    weights: Literal["refuse", "repeats"] = "refuse"
    """If weights differ: refuse them; or repeat rows in proportion, keeping the total number of rows."""

    def example(self, row: Row) -> dict[str, Any]:
        chat = row.chat()
        if not chat:
            return {"text": row.text}
        for message in chat:
            if message["role"] not in _ROLES:
                raise CurateError(f"sample {row.id} has the role '{message['role']}', none of {', '.join(_ROLES)}.")
        offered = exact_json.loads(row.meta).get("tools")
        tools = {"tools": offered} if offered else {}
        if self.style == "messages":
            return {"messages": chat, **tools}
        if chat[-1]["role"] != "assistant" or len(chat) < 2:
            raise CurateError(f"sample {row.id} has no prompt and answer at its end, as style=prompt_completion needs.")
        return {"prompt": chat[:-1], "completion": chat[-1:], **tools}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return [self.write_lines(folder / f"{name}.jsonl", _of_one_shape(rows))]


def _of_one_shape(rows: Iterator[Row]) -> Iterator[Row]:
    first: Row | None = None
    for row in rows:
        first = first or row
        if (row.messages is None) != (first.messages is None):
            raise CurateError(
                f"sample {first.id} is {_shape(first)} and sample {row.id} is {_shape(row)}, and TRL's file has one "
                'shape; select one of them with --where "text IS NULL" or --where "text IS NOT NULL".'
            )
        yield row


def _shape(row: Row) -> str:
    return "raw text" if row.messages is None else "chat"
