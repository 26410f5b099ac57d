"""What the keys of turns are: part of the sample, weights of the loss, or metadata; and tools in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.exact_json import dumps, loads
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

USER = {"role": "user", "content": "q"}
PARAMETERS = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "number", "default": None}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": PARAMETERS}}


def read(record: Any, **kwargs: Any) -> Any:
    return Reader(**kwargs).sample(record)


def extra(sample: Any, i: int = 1) -> Any:
    return json.loads(sample.messages[i]["extra"]) if sample.messages[i]["extra"] else None


def answer(**keys: Any) -> Any:
    return read({"messages": [USER, {"role": "assistant", "content": "a", **keys}]})


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"weight": 0}, 0), ({"weight": 0.25}, 0.25), ({"weight": False}, 0), ({"weight": 1}, 1), ({"weight": 1.0}, 1),
        ({"train": False}, 0), ({"training": False}, 0), ({"trainable": 0}, 0), ({"train": True}, 1),
        ({"loss": False}, 0), ({"loss": True}, 1), ({"loss": 0.0}, 1), ({"loss": 2.5}, 1),
        ({"mask": True}, 0), ({"masked": 1}, 0), ({"mask": False}, 1), ({"mask": "nonsense"}, 1),
    ],
)  # fmt: skip
def test_a_turn_s_weight_is_read_in_every_spelling(keys: dict[str, Any], weight: float) -> None:
    sample = answer(**keys)
    assert extra(sample) == (None if weight == 1 else {"weight": weight})
    assert (sample.id == answer().id) == (weight == 1)
    if weight == 1:  # nothing is lost
        assert json.loads(sample.meta) == {"messages": [None, keys]}


@pytest.mark.parametrize("key", ["train", "training", "loss", "mask"])
def test_a_text_that_says_whether_a_turn_is_learnt_is_refused(key: str) -> None:
    with pytest.raises(Refused, match=rf"messages\[1\].{key} is the text 'False', and true or false is wanted"):
        answer(**{key: "False"})


def test_turns_may_be_json_text_as_in_a_table() -> None:
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [TOOL]}]
    assert read({"messages": dumps(turns)}).messages == read({"messages": turns}).messages
    assert read({"conversations": dumps(turns)}).id == read({"messages": turns}).id
    with pytest.raises(Refused, match="messages is no list"):
        read({"messages": str(turns)})  # as Python prints them


@pytest.mark.parametrize("value", [-1, "0", [1], float("inf")])
def test_a_weight_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(Refused, match=r"messages\[1\].weight is .* and a number of at least 0 is wanted"):
        answer(weight=value)


@pytest.mark.parametrize("role", [None, "", " ", 3])
def test_a_turn_without_a_role_is_refused(role: Any) -> None:
    for turn in ({"role": role, "content": "a"}, {"from": role, "value": "a"}):
        with pytest.raises(Refused, match=r"messages\[1\] names no role"):
            read({"messages": [USER, turn]})


def test_a_turn_that_is_trained_in_part_is_refused() -> None:
    with pytest.raises(Refused, match="train_detail"):
        answer(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}])


def test_a_user_s_weight_is_metadata() -> None:
    sample = read({"messages": [{**USER, "weight": 0}, {"role": "assistant", "content": "a"}]})
    assert sample.messages[0]["extra"] is None and json.loads(sample.meta)["messages"][0] == {"weight": 0}


def test_metadata_of_turns_goes_to_meta_and_hides_no_copy(ws: Workspace, tmp_path: Path) -> None:
    def said(n: int) -> dict[str, Any]:
        turns = [{"from": "human", "value": "q", "ip": n, "at": "noon"}, {"from": "gpt", "value": "a", "turn": n}]
        return {"conversations": turns, "id": n}

    told = curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", [said(n) for n in range(3)])])
    assert (told.added, told.copies) == (1, 2)
    assert told.warnings == [
        "keys of turns that chat templates do not print went to meta: ip (3 turns), at (3 turns), turn (3 turns); "
        "--turn-key NAME makes one part of the sample",
        "2 known samples came with other fields; those in the pool were kept; --meta replace or merge takes the new "
        "ones",
    ]
    (row,) = curate.sql(ws, "SELECT messages, meta FROM pool")
    assert [m["extra"] for m in row["messages"]] == [None, None]
    assert json.loads(row["meta"]) == {"conversations": [{"ip": 0, "at": "noon"}, {"turn": 0}], "id": 0}
    assert told.meta_fields == {"sharegpt": ["conversations", "id"]}
    assert told.examples == {"sharegpt": ["user: q", "assistant: a"]}


def test_a_key_that_the_user_names_is_part_of_the_sample() -> None:
    record = {"messages": [USER, {"role": "assistant", "content": "a", "mood": "glad", "id": 1}]}
    sample = read(record, turn_keys=frozenset(["mood"]))
    assert extra(sample) == {"mood": "glad"} and sample.id != read(record).id


@pytest.mark.parametrize("key", ["name", "reasoning_content", "thinking", "tool_plan", "tools"])
def test_what_templates_print_is_part_of_the_sample(key: str) -> None:
    assert extra(answer(**{key: "x"})) == {key: "x"} and extra(answer(**{key: ""})) is None


# --- tools ---------------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "f", "arguments": {"z": "1", "a": 2}}}
CALLED = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
CHAT = [*CALLED, {"role": "assistant", "content": "4"}]
ARGUMENTS = '{"name": "f", "arguments": {"z": "1", "a": 2}}'
SHAREGPT = [
    {"from": "human", "value": "q"},
    {"from": "function_call", "value": ARGUMENTS},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "4"},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "tools": [TOOL]},
        {"messages": CHAT, "tools": json.dumps([TOOL])},
        {"messages": CHAT, "tools": [json.dumps(TOOL)]},
        {"messages": CHAT, "tools": TOOL},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])}, *CHAT[2:]],
         "tools": [TOOL]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [json.dumps(CALL)]}, *CHAT[2:]], "tools": [TOOL]},
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": json.loads(ARGUMENTS)},
                      {"role": "function", "content": "3"}, CHAT[3]], "functions": [TOOL["function"]]},
        {"conversations": SHAREGPT, "tools": json.dumps([TOOL])},
        {"prompt": CHAT[:-1], "completion": CHAT[-1:], "tools": [TOOL]},
        {"messages": [USER, CHAT[1], {"role": "tool", "content": 3}, CHAT[3]], "tools": [TOOL]},
    ],
)  # fmt: skip
def test_tools_and_calls_are_the_same_sample_in_every_layout(record: Any) -> None:
    sample = read(record)
    assert sample.id == read({"messages": CHAT, "tools": [TOOL]}).id
    assert sample.template_kwargs == dumps({"tools": [TOOL]}) and sample.meta == "{}"
    assert [m["role"] for m in sample.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("tools", [None, [], "[]", "", "calculator, search", ["calculator"], 3])
def test_what_is_no_list_of_tools_is_metadata(tools: Any) -> None:
    sample = read({"messages": CHAT, "tools": tools})
    assert sample.template_kwargs is None and sample.id == read({"messages": CHAT}).id
    assert json.loads(sample.meta) == {"tools": tools}


def test_documents_and_variables_of_a_template_are_part_of_the_sample() -> None:
    bare = read({"messages": CHAT})
    facts, quiet = {"documents": [{"title": "t", "text": "x"}]}, {"chat_template_kwargs": {"enable_thinking": False}}
    ids = {read({"messages": CHAT, **more}).id for more in ({}, facts, quiet, {**facts, **quiet})}
    assert len(ids) == 4 and bare.id in ids
    listed = read({"messages": CHAT, "documents": ["a.txt"]})  # names of files, say
    assert listed.id == bare.id and json.loads(listed.meta) == {"documents": ["a.txt"]}
    assert read({"text": "x", "tools": [TOOL]}).template_kwargs is None  # no template is given to a raw text


@pytest.mark.parametrize("said", ["call f", '{"arguments": {}}', "[]", "3"])
def test_a_call_that_is_none_is_refused(said: str) -> None:
    turns = [*SHAREGPT[:1], {"from": "function_call", "value": said}, *SHAREGPT[2:]]
    with pytest.raises(Refused, match=r"conversations\[1\] is a call of a tool, and not JSON"):
        read({"conversations": turns})
    with pytest.raises(Refused, match="tool_calls is no list of objects"):
        answer(tool_calls=[1])


def test_what_a_tool_answers_may_be_any_json() -> None:
    sample = read({"messages": [*CHAT[:2], {"role": "tool", "content": {"b": 1.10, "a": [2]}}, CHAT[3]]})
    assert sample.messages[2]["content"] == '{"b":1.1,"a":[2]}'


def rows(n: int) -> list[dict[str, Any]]:
    """Chats whose tools and arguments have other keys in every row."""
    made = []
    for i in range(n):
        tool = {"type": "function", "function": {"name": f"f{i}", "parameters": {f"p{i}": {"type": "string", "k": i}}}}
        call = {"type": "function", "function": {"name": f"f{i}", "arguments": {f"p{i}": "x", "a": i}}}
        turns = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        made.append({"messages": turns, "tools": [tool]})
    return made


@pytest.mark.parametrize("kind", ["structs", "texts", "arrow.json", "saved by datasets", "nested arrow.json"])
def test_a_table_s_tools_are_the_objects_that_a_line_s_are(tmp_path: Path, kind: str) -> None:
    """Also where Arrow gives every tool the parameters of all others, as nulls."""
    given = rows(5)
    lines = write_jsonl(tmp_path / "a.jsonl", given)
    path = tmp_path / "table"
    if kind == "structs":
        pq.write_table(pa.Table.from_pylist(given), path)
    elif kind == "texts":
        pq.write_table(pa.Table.from_pylist([{**row, "tools": json.dumps(row["tools"])} for row in given]), path)
    elif kind == "arrow.json":
        texts = {name: pa.array([json.dumps(row[name]) for row in given], pa.json_()) for name in given[0]}
        pq.write_table(pa.table(texts), path)
    else:
        features = datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.Json()})
        data = datasets.Dataset.from_list(given, features=features)
        if kind == "saved by datasets":
            data.save_to_disk(str(path))
        else:
            data.to_parquet(str(path))
    pools = []
    for name, file in (("lines", lines), ("table", str(path))):
        ws = curate.open_workspace(tmp_path / f"ws-{name}")
        assert curate.ingest(ws, [file]).rejected == 0
        pools.append(list(curate.sql(ws, "SELECT id, messages, template_kwargs, meta FROM pool ORDER BY row")))
    assert [row["id"] for row in pools[0]] == [row["id"] for row in pools[1]] and len(pools[0]) == 5
    if kind not in ("structs", "texts"):  # a struct's members are in one order in all rows
        assert pools[0] == pools[1]


# --- numbers as they are spelled -----------------------------------------------------------------------


def spelled(rng: np.random.Generator) -> str:
    digits = "".join(map(str, rng.integers(0, 10, rng.integers(1, 25))))
    kinds = ["-0", "0", "1.10", f"{rng.integers(1, 99)}e{rng.integers(-30, 30)}", f"0.{digits}", f"1{digits}"]
    return [*kinds, f"-{rng.integers(1, 99)}.{digits}E+5", f"{2**70 + int(rng.integers(9))}"][rng.integers(8)]


def test_json_comes_out_as_it_went_in() -> None:
    """Keys in their order and numbers in their spelling, at any depth and between texts that look like them."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        inner = ",".join(f'"k{int(k)}":{spelled(rng)}' for k in rng.permutation(4))
        text = f'{{"z":[{spelled(rng)},"costs: 1.10, 2e5",{{{inner}}}],"a":{spelled(rng)}}}'
        assert dumps(loads(text)) == text == dumps(loads(text.encode()))


def test_numbers_of_a_line_come_out_of_the_pool_as_they_are_spelled(ws: Workspace, tmp_path: Path) -> None:
    line = (
        '{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[{"function":'
        '{"name":"f","arguments":{"z":1.10,"a":1e5,"n":1180591620717411303424}}}]}],"tools":[{"function":{"name":"f",'
        '"min":0.0000010,"max":5E+3}}],"price":2.50}'
    )
    for name, text in (("a.jsonl", line), ("a.json", f"[{line}]")):
        (tmp_path / name).write_text(text)
        ws = curate.open_workspace(tmp_path / f"ws-{name}")
        curate.ingest(ws, [str(tmp_path / name)])
        (row,) = curate.sql(ws, "SELECT messages, template_kwargs, meta FROM pool")
        assert '{"z":1.10,"a":1e5,"n":1180591620717411303424}' in row["messages"][1]["extra"]
        assert '"min":0.0000010,"max":5E+3' in row["template_kwargs"] and row["meta"] == '{"price":2.50}'
