"""From a file through the pool into every export that can hold it, and back by its consumer's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.exact_json import dumps, loads
from curate.kinds.export import Row
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.datasets import Datasets
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.open_instruct import OpenInstruct
from curate.methods.exports.parquet import Parquet
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec

WORDS = [
    "naïve",
    "日本語",
    "café",
    "\u2028",
    "e\u0301",
    '"quoted"',
    "a\\b",
    "tab\there",
    "2024-01-02",
    "null",
    "1.10",
    "<s>",
]
NUMBERS = ["1.10", "1e5", "-0", "3", "0.5", "1180591620717411303424", "0.123456789012345678", "true", "null"]


def generated(n: int, exact: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Chats with tools, reasoning, weights, names and documents here and there, keys in any order. exact: with numbers
    that not every loader keeps."""
    rng = np.random.default_rng(seed)

    def words(k: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), k))

    def value(depth: int = 0) -> Any:
        kind = rng.integers(5)
        if kind == 0 or depth > 2:
            return loads(NUMBERS[rng.integers(len(NUMBERS))]) if exact else int(rng.integers(1000))
        if kind == 1:
            return [value(depth + 1) for _ in range(rng.integers(1, 3))]
        if kind == 2:
            return {f"k{int(i)}": value(depth + 1) for i in rng.permutation(4)[: rng.integers(1, 4)]}
        return words(2)

    rows = []
    for i in range(n):
        messages: list[dict[str, Any]] = [{"role": "system", "content": words(2)}] if rng.random() < 0.3 else []
        for turn in range(rng.integers(1, 4)):
            named = {"name": words(1)} if rng.random() < 0.1 else {}
            messages.append({"role": "user", "content": f"{i} {turn} {words(3)}", **named})
            if rng.random() < 0.3:
                function = {"name": f"f{int(rng.integers(9))}", "arguments": {f"z{i}": value(), "a": value()}}
                messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
                messages.append({"role": "tool", "content": words(2), "name": function["name"]})
            more = {"reasoning_content": words(3)} if rng.random() < 0.2 else {}
            messages.append({"role": "assistant", "content": words(2), **more})
        row: dict[str, Any] = {"messages": messages}
        if rng.random() < 0.4:
            parameters = {"properties": {f"p{int(k)}": value() for k in rng.permutation(3)}, "type": "object"}
            row["tools"] = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}}]
        if exact and rng.random() < 0.2:
            answers = [message for message in messages if message["role"] == "assistant"]
            answers[0]["weight"] = [0, 0.5][rng.integers(2)]
        if exact and rng.random() < 0.2:
            row["documents"] = [{"title": words(1), "text": words(4)}]
        rows.append(row)
    return rows


def pool(folder: Path, rows: list[dict[str, Any]]) -> Workspace:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(f"{dumps(row)}\n" for row in rows))
    ws = curate.open_workspace(folder / "ws")
    assert curate.ingest(ws, [str(folder / "rows.jsonl")]).added == len(rows)
    curate.select(ws, "every", Random(), SelectionSpec(frac=1.0))
    return ws


def content(row: Any) -> str:
    """What a sample is, as text: equal only if keys are in the same order and numbers are spelled alike."""
    return dumps({name: row[name] for name in ("messages", "tools", "documents") if row.get(name)})


def stored(row: Any) -> str:
    """The same of a row of our own columns."""
    of = Row("", "", row["messages"], None, template_kwargs=row["template_kwargs"])
    return content({"messages": of.weighted_chat(), **of.kwargs()})


def load_json(files: list[str], folder: Path) -> Any:
    import datasets

    lines = [file for file in files if file.endswith(".jsonl")]
    return datasets.load_dataset("json", data_files=lines, split="train", cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[dict[str, Any]]]:
    rows = generated(1000, exact=True)
    return pool(tmp_path_factory.mktemp("exact"), rows), rows


