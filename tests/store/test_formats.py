from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError
from curate.hashing import content_id
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec


def read(record: Any, **kwargs: Any) -> Any:
    return Reader(**kwargs).sample(record)


def turns(sample: Any) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in sample.messages]


QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "fmt", "want"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages", QA),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt", QA),
        ({"prompt": "q", "completion": "a"}, "prompt-completion", QA),
        ({"prompt": "q", "response": "a"}, "prompt-completion", QA),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
            "prompt-completion",
            QA,
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", QA),
        ({"instruction": "q", "input": "", "response": "a"}, "alpaca", QA),
        ({"instruction": "q", "input": "i", "output": "a"}, "alpaca", [("user", "q\ni"), ("assistant", "a")]),
        (
            {"instruction": "q", "output": "a", "history": [["x", "y"]]},
            "alpaca",
            [("user", "x"), ("assistant", "y"), *QA],
        ),
        ({"question": "q", "answer": "a"}, "question-answer", QA),
        ({"question": "q", "answer": 42}, "question-answer", [("user", "q"), ("assistant", "42")]),
        ({"system": "s", "prompt": "q", "completion": "a"}, "prompt-completion", [("system", "s"), *QA]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, "messages", QA[:1]),
    ],
)
def test_every_shape_is_recognised(record: dict, fmt: str, want: list) -> None:
    reader = Reader()
    assert turns(reader.sample(record)) == want
    assert dict(reader.seen) == {fmt: 1}
    assert turns(read(record, fmt=fmt)) == want


def test_raw_text_has_no_messages() -> None:
    sample = read({"text": "once", "url": "u"})
    assert (sample.messages, sample.text, json.loads(sample.meta)) == (None, "once", {"url": "u"})


def test_the_same_sample_has_one_id_whatever_its_shape_source_and_meta() -> None:
    records = [{"prompt": "q", "completion": "a"}, {"question": "q", "answer": "a", "level": 3}]
    assert len({read(r).id for r in records}) == 1


def test_every_other_field_is_kept_in_meta() -> None:
    sample = read({"question": "q", "answer": "a", "task": "t", "n": [1, None], "deep": {"x": 1.5}})
    assert json.loads(sample.meta) == {"task": "t", "n": [1, None], "deep": {"x": 1.5}}


def test_a_null_column_of_a_table_decides_nothing() -> None:
    row = {"messages": None, "text": "raw", "prompt": None, "completion": None}
    assert read(row).text == "raw"
    assert turns(read({"prompt": "q", "completion": None, "response": "a"})) == QA
    assert read({"messages": [{"role": "user", "content": "q"}], "text": None}).text is None


def test_an_extra_of_somebody_elses_is_metadata() -> None:
    said = {"role": "user", "content": "q", "extra": "foo", "value": "beside"}
    sample = read({"messages": [said]})
    assert sample.messages[0]["extra"] is None
    assert json.loads(sample.meta) == {"messages": [{"extra": "foo", "value": "beside"}]}


def test_numbers_are_texts_the_same_from_every_file() -> None:
    assert turns(read({"question": "q", "answer": 2**70}))[1] == ("assistant", str(2**70))
    with pytest.raises(Refused, match="answer is nan"):
        read({"question": "q", "answer": float("nan")})


def test_labels_that_a_pool_does_not_use_stay_in_meta() -> None:
    sample = read({"text": "x", "kind": "k", "part": "p"}, mapping={"subtask": "kind", "split": "part"})
    assert json.loads(sample.meta) == {"kind": "k", "part": "p"}


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), [{"a": float("inf")}]])
def test_what_json_does_not_have_is_refused_and_not_made_null(value: Any) -> None:
    with pytest.raises(Refused, match="which JSON does not have; write null, or the text"):
        read({"text": "x", "score": value})
    assert json.loads(read({"text": "x", "score": None}).meta) == {"score": None}


def test_what_a_message_has_beside_role_and_content_is_kept_in_extra() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    sample = read({"messages": [{"role": "user", "content": "q"}, call]})
    assert sample.messages[1] == {"role": "assistant", "content": "", "extra": '{"tool_calls":[{"id":"1"}]}'}
    again = read({"messages": sample.messages})  # as our own Parquet has it
    assert again.id == sample.id


