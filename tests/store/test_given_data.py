"""Data of this process as inputs: the rows of a file of them, keys that stand for content, else one sentence."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from curate.errors import CurateError
from curate.store.given_data import find_given
from curate.store.input_files import Input, first_records, records

# As JSON has it: integers of any size, members that are absent or null, tools with and without a parameter.
MESSY: list[dict[str, Any]] = [
    {"text": "big", "n": 2**70, "m": -(2**63), "x": 0.1, "none": None, "deep": {"a": [1, {"b": None}], "1": True}},
    {"text": "small", "n": 3, "m": 0, "x": 1e300, "none": None, "deep": {}},
    {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}],
    },
    {"prompt": "which?", "chosen": "this", "rejected": "that", "who": ["é", "日本", ""]},
    {"question": "what is 1?", "answer": "one", "level": 2**63},
]
# As a table has it: every row has every column.
FLAT: list[dict[str, Any]] = [
    {
        "question": f"what is {i}?",
        "answer": f"it is {i}",
        "n": i if i % 3 else None,
        "big": 2**62 + i,
        "x": i / 7,
        "tags": ["a", "b"][: i % 3],
        "at": {"row": i, "name": None if i % 2 else "odd"},
        "tools": [{"name": "f", "parameters": {"x": 1} if i % 2 else {"y": "z"}}],
    }
    for i in range(1300)
]


def read(data: Any) -> list[Any]:
    return [record for item in find_given(data).inputs for _, record in records(item)]


def only(data: Any) -> Input:
    (item,) = find_given(data).inputs
    return item


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def generated(rows: list[Any]) -> Iterator[Any]:
    yield from rows


SPLITS = datasets.DatasetDict({name: datasets.Dataset.from_list([{"text": name}]) for name in "ab"})

JSON_LIKE: dict[str, Callable[[list[Any]], Any]] = {
    "a list": lambda rows: rows,
    "a tuple": tuple,
    "a generator": generated,
    "an open file": lambda rows: io.BytesIO(jsonl(rows)),
    "gzip": lambda rows: io.BytesIO(gzip.compress(jsonl(rows))),
    "zstd": lambda rows: io.BytesIO(zstd.compress(jsonl(rows))),
    "a stream of datasets": lambda rows: datasets.IterableDataset.from_generator(generated, gen_kwargs={"rows": rows}),
}


@pytest.mark.parametrize("kind", JSON_LIKE)
def test_rows_of_python_are_those_of_a_json_lines_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(MESSY))
    assert json.dumps(read(JSON_LIKE[kind](MESSY))) == json.dumps(read(tmp_path / "a.jsonl")) == json.dumps(MESSY)


TABLES: dict[str, Callable[[pa.Table], Any]] = {
    "arrow": lambda table: table,
    "a reader": lambda table: table.to_reader(max_chunksize=100),
    "polars": pl.DataFrame,
    "lazy": lambda table: pl.DataFrame(table).lazy(),
    "pandas": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "duckdb": lambda table: duckdb.connect().from_arrow(table),
    "datasets": lambda table: datasets.Dataset(table),
    "a stream of datasets": lambda table: datasets.Dataset(table).to_iterable_dataset(),
    "splits": lambda table: datasets.DatasetDict({"train": datasets.Dataset(table)}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_those_of_a_parquet_file(tmp_path: Path, kind: str) -> None:
    """To the order of keys; what one row's struct has and another's lacks is null, but in tools absent."""
    table = pa.Table.from_pylist(FLAT)
    pq.write_table(table, tmp_path / "a.parquet")
    expected = read(tmp_path / "a.parquet")
    assert json.dumps(read(TABLES[kind](table))) == json.dumps(expected)
    assert expected[0]["tools"] == [{"name": "f", "parameters": {"y": "z"}}]


def test_a_frame_of_python_objects_has_these_and_null_for_what_is_missing() -> None:
    frame = pd.DataFrame(MESSY)
    found = read(frame)
    for row, expected in zip(found, MESSY, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            key: value for key, value in expected.items() if value is not None
        }
    values = pd.DataFrame(
        {"text": ["a", None], "n": [1, 2], "when": [pd.Timestamp("2026-01-01"), pd.NaT]}, index=[7, 7]
    )
    assert [row["text"] for row in read(values)] == ["a", None] and read(values)[1]["when"] is None


def test_values_of_numpy_are_numbers_and_tuples_lists() -> None:
    row = {"text": "a", "n": np.int64(3), "x": np.float32(0.5), "v": np.arange(3), "t": (1, (2,)), 5: None}
    assert read([row]) == [{"text": "a", "n": 3, "x": 0.5, "v": [0, 1, 2], "t": [1, [2]], "5": None}]


def test_a_key_stands_for_content_and_not_for_chunks_or_kind() -> None:
    table = pa.Table.from_pylist(FLAT)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    keys = {only(data).key for data in (table, chunked, table.replace_schema_metadata({"a": "b"}))}
    assert len(keys) == 1 and "" not in keys
    assert only(table.slice(1)).key not in keys and only(datasets.Dataset(table)).key in keys
    assert only(FLAT).key == only(list(FLAT)).key != only(FLAT[1:]).key
    frame = pd.DataFrame(FLAT)
    assert only(frame).key == only(frame.copy()).key != only(frame.iloc[1:]).key
    for once in (iter(FLAT), table.to_reader(), io.BytesIO(jsonl(FLAT)), datasets.Dataset(table).to_iterable_dataset()):
        assert only(once).key == ""


def test_what_was_looked_at_is_still_there() -> None:
    item = only(generated(FLAT))
    assert [number for number, _ in first_records(item, 3)] == [1, 2, 3]
    assert [number for number, _ in records(item, 2)] == [*range(3, 1301)]


def test_lines_keep_their_numbers() -> None:
    item = only(io.BytesIO(b'\n{"text": "a"}\n\n{"text": "b"}\n'))
    assert list(records(item)) == [(2, {"text": "a"}), (4, {"text": "b"})]


def test_nothing_at_all_is_empty() -> None:
    assert find_given([]).inputs == []
    for nothing in (iter([]), io.BytesIO(b""), pa.table({"text": pa.array([], pa.string())}), pd.DataFrame()):
        assert only(nothing).kind == "empty"


def test_paths_may_be_path_objects_and_come_from_an_iterator(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(MESSY[:1]))
    assert [item.source for item in find_given(sorted(tmp_path.glob("*.jsonl"))).inputs] == ["a", "b"]
    assert len(read(tmp_path.glob("*.jsonl"))) == 2
    mixed = [tmp_path / "a.jsonl", pa.Table.from_pylist(FLAT)]
    assert [item.source for item in find_given(mixed).inputs] == ["a", "memory"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (3, "not as 3 (int)"),
        (None, "not as None (NoneType)"),
        (b"text", "not as b'text' (bytes)"),
        ({"text": "a"}, "put it into a list"),
        ([1, 2], "not as 1 (int)"),
        (iter([1, 2]), "not as 1 (int)"),
        (io.StringIO("{}"), "'rb'"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "two columns of the name 'text'"),
        (pl.DataFrame({"text": [object()]}), "cannot be read as Arrow"),
        (SPLITS, "--split"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_is_refused_in_a_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(CurateError) as refused:
        find_given(data)
    told = str(refused.value)
    assert sentence in told and told.endswith(".") and "\n" not in told


def test_a_table_has_no_split() -> None:
    with pytest.raises(CurateError, match="leave out the split 'test'"):
        find_given(pa.table({"text": ["a"]}), "test")
    of_test = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(FLAT[:2]), "test": datasets.Dataset.from_list(FLAT)}
    )
    assert len(list(records(find_given(of_test, "test").inputs[0]))) == 1300


def test_a_stream_of_datasets_has_the_rows_of_its_files_whatever_it_went_through(tmp_path: Path) -> None:
    """A tool lacks the parameters that only another one has, though a stream with features gives them as null."""
    tools = [[{"name": "f", "parameters": {"x": 1} if i % 2 else {"y": "z"}}] for i in range(6)]
    rows = [{"question": f"{i}?", "answer": f"{i}", "tools": tool} for i, tool in enumerate(tools)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    options: dict[str, Any] = {"data_files": str(tmp_path / "a.jsonl"), "cache_dir": str(tmp_path / "cache")}
    stream = datasets.load_dataset("json", streaming=True, split="train", **options)
    features = datasets.Dataset.from_list(rows).features
    typed = datasets.IterableDataset.from_generator(generated, gen_kwargs={"rows": rows}, features=features)
    for data in (stream, stream.filter(lambda _: True), stream.map(lambda row: row), stream.take(9), typed):
        assert read(data) == rows