def test_our_own_columns_hold_everything_to_the_letter(exact: tuple[Workspace, Any], tmp_path: Path) -> None:
    import datasets

    ws, rows = exact
    want = [content(row) for row in rows]
    lines = curate.export(ws, "every", Jsonl(), str(tmp_path / "jsonl")).files[0]
    assert [content(loads(line)) for line in Path(lines).read_text().split("\n")[:-1]] == want
    file = curate.export(ws, "every", Parquet(), str(tmp_path / "parquet")).files[0]
    got = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert [stored(row) for row in got] == want
    folder = curate.export(ws, "every", Datasets(), str(tmp_path / "saved")).folder
    assert [stored(row) for row in datasets.load_from_disk(folder)] == want
    ids = list(curate.sql(ws, "SELECT id FROM pool ORDER BY row"))
    for path in (lines, file, folder):
        again = curate.open_workspace(tmp_path / f"again-{Path(path).name}")
        curate.ingest(again, [path])
        assert list(curate.sql(again, "SELECT id FROM pool ORDER BY row")) == ids


def test_an_mds_shard_holds_everything_too(exact: tuple[Workspace, Any], tmp_path: Path) -> None:
    ws, rows = exact
    made = [Mds().example(Row("0" * 16, "s", **row)) for row in curate.sql(
        ws, "SELECT messages, text, meta, template_kwargs FROM pool ORDER BY row")]  # fmt: skip
    assert [content({**row, **row["template_kwargs"]}) for row in made] == [content(row) for row in rows]


@pytest.mark.parametrize("exporter", [Trl(), Axolotl(), OpenInstruct()], ids=lambda e: e.name)
def test_datasets_reads_what_trainers_read_whatever_keys_come_when(tmp_path: Path, exporter: Any) -> None:
    """12 MB of plain chats first, so that the first block that types are taken from has neither tools nor calls."""
    plain = [{"messages": [{"role": "user", "content": f"{i} {'x ' * 2500}"}, {"role": "assistant", "content": "a"}]}
             for i in range(2300)]  # fmt: skip
    rows = [*plain, *generated(200, exact=False)]
    ws = pool(tmp_path, rows)
    result = curate.export(ws, "every", exporter, str(tmp_path / "out"))
    got = []
    for row in load_json(result.files, tmp_path):
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"]]
        tools = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
        got.append(content({"messages": messages, "tools": tools}))
    assert sorted(got) == sorted(content(row) for row in rows)


@pytest.mark.parametrize("exporter", [Axolotl(), OpenInstruct(), Trl(style="messages")], ids=lambda e: e.name)
def test_a_sample_that_is_left_out_does_not_lead_the_file(tmp_path: Path, exporter: Any) -> None:
    """The first row of a file says that tools are lists; so it must be one that is written."""
    unfit = {"role": "assistant", "content": "good", "weight": 0.5}
    rows = [{"messages": [{"role": "user", "content": str(i)}, GOOD], "tools": []} for i in range(3)]
    rows += [{"messages": [ASK, unfit], "tools": [{"name": "f"}]}, {"messages": [ASK, GOOD], "tools": [{"name": "g"}]}]
    ws = pool(tmp_path, rows)
    done = curate.export(ws, "every", exporter, str(tmp_path / "out"), skip_unfit=True)
    assert done.rows == 4 and len(done.skipped) == 1
    got = load_json(done.files, tmp_path)
    assert [row["tools"] for row in got] == [[{"name": "g"}], None, None, None]


