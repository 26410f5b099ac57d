from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curate.errors import CurateError
from curate.method import Export, Row


@dataclass(frozen=True)
class Llamafactory(Export):
    """LLaMA-Factory: a JSONL per shape and the `dataset_info.json` that names them.

    Format: `NAME.jsonl` (chat, as formatting `sharegpt` with OpenAI's keys: a system turn or none, then user and
    assistant in turn, the assistant last) and `NAME_text.jsonl` (raw text, for `stage: pt`), each only where there is
    one; `dataset_info.json` describes them as `NAME` and `NAME_text`. Give the folder as `dataset_dir` and the names
    as `dataset`. Every column is listed, since naming some sets the others to null.

    Cost: one reading of the selected shards.

    Departures: LLaMA-Factory drops a conversation out of turn with a log line only; here such a sample is refused (or
    left out and reported, with --skip-unfit). It takes no weight per row (issue 5033), so a weighted manifest is
    refused, or its rows repeat (weights=repeats), or they come as datasets NAME_0, NAME_1, … of like weight
    (weights=strata), with the `dataset`, `mix_strategy` and `interleave_probs` to draw them by in `NAME.mix.json`.

    Reference: LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Llamafactory().example(Row.of(said))["messages"][0]["role"]
    'user'
    """

    weights: Literal["refuse", "repeats", "strata"] = "refuse"
    """Of weights that differ: refuse them; repeat rows, as many in all as there are, in proportion; or make strata."""
    strata: int = 4
    """How many datasets of like weight, by its quantiles, weights=strata makes."""

    def example(self, row: Row) -> dict[str, Any]:
        if row.messages is None:
            return {"text": row.text}
        for message in row.messages:
            if message["extra"]:
                keys = ", ".join(json.loads(message["extra"]))
                raise CurateError(f"sample {row.id} has a message with {keys}, which LLaMA-Factory's file cannot hold.")
        if json.loads(row.meta).get("tools"):
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
        info: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for row in rows:
                kind = "text" if row.messages is None else "chat"
                dataset = self._dataset(name, row.stratum, kind)
                if dataset not in files:
                    files[dataset] = stack.enter_context(open(folder / f"{dataset}.jsonl", "wb"))
                    info[dataset] = {"file_name": f"{dataset}.jsonl", **_DESCRIPTION[kind]}
                files[dataset].write(json.dumps(self.example(row), ensure_ascii=False).encode() + b"\n")
        index = folder / "dataset_info.json"
        index.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return [*(folder / f"{dataset}.jsonl" for dataset in info), index]

    def _dataset(self, name: str, stratum: int, kind: str) -> str:
        part = f"{name}_{stratum}" if self.weights == "strata" else name
        return part if kind == "chat" else f"{part}_text"

    def describe(self, folder: Path, name: str, means: Sequence[float], sizes: Sequence[int]) -> list[Path]:
        mass = {}
        for kind in ("chat", "text"):
            for stratum, mean in enumerate(means):
                path = folder / f"{self._dataset(name, stratum, kind)}.jsonl"
                if path.exists():
                    with open(path, "rb") as f:
                        mass[path.stem] = mean * sum(1 for _ in f)
        mass = {dataset: value for dataset, value in mass.items() if value > 0}  # a stratum of no weight is never drawn
        probabilities = [value / sum(mass.values()) for value in mass.values()]
        told = {
            "dataset": ",".join(mass),
            "mix_strategy": "interleave_over",
            "interleave_probs": ",".join(f"{p!r}" for p in probabilities),
        }
        path = folder / f"{name}.mix.json"
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return [path]


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
