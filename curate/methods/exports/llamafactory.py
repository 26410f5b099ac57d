from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, part_file, without_weights


@dataclass(frozen=True)
class Llamafactory(Export):
    """LLaMA-Factory: a JSONL per shape and the `dataset_info.json` that names them.

    Format: `NAME.jsonl` (chat, as formatting `sharegpt` with OpenAI's keys: a system turn or none, then user or tool
    and assistant or function_call in turn, the model's last; `tools` as JSON text), `NAME_text.jsonl` (raw text, for
    `stage: pt`), `NAME_pairs.jsonl` (preference pairs, for `stage: dpo`: the prompt, and one turn `chosen` and
    `rejected` each) and `NAME_kto.jsonl` (labelled answers, for `stage: kto`: a chat with `kto_tag`), each only if
    there is such a sample; `dataset_info.json` describes them as `NAME`, `NAME_text`, `NAME_pairs` and `NAME_kto`.
    Every column is listed, since naming some sets the others to None. `NAME.llamafactory.yaml` (for several stages
    `NAME_STAGE.llamafactory.yaml`) has the settings with which it trains on what is scored, and the names as `dataset`;
    its `dataset_dir` is the folder in which you run it: start in the export's folder, or change that.

    Cost: one read of the selected shards.

    Departures: LLaMA-Factory drops a conversation whose turns do not alternate, with only a log line; here such a
    sample is refused (or left out and reported, with --skip-unfit), and so is one with reasoning, documents,
    chat_template_kwargs or weights of turns, or a pair whose answers have several turns. The ids of calls and the names
    of tools that answer are left out: its templates print neither. It renders chats by a
    template of its own, named by `template`; without that it derives one from the tokenizer's, which adds an empty
    thought to answers of reasoning models. It cuts samples at `cutoff_len`, where the settings name a length that cuts
    nothing. It takes no weight per row (issue 5033), so a weighted manifest is refused, or its rows repeat
    (weights=repeats), or they are written as datasets NAME_0, NAME_1, … of similar weight (weights=strata), with the
    `dataset`, `mix_strategy` and `interleave_probs` to draw them by in `NAME.mix.json`. So are the domains of a
    mixture.

    Reference: LLaMA-Factory, data/README.md, src/llamafactory/data/parser.py and converter.py.

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
        row.refuse_kwargs(("tools",), "LLaMA-Factory")
        _refuse_weights(row)
        tools = row.kwargs().get("tools")
        columns = {"tools": exact_json.dumps(tools) if tools else ""}
        if pair := row.pair():
            prompt, *answers = ([_as_called(m, row.id) for m in without_weights(part)] for part in pair)
            if any(len(answer) != 1 for answer in answers):
                raise CurateError(f"sample {row.id} has answers of several turns, and LLaMA-Factory's pairs one each.")
            for answer in answers:
                _refuse_turns([*prompt, *answer], row.id)
            return {"messages": prompt, "chosen": answers[0][0], "rejected": answers[1][0], **columns}
        chat = [_as_called(message, row.id) for message in row.chat()]
        _refuse_turns(chat, row.id)
        return {"messages": chat, **columns, **({} if row.wanted is None else {"kto_tag": row.wanted})}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        kinds: dict[str, str] = {}

        def file(row: Row) -> str:
            dataset = _dataset(part_file(name, row.part), row.kind)
            kinds[dataset] = row.kind
            return dataset

        files = self.write_parts(rows, folder, file)
        info = {path.stem: {"file_name": path.name, **_DESCRIPTION[kinds[path.stem]]} for path in files}
        index = folder / "dataset_info.json"
        index.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return [*files, index, *_settings_files(folder, name, kinds)]

    def assumes(self, folder: Path, name: str) -> str:
        files = ", ".join(sorted(path.name for path in folder.glob("*.llamafactory.yaml")))
        return (
            "LLaMA-Factory trains on the assistant's turns and on all tokens of raw text, as they are scored, unless "
            f"train_on_prompt or mask_history is set; {files}: both are false; set `template` to your model's."
        )

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        if len(parts) == 1:
            return []
        mass = {}
        for part in parts:
            files = [folder / f"{_dataset(part.file(name), kind)}.jsonl" for kind in _ENDING]
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


def _settings_files(folder: Path, name: str, kinds: Mapping[str, str]) -> list[Path]:
    """Write the settings for every stage that the datasets are for. kinds: dataset -> kind of its rows."""
    files = []
    for kind, stage in _STAGE.items():
        if datasets := [dataset for dataset, k in kinds.items() if k == kind]:
            several = len(set(kinds.values())) > 1
            path = folder / f"{name}{f'_{stage}' if several else ''}.llamafactory.yaml"
            lines = [*_HEAD, f"stage: {stage}", "dataset_dir: .", f"dataset: {','.join(datasets)}"]
            lines += _BLOCKS if stage == "pt" else _length(folder, datasets)
            path.write_text("\n".join([*lines, *(_SFT if stage == "sft" else ())]) + "\n", encoding="utf-8")
            files.append(path)
    return files


def _length(folder: Path, datasets: Sequence[str]) -> list[str]:
    """The setting `cutoff_len` by which no sample is cut."""
    longest = 0
    for dataset in datasets:
        with (folder / f"{dataset}.jsonl").open("rb") as f:
            longest = max(longest, *(len(line) for line in f))
    return [
        f"# Nothing is cut (the default: at 2,048 tokens): the longest row has {longest:,} bytes, hardly more tokens.",
        f"cutoff_len: {longest}",
    ]


def _refuse_weights(row: Row) -> None:
    """Raises CurateError if turns that are trained on have weights; of preference data, only answers are."""
    answers = row.pair() or row.labelled()
    if answers is None:
        row.refuse_weights("LLaMA-Factory")
    elif any(message.get("weight", 1) != 1 for answer in answers[1:] for message in answer):
        raise CurateError(f"sample {row.id} has an answer of another weight than 1, and LLaMA-Factory knows none.")


def _refuse_turns(chat: Sequence[dict[str, Any]], sample_id: str) -> None:
    """Raises CurateError for turns that LLaMA-Factory would drop."""
    roles = [message["role"] for message in chat]
    turns = roles[1:] if roles[0] == "system" else roles
    asks = all(role in ("user", "tool") for role in turns[::2])
    answers = all(role in ("assistant", "function_call") for role in turns[1::2])
    if not turns or len(turns) % 2 or not (asks and answers):
        raise CurateError(
            f"sample {sample_id} has the turns {', '.join(roles)}, and LLaMA-Factory wants user and assistant in turn."
        )


def _as_called(message: dict[str, Any], sample_id: str) -> dict[str, Any]:
    """A message as role and content; calls of tools as the content of the role function_call. Raises CurateError."""
    calls = message.get("tool_calls")
    dropped = ("tool_call_id", "name") if message["role"] == "tool" else ("tool_calls",)
    if keys := [key for key in message if key not in ("role", "content", *dropped)]:
        raise CurateError(
            f"sample {sample_id} has a message with {', '.join(keys)}, which LLaMA-Factory's file cannot hold."
        )
    if not calls:
        return {"role": message["role"], "content": message["content"]}
    if message["content"]:
        raise CurateError(
            f"sample {sample_id} has a message with content and tool_calls, and LLaMA-Factory's holds one of them."
        )
    said = [_call(call, sample_id) for call in calls]
    return {"role": "function_call", "content": exact_json.dumps(said[0] if len(said) == 1 else said)}


def _call(call: Any, sample_id: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else {}
    function = function if isinstance(function, dict) else {}
    name, given = function.get("name"), function.get("arguments", {})
    if isinstance(given, str):
        with suppress(ValueError):
            given = exact_json.loads(given)
    if not isinstance(name, str) or not isinstance(given, dict):
        raise CurateError(
            f"sample {sample_id} has tool_calls without a name or arguments, as LLaMA-Factory wants them."
        )
    return {"name": name, "arguments": given}


def _dataset(file: str, kind: str) -> str:
    return file + _ENDING[kind]


def _lines(path: Path) -> int:
    with path.open("rb") as f:
        return sum(1 for _ in f)


_STAGE = {"chat": "sft", "text": "pt", "pair": "dpo", "labelled": "kto"}
_HEAD = (
    "# Copy this into your configuration, and run LLaMA-Factory in this folder (or write the folder as dataset_dir).",
    "# Set `template` to your model's.",
)
_BLOCKS = ("# Texts are joined and cut into blocks of cutoff_len tokens (2,048 by default); the rest is dropped.",)
_SFT = (
    "# The loss is on all turns of the assistant's, as they are scored.",
    "train_on_prompt: false",
    "mask_history: false",
)
_ENDING = {"chat": "", "text": "_text", "pair": "_pairs", "labelled": "_kto"}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_COLUMNS = {"messages": "messages", "tools": "tools"}
_DESCRIPTION: dict[str, dict[str, Any]] = {
    "chat": {"formatting": "sharegpt", "columns": _COLUMNS, "tags": _TAGS},
    "text": {"formatting": "alpaca", "columns": {"prompt": "text"}},
    "pair": {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {**_COLUMNS, "chosen": "chosen", "rejected": "rejected"},
        "tags": _TAGS,
    },
    "labelled": {"formatting": "sharegpt", "columns": {**_COLUMNS, "kto_tag": "kto_tag"}, "tags": _TAGS},
}
