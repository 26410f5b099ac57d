from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, part_file, typed, typed_tools


@dataclass(frozen=True)
class OpenInstruct(Export):
    """open-instruct: a JSONL of messages per part, and the `--dataset_mixer_list` that draws from them.

    Format: `NAME.jsonl`, or for every part `NAME_LABEL.jsonl`, one {"messages": [{"role", "content"}]} a line;
    `NAME.args` has the arguments `--dataset_mixer_list FILE ROWS …`, whole numbers of rows (more than a file has
    repeats it), `--dataset_mixer_list_splits train`, and the `--dataset_transform_fn` by which the loss is on the
    assistant's turns. A column `tools` is there if a sample of the export has some;
    the first row of a file then is one with tools, as a list; the others have them as JSON text, which `datasets`
    decodes, and without which it would refuse rows with other tools behind the first 10 MB.

    Cost: two reads of the selected shards.

    Departures: raw text is refused, as open-instruct's SFT reads only chats; so are preference data, and samples with
    documents, chat_template_kwargs or weights of turns, which it does not know. It computes the loss on the assistant's
    turns, and cuts samples at `--max_seq_length`. Its rows have no weight, so rows of different weights become parts of
    similar weight (weights=strata), or rows repeat (weights=repeats), or are refused.
    Where fewer rows are drawn than a part has, open-instruct samples them itself; its older versions refuse to draw
    more than there are.

    Reference: allenai/open-instruct, open_instruct/dataset_transformation.py (`get_cached_dataset_tulu`).

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> OpenInstruct().example(Row.of(said))["messages"][1]["content"]
    'an apple'
    """

    uniform: ClassVar[bool] = True
    leads_with_tools: ClassVar[bool] = True
    blends: ClassVar[bool] = True

    weights: Literal["refuse", "repeats", "strata"] = "strata"
    """If weights differ: make strata; repeat rows in proportion, keeping the total number of rows; or refuse them."""
    strata: int = 8
    """How many parts of similar weight, by quantiles, weights=strata makes of each source."""

    def example(self, row: Row) -> dict[str, Any]:
        if row.messages is None:
            raise CurateError(f"sample {row.id} is raw text, and open-instruct's SFT reads chats.")
        row.refuse_preferences("open-instruct's SFT")
        row.refuse_kwargs(("tools",), "open-instruct")
        row.refuse_weights("open-instruct")
        return {"messages": typed(row.chat(), row), **typed_tools(row)}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return self.write_parts(rows, folder, lambda row: part_file(name, row.part))

    def assumes(self, folder: Path, name: str) -> str:
        return (
            "open-instruct trains on the assistant's turns, as they are scored; "
            f"{name}.args: --dataset_transform_fn {' '.join(_TRANSFORMS)}. It cuts samples at --max_seq_length."
        )

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        drawn = [(str(final / f"{part.file(name)}.jsonl"), str(part.draws)) for part in parts if part.draws]
        words = [
            "--dataset_mixer_list",
            *(word for pair in drawn for word in pair),
            "--dataset_mixer_list_splits",
            "train",
            "--dataset_transform_fn",
            *_TRANSFORMS,
        ]
        path = folder / f"{name}.args"
        path.write_text(shlex.join(words) + "\n", encoding="utf-8")
        return [path]


# Its names for: the labels are the assistant's turns; rows without a label are left out.
_TRANSFORMS = ("sft_tulu_tokenize_and_truncate_v1", "sft_tulu_filter_v1")
