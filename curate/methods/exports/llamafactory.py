from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, part_file


@dataclass(frozen=True)
class Llamafactory(Export):
    """LLaMA-Factory: a JSONL per shape and the `dataset_info.json` that names them.

    Format: `NAME.jsonl` (chat, as formatting `sharegpt` with OpenAI's keys: a system turn or none, then user and
    assistant in turn, the assistant last) and `NAME_text.jsonl` (raw text, for `stage: pt`), each only if there is such
    a sample; `dataset_info.json` describes them as `NAME` and `NAME_text`. Give the folder as `dataset_dir` and the
    names as `dataset`. Every column is listed, since naming some sets the others to None.

    Cost: one read of the selected shards.

    Departures: LLaMA-Factory drops a conversation whose turns do not alternate, with only a log line; here such a
    sample is refused (or left out and reported, with --skip-unfit). It takes no weight per row (issue 5033), so a
    weighted manifest is refused, or its rows repeat (weights=repeats), or they are written as datasets NAME_0, NAME_1,
    … of similar weight (weights=strata), with the `dataset`, `mix_strategy` and `interleave_probs` to draw them by in
    `NAME.mix.json`. So are the domains of a mixture.

    Reference: LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Llamafactory().example(Row.of(said))["messages"][0]["role"]
    'user'
    """

    blends: ClassVar[bool] = True

    weights: Literal["refuse", "repeats", "strata"] = "refuse"
    """If weights differ: refuse them; repeat rows in proportion, keeping the total number of rows; or make strata."""
    strata: int = 4
    """How many datasets of similar weight, by quantiles, weights=strata makes of each source."""

    def example(self, row: Row) -> dict[str, Any]:
        if row.messages is None:
            return {"text": row.text}
        for message in row.messages:
            if message["extra"]:
                keys = ", ".join(json.loads(message["extra"]))
                raise CurateError(f"sample {row.id} has a message with {keys}, which LLaMA-Factory's file cannot hold.")
        if exact_json.loads(row.meta).get("tools"):
            raise CurateError(
                f"sample {row.id} offers tools, which this export of LLaMA-Factory's format does not hold."
            )
        roles = [message["role"] for message in row.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
            raise CurateError(
                f"sample {row.id} has the turns {', '.join(roles)}, and LLaMA-Factory wants user and assistant in turn."
            )
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in row.messages]}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        kinds: dict[str, str] = {}

        def file(row: Row) -> str:
            kind = "text" if row.messages is None else "chat"
            dataset = _dataset(part_file(name, row.part), kind)
            kinds[dataset] = kind
            return dataset

        files = self.write_parts(rows, folder, file)
        info = {path.stem: {"file_name": path.name, **_DESCRIPTION[kinds[path.stem]]} for path in files}
        index = folder / "dataset_info.json"
        index.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return [*files, index]

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        if len(parts) == 1:
            return []
        mass = {}
        for part in parts:
            files = [folder / f"{_dataset(part.file(name), kind)}.jsonl" for kind in ("chat", "text")]
            lines = {path.stem: _lines(path) for path in files if path.exists()}
            mass |= {dataset: part.share * n / sum(lines.values()) for dataset, n in lines.items()}
        config = {
            "dataset": ",".join(mass),
            "mix_strategy": "interleave_over",
            "interleave_probs": ",".join(f"{p / sum(mass.values())!r}" for p in mass.values()),
        }
        path = folder / f"{name}.mix.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return [path]


def _dataset(file: str, kind: str) -> str:
    return file if kind == "chat" else f"{file}_text"


def _lines(path: Path) -> int:
    with path.open("rb") as f:
        return sum(1 for _ in f)


_DESCRIPTION: dict[str, dict[str, Any]] = {
    "chat": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    },
    "text": {"formatting": "alpaca", "columns": {"prompt": "text"}},
}