@pytest.mark.parametrize("exporter", [Axolotl(), OpenInstruct(), Trl(style="messages")], ids=lambda e: e.name)
@pytest.mark.parametrize("number", ["1180591620717411303424", "-9223372036854775809", "1E400", f"1{'0' * 30}.5"])
def test_a_number_that_datasets_cannot_read_is_refused_in_calls(tmp_path: Path, exporter: Any, number: str) -> None:
    """In tools it is text, except in the first row, where another sample stands then."""
    call = {"function": {"name": "f", "arguments": {"a": loads(number)}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [{"messages": [ASK, called], "tools": [{"name": "f"}]}, {"messages": [ASK, GOOD], "tools": [call]}]
    rows += [{"messages": [ASK, BAD], "tools": [{"name": "g", "n": 18446744073709551615}]}]
    ws = pool(tmp_path, rows)
    done = curate.export(ws, "every", exporter, str(tmp_path / "out"), skip_unfit=True)
    (skipped,) = done.skipped
    assert f"has the number {number[:40]}, which `datasets`" in skipped and done.rows == 2
    tools = [row["tools"] for row in load_json(done.files, tmp_path)]
    assert tools == [rows[2]["tools"], dumps([call])] or tools == [rows[2]["tools"], [json.loads(dumps(call))]]


def test_prompts_and_completions_that_are_dates_stay_texts(tmp_path: Path) -> None:
    days = [f"2024-01-{day:02d}T00:00:00" for day in range(1, 29)]
    ws = pool(tmp_path, [
        {"messages": [{"role": "user", "content": day}, {"role": "assistant", "content": day}]} for day in days
    ])  # fmt: skip
    result = curate.export(ws, "every", Trl(style="prompt_completion"), str(tmp_path / "out"))
    data = load_json(result.files, tmp_path)
    assert [row["completion"][0]["content"] for row in data] == days == [row["prompt"][0]["content"] for row in data]


def test_llamafactory_s_file_has_the_layout_that_its_loader_documents(tmp_path: Path) -> None:
    arguments = {"z": "1", "a": {"b": 2}}
    call = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": dumps(arguments)}}
    asks, says = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"}
    rows = [{"messages": [asks, called, tool, says], "tools": [{"name": "f"}]}, {"messages": [asks, says]}]
    ws = pool(tmp_path, rows)
    result = curate.export(ws, "every", Llamafactory(), str(tmp_path / "out"))
    first, second = load_json(result.files, tmp_path)
    assert first["messages"][1] == {"role": "function_call", "content": dumps({"name": "f", "arguments": arguments})}
    assert first["messages"][2] == {"role": "tool", "content": "3"} and json.loads(first["tools"]) == [{"name": "f"}]
    assert second["messages"] == [asks, says] and second["tools"] == ""
    again = curate.open_workspace(tmp_path / "again")
    curate.ingest(again, [file for file in result.files if file.endswith("jsonl")])
    (row,) = curate.sql(again, "SELECT messages, template_kwargs FROM pool WHERE row = 0")
    assert json.loads(row["messages"][1]["extra"])["tool_calls"][0]["function"]["arguments"] == arguments
    assert json.loads(row["template_kwargs"]) == {"tools": [{"name": "f"}]}


ASK, BAD, GOOD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "bad"},
    {"role": "assistant", "content": "good"},
)


@pytest.mark.parametrize(
    ("exporter", "weights", "holds"),
    [
        (Trl(style="messages"), [0, 1], "weight 0, 1, and TRL trains on them all; export with --set tokenizer=MODEL"),
        (Trl(), [0, 1], ""), (Trl(), [1, 0], "weight 1, 0, and TRL"), (Trl(style="prompt_completion"), [0, 1], ""),
        (Trl(style="prompt_completion"), [1, 0], "assistant's turns of weight 1, 0"), (Axolotl(), [0, 1], ""),
        (Axolotl(), [0.5, 1], "weight 0.5, 1, and axolotl"), (OpenInstruct(), [0, 1], "open-instruct"),
        (Llamafactory(), [0, 1], "LLaMA-Factory"), (Jsonl(), [0, 0.5], ""),
    ],
)  # fmt: skip
def test_an_export_holds_the_weights_of_turns_or_refuses_the_sample(exporter: Any, weights: Any, holds: str) -> None:
    turns = [{**turn, "extra": json.dumps({"weight": w})} for turn, w in zip((BAD, GOOD), weights, strict=True)]
    row = Row.of([ASK, turns[0], ASK, turns[1]])
    if holds:
        with pytest.raises(CurateError, match=holds):
            exporter.example(row)
        return
    shown = exporter.example(row)
    if exporter.name == "axolotl":
        assert [m.get("train") for m in shown["messages"]] == [None, False, None, True]
    elif exporter.name == "trl":
        assert (shown["prompt"], shown["completion"]) == ([ASK, BAD, ASK], [GOOD])


@pytest.mark.parametrize("exporter", [Trl(), Axolotl(), OpenInstruct(), Llamafactory()], ids=lambda e: e.name)
def test_documents_that_a_trainer_gives_to_no_template_are_refused(exporter: Any) -> None:
    import dataclasses

    row = dataclasses.replace(Row.of([ASK, GOOD]), template_kwargs='{"documents":[{"text":"x"}]}')
    with pytest.raises(CurateError, match="has documents, which .* gives to no chat template"):
        exporter.example(row)
