from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    refused.

    Reference: LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Llamafactory().example(Row.of(said))["messages"][0]["role"]
    'user'
    """

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
        paths = {"chat": folder / f"{name}.jsonl", "text": folder / f"{name}_text.jsonl"}
        with open(paths["chat"], "wb") as chat, open(paths["text"], "wb") as text:
            for row in rows:
                line = json.dumps(self.example(row), ensure_ascii=False).encode() + b"\n"
                (text if row.messages is None else chat).write(line)
        info = {}
        for shape, path in paths.items():
            if path.stat().st_size:
                info[path.stem] = {"file_name": path.name, **_DESCRIPTION[shape]}
            else:
                path.unlink()
        index = folder / "dataset_info.json"
        index.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return [*(path for path in paths.values() if path.exists()), index]


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
