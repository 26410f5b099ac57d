from __future__ import annotations

import json
from typing import Any

import pytest

from curate.errors import CurateError
from curate.store.input_formats import Reader, Refused


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


def test_an_extra_of_somebody_elses_is_kept_as_a_key() -> None:
    said = {"role": "user", "content": "q", "extra": "foo", "value": "beside"}
    sample = read({"messages": [said]})
    assert json.loads(sample.messages[0]["extra"]) == {"extra": "foo", "value": "beside"}


def test_numbers_are_texts_the_same_from_every_file() -> None:
    assert turns(read({"question": "q", "answer": 2**70}))[1] == ("assistant", str(2**70))
    with pytest.raises(Refused, match="answer is nan"):
        read({"question": "q", "answer": float("nan")})


def test_labels_that_a_pool_does_not_use_stay_in_meta() -> None:
    sample = read({"text": "x", "kind": "k", "part": "p"}, mapping={"subtask": "kind", "split": "part"})
    assert json.loads(sample.meta) == {"kind": "k", "part": "p"}


def test_nan_in_other_fields_is_null_in_meta() -> None:
    assert json.loads(read({"text": "x", "score": float("nan")}).meta) == {"score": None}


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
        ({"text": "x", "deep": 2**70}, "cannot be stored"),
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