def test_a_map_names_fields_and_leaves_the_rest_in_meta() -> None:
    record = {"instruction": "task", "question": "q", "answer": "a", "prompt": "mine", "kind": "k"}
    mapping = {"prompt": "question", "completion": "answer", "source": "kind"}
    sample = read(record, mapping=mapping)
    assert turns(sample) == QA and sample.source == "k"
    assert json.loads(sample.meta) == {"instruction": "task", "prompt": "mine"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": None, "completion": "x"}, "prompt is null"),
        ({"prompt": "x", "completion": None}, "completion is null"),
        ({"question": "q", "answer": {"a": 1}}, "answer is a dict"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hi"}, "messages is no list"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] names no role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content is null"),
        ({"messages": ["x"]}, r"messages\[0\] is no object"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are no text"),
        ({"text": "  \n "}, "has no text"),
        ({"text": "\ud800"}, "not valid UTF-8"),
        ({"question": "q", "answer": "a", "note": "\udfff"}, "not valid UTF-8"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "history"),
        ({"instruction": "q", "output": "a", "history": 3}, "history is no list"),
        ({"a": 1}, "--map"),
        ([1, 2], "is a JSON list"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_a_sample_is_refused_with_a_reason(record: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read(record)


def test_a_format_that_was_asked_for_is_the_only_one() -> None:
    with pytest.raises(Refused, match="is not alpaca"):
        read({"text": "x"}, fmt="alpaca")


def test_choices_that_do_not_exist_are_the_users_mistake() -> None:
    with pytest.raises(CurateError, match="alpaca"):
        Reader(fmt="alpacca")
    with pytest.raises(CurateError, match="prompt"):
        Reader(mapping={"promt": "x"})


ADD = {"name": "add", "arguments": {"b": 2**70, "a": [1, {"z": 0, "y": 1}]}}
CALL: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": ADD}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"b": 1, "a": 2}}}],
    "id": -(2**127),
}


def test_keys_stay_in_their_order_and_numbers_are_exact() -> None:
    """A template prints tools and calls in the order in which they stand."""
    sample = read(CALL)
    assert sample.messages is not None
    calls = {"tool_calls": CALL["messages"][1]["tool_calls"]}
    assert sample.messages[1]["extra"] == json.dumps(calls, separators=(",", ":"))
    assert sample.template_kwargs == json.dumps({"tools": CALL["tools"]}, separators=(",", ":"))
    assert sample.meta == json.dumps({"id": CALL["id"]}, separators=(",", ":"))
    again = read({"messages": sample.messages, "template_kwargs": sample.template_kwargs})
    assert (again.id, again.messages, again.meta) == (sample.id, sample.messages, "{}")


def test_the_order_of_keys_is_no_part_of_an_id_and_long_numbers_are() -> None:
    def call(arguments: str) -> str:
        turn = {"role": "assistant", "content": "", "extra": f'{{"arguments":{arguments},"name":"f"}}'}
        return content_id([{"role": "user", "content": "q"}, turn], None)

    assert call('{"a":1,"b":2}') == call('{"b":2,"a":1}') == call('{ "b": 2, "a": 1 }')
    assert len({call('{"a":1}'), call(f'{{"a":{2**70}}}'), call(f'{{"a":{2**70 + 1}}}')}) == 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_long_integers_come_out_of_a_pool_as_they_went_in(ws: Workspace, tmp_path: Path, name: str) -> None:
    numbers = [2**64 - 1, 2**64, 2**70 + 1, 10**37]
    rows = [{"text": f"row {i}", "n": n} for i, n in enumerate(numbers)]
    path = tmp_path / name
    if name.endswith("l"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("n"):
        path.write_text(json.dumps(rows))
    else:
        columns = {"text": [row["text"] for row in rows], "n": pa.array(map(Decimal, numbers), pa.decimal128(38, 0))}
        pq.write_table(pa.table(columns), path)
    curate.ingest(ws, [str(path)])
    stored = curate.sql(ws, "SELECT meta->>'n' AS n FROM pool ORDER BY row")
    assert [row["n"] for row in stored] == list(map(str, numbers))


@pytest.mark.parametrize(("exporter", "number"), [(Trl(), 2**64 - 1), (Axolotl(), -(2**63)), (Jsonl(), 2**70)])
def test_exports_print_calls_and_tools_in_their_order(
    ws: Workspace, tmp_path: Path, exporter: Any, number: int
) -> None:
    """With the longest integers that the file's reader has: calls with longer ones are refused for `datasets`."""
    line = json.dumps(CALL).replace(str(2**70), str(number))
    (tmp_path / "a.jsonl").write_text(line + "\n")
    curate.ingest(ws, [str(tmp_path / "a.jsonl")])
    curate.select(ws, "every", Random(), SelectionSpec(frac=1.0))
    given = json.loads(line)
    folder = tmp_path / exporter.name
    curate.export(ws, "every", exporter, str(folder))
    (line,) = next(folder.glob("*.jsonl")).read_text().splitlines()
    row = json.loads(line)
    shown = row["completion"][0] if exporter.name == "trl" else row["messages"][1]
    assert json.dumps(shown["tool_calls"]) == json.dumps(given["messages"][1]["tool_calls"])


def test_the_passage_that_a_question_is_about_is_part_of_the_prompt() -> None:
    """Dolly's context; an empty one adds nothing."""
    row = {"instruction": "Who wrote it?", "context": "It was written by Ada.", "response": "Ada.", "category": "qa"}
    sample = read(row)
    assert turns(sample) == [("user", "Who wrote it?\nIt was written by Ada."), ("assistant", "Ada.")]
    assert json.loads(sample.meta) == {"category": "qa"}
    assert turns(read({**row, "context": ""}))[0] == ("user", "Who wrote it?")


def test_the_chosen_answers_alone_can_be_read() -> None:
    sample = read({"ask": "q", "chosen": "a", "rejected": "b"}, mapping={"prompt": "ask", "completion": "chosen"})
    assert turns(sample) == QA and json.loads(sample.meta) == {"rejected": "b"}
    whole = {"chosen": sample.messages, "rejected": [*sample.messages[:1], {"role": "assistant", "content": "b"}]}
    sample = read(whole, fmt="messages", mapping={"messages": "chosen"})
    assert turns(sample) == QA and sample.rejected is None and "rejected" in json.loads(sample.meta)


def test_a_label_that_is_no_judgement_is_a_field_like_others() -> None:
    assert json.loads(read({"text": "a review", "label": True}).meta) == {"label": True}
    assert json.loads(read({"prompt": "q", "completion": "a", "label": "sports"}).meta) == {"label": "sports"}
