"""`ingest` and `target` of rows in memory: the pool of a file of them, resumed, skipped and counted by its rules."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import curate
from curate.errors import CurateError
from curate.store.workspace import Workspace
from tests.conftest import qa, run_and_kill, write_jsonl

ROWS: list[dict[str, Any]] = [
    {**row, "level": i, "share": i / 7, "none": None, "at": {"row": i, "tags": ["a", "b"]}}
    for i, row in enumerate(qa(600))
]
TABLE = pa.Table.from_pylist(ROWS)
COLUMNS = "SELECT id, source, messages, copies, meta, template_kwargs, rejected FROM pool ORDER BY row"

KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "generator": lambda: iter(ROWS),
    "table": lambda: TABLE,
    "reader": TABLE.to_reader,
    "polars": lambda: pl.DataFrame(TABLE),
    "lazy": lambda: pl.DataFrame(TABLE).lazy(),
    "pandas": lambda: pd.DataFrame(ROWS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "splits": lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    "stream": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "file": lambda: io.BytesIO("".join(json.dumps(row) + "\n" for row in ROWS).encode()),
}
ONCE = ("generator", "reader", "stream", "file")


@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_is_that_of_a_file(ws: Workspace, tmp_path: Path, kind: str) -> None:
    curate.ingest(ws, write_jsonl(tmp_path / "web.jsonl", ROWS))
    other = tmp_path / "other"
    result = curate.ingest(other, KINDS[kind](), source="web")
    assert (result.read, result.added, result.copies, result.rejected) == (600, 600, 0, 0)
    assert curate.sql(other, COLUMNS) == curate.sql(ws, COLUMNS)
    again = curate.ingest(other, KINDS[kind](), source="web")
    assert (again.added, again.copies) == ((0, 600) if kind in ONCE else (0, 0))
    assert bool(again.files_skipped) == (kind not in ONCE)


def test_the_source_is_memory_unless_it_is_named(ws: Workspace) -> None:
    assert curate.ingest(ws, qa(3)).sources == {"memory": 3}
    assert curate.ingest(ws, qa(2, 5), source="mine").sources == {"mine": 2}
    assert curate.ingest(ws, [{**qa(1, 9)[0], "from": "theirs"}], mapping={"source": "from"}).sources == {"theirs": 1}


def test_pairs_and_tools_are_as_of_a_file(ws: Workspace, tmp_path: Path) -> None:
    rows = [
        {"prompt": "which?", "chosen": "this", "rejected": "that", "n": 2**80},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"x": None}]},
    ]
    curate.ingest(ws, write_jsonl(tmp_path / "a.jsonl", rows), source="a")
    for name, data in (("list", rows), ("iterator", iter(rows))):
        curate.ingest(tmp_path / name, data, source="a")
        assert curate.sql(tmp_path / name, COLUMNS) == curate.sql(ws, COLUMNS)
    assert str(2**80) in curate.sql(ws, "SELECT meta FROM pool WHERE row = 0")[0]["meta"]


def test_rows_of_no_format_are_refused_before_anything_is_stored_and_others_kept(ws: Workspace) -> None:
    with pytest.raises(CurateError, match="a list of rows, line 1: has fields no format has"):
        curate.ingest(ws, [{"body": "x"}])
    assert ws.shards() == []
    assert curate.ingest(ws, iter([*qa(1), {"body": "x"}, 3])).rejected == 2
    assert [row["line"] for row in curate.sql(ws, "SELECT line FROM rejects ORDER BY line")] == [2, 3]


def broken(rows: list[Any]) -> Iterator[Any]:
    yield from rows
    raise ValueError("the network is gone")


@pytest.mark.parametrize("shard_bytes", [500, 1 << 20])
def test_an_iterator_that_raises_loses_nothing_and_says_so(ws: Workspace, shard_bytes: int) -> None:
    with pytest.raises(
        CurateError, match="stopped after row 50 by ValueError .the network is gone.; .* 50 were"
    ) as told:
        curate.ingest(ws, broken(qa(50)), shard_bytes=shard_bytes)
    assert isinstance(told.value.__cause__, ValueError)
    assert ws.n_rows() == 50
    result = curate.ingest(ws, qa(70))
    assert (result.added, result.copies) == (20, 50)
    assert curate.verify(ws).damaged == []


def test_an_iterator_that_raises_at_once_says_so(ws: Workspace) -> None:
    with pytest.raises(CurateError, match="stopped after row 0"):
        curate.ingest(ws, broken([]))
    with pytest.raises(CurateError, match="the target 'maths' stays as it was"):
        curate.target(ws, "maths", broken(qa(3)))
    assert ws.n_rows() == 0 and ws.target_names() == []


KILLED = """
import pyarrow as pa, sys, curate
rows = [{"question": f"what is item {i}?", "answer": f"it is number {i}"} for i in range(300)]
given = pa.Table.from_pylist(rows) if sys.argv[2] == "table" else iter(rows)
curate.ingest(sys.argv[1], given, shard_bytes=1500)
"""


@pytest.mark.parametrize("kind", ["table", "iterator"])
def test_a_kill_loses_nothing_that_was_stored_and_the_next_run_doubles_nothing(ws: Workspace, kind: str) -> None:
    run_and_kill(KILLED, str(ws.path), kind, die_at=4)
    stored = ws.n_rows()
    assert 0 < stored < 300
    given = pa.Table.from_pylist(qa(300)) if kind == "table" else iter(qa(300))
    result = curate.ingest(ws, given, shard_bytes=1500)
    assert result.added == 300 - stored and result.copies == (0 if kind == "table" else stored)
    assert curate.sql(ws, "SELECT count(DISTINCT id) AS ids, count(*) AS n FROM pool") == [{"ids": 300, "n": 300}]


def test_an_iterator_is_not_held_in_memory(ws: Workspace) -> None:
    """Of rows that were given, no more stay than a shard and the batches on their way."""
    alive, most = 0, 0

    class Row(dict):  # type: ignore[type-arg]
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Any]:
        nonlocal alive, most
        for i in range(20_000):
            alive += 1
            most = max(most, alive)
            yield Row(text=f"row {i}")

    assert curate.ingest(ws, rows(), shard_bytes=50_000).added == 20_000
    assert most < 6_000


def test_a_dry_run_stores_nothing(ws: Workspace) -> None:
    assert curate.ingest(ws, TABLE, dry_run=True).files_planned == ["a pyarrow Table"]
    assert ws.n_rows() == 0 and curate.ingest(ws, TABLE).added == 600


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_is_that_of_a_file(ws: Workspace, tmp_path: Path, kind: str) -> None:
    curate.target(ws, "maths", write_jsonl(tmp_path / "memory.jsonl", ROWS), subtask="level")
    curate.target(tmp_path / "other", "maths", KINDS[kind](), subtask="level")
    columns = "SELECT id, source, messages, meta, subtask, split FROM targets"
    assert curate.sql(tmp_path / "other", columns) == curate.sql(ws, columns)


def test_a_query_s_result_is_data_too(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, ROWS)
    found = curate.sql(
        ws, "SELECT messages[1].content AS prompt, messages[2].content AS completion FROM pool ORDER BY row"
    )
    assert curate.ingest(tmp_path / "other", found).added == 600
    ids = "SELECT id FROM pool ORDER BY row"
    assert curate.sql(tmp_path / "other", ids) == curate.sql(ws, ids)
