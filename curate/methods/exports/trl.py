from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate.errors import CurateError
from curate.kinds.export import Export, Row, typed, typed_tools, without_weights

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Trl(Export):
    """JSONL for TRL's SFTTrainer (`messages`, or `prompt` and `completion`, or `text`), DPOTrainer and KTOTrainer.

    Format: `NAME.jsonl`, one object a line, of one shape throughout: {"messages": [{"role", "content"}]} for chat
    (with `style=prompt_completion` {"prompt": [...], "completion": [the last answer]}, for which TRL computes the loss
    on the completion only), {"text"} for raw text. Preference pairs are written with `style=dpo`, as {"prompt": [...],
    "chosen": [...], "rejected": [...]}, labelled answers with `style=kto`, as {"prompt", "completion", "label"}; each
    style refuses the samples of the others. There is no other column, so that TRL detects the shape, except
    `tools` and `chat_template_kwargs` if a sample of the export has some. The first row then is one with tools, as a
    list; the others have them as JSON text, which `datasets` decodes. Where messages have other keys than role and
    content, one of the first row has `weight` 1. Without both `datasets` would refuse rows with other tools or keys
    behind the first 10 MB.

    Cost: two reads of the selected shards.

    Departures: in the shape `messages` TRL computes the loss on all tokens, unless its `assistant_only_loss` is set and
    the model's chat template marks the assistant's tokens. It gives documents to no template, and knows no weights of
    turns: samples with these are refused; so are other weights of turns than 1 (style=prompt_completion takes samples
    of which only the last answer is learnt). Its `max_length` (1,024 tokens by default) cuts the rest of a sample off,
    and packing cuts samples at the ends of blocks.

    Reference: https://huggingface.co/docs/trl/dataset_formats. TRL's SFT takes no weight per row (issue 5761), so a
    weighted manifest is refused, or its rows repeat (weights=repeats); or give `curate export --to jsonl` to
    curate.training.weighted_trainer.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Trl(style="prompt_completion").example(Row.of(said))["completion"]
    [{'role': 'assistant', 'content': 'an apple'}]
    """

    uniform: ClassVar[bool] = True
    leads_with_tools: ClassVar[bool] = True

    style: Literal["messages", "prompt_completion", "dpo", "kto"] = "messages"
    """Shape of chat samples: whole conversations; the last answer separate from what comes before it; or pairs of
    answers; or answers with a label."""
    weights: Literal["refuse", "repeats"] = "refuse"
    """If weights differ: refuse them; or repeat rows in proportion, keeping the total number of rows."""

    def example(self, row: Row) -> dict[str, Any]:
        if row.messages is None and self.style in ("messages", "prompt_completion"):
            return {"text": row.text}
        for message in [*(row.messages or ()), *(row.rejected or ())]:
            if message["role"] not in _ROLES:
                raise CurateError(f"sample {row.id} has the role '{message['role']}', none of {', '.join(_ROLES)}.")
        row.refuse_kwargs(("tools", "chat_template_kwargs"), "TRL")
        kwargs = row.kwargs()
        columns = typed_tools(row)
        if "chat_template_kwargs" in row.some:
            columns["chat_template_kwargs"] = kwargs.get("chat_template_kwargs", {})
        return {**(self._preference(row) if self.style in ("dpo", "kto") else self._answers(row)), **columns}

    def _answers(self, row: Row) -> dict[str, Any]:
        """The columns of a sample whose answers are learnt."""
        style = "dpo" if row.kind == "pair" else "kto"
        row.refuse_preferences(f"style={self.style}", f"export such samples with --set style={style}")
        chat = row.chat()
        if self.style == "messages":
            row.refuse_weights("TRL")
            return {"messages": typed(chat, row)}
        if chat[-1]["role"] != "assistant" or len(chat) < 2:
            raise CurateError(f"sample {row.id} has no prompt and answer at its end, as style=prompt_completion needs.")
        if row.weights()[-1] != 1:
            row.refuse_weights("TRL")
        return {"prompt": typed(chat[:-1], row), "completion": typed(chat[-1:], row)}

    def _preference(self, row: Row) -> dict[str, Any]:
        """The columns of a preference pair, or of a labelled answer, which the style is for."""
        parts = row.pair() if self.style == "dpo" else row.labelled()
        if parts is None:
            lacks = "rejected answer" if self.style == "dpo" else "label that says whether its answer is wanted"
            raise CurateError(f"sample {row.id} has no {lacks}, as style={self.style} needs.")
        if any(message.get("weight", 1) != 1 for answer in parts[1:] for message in answer):
            raise CurateError(f"sample {row.id} has an answer with turns of other weights than 1, and TRL knows none.")
        names = ("prompt", "chosen", "rejected") if self.style == "dpo" else ("prompt", "completion")
        columns = {name: typed(without_weights(part), row) for name, part in zip(names, parts, strict=True)}
        return columns if self.style == "dpo" else {**columns, "label": row.wanted}

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
