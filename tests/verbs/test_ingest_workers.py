"""Several processes make samples of rows: the pool, and all that is told of it, is what one process makes."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.executor import Workers
from curate.methods.executors.local import Local
from curate.store import input_blocks
from curate.store.pool_writer import PoolWriter
from tests.conftest import qa, tree_bytes, write_jsonl

LIMITS = curate.InputLimits(row_mib=0.002)
TURNS = {
    "messages": [{"role": "user", "content": "hi", "id": 7}, {"role": "assistant", "content": "<|end|>", "weight": 0}]
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_blocks, "_ROWS", 16)
    monkeypatch.setattr(input_blocks, "_BYTES", 1500)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Files of every kind, with rows that are broken, blank, too long, known, labelled or of turns with metadata."""
    broken = b'{"question": "what", "ans\n\n   \n[1]\n{"question": null, "answer": "x"}\n' + b"x" * 3000 + b"\n"
    lines = [
        json.dumps(row).encode() + b"\n" for row in (*qa(100), TURNS, {"text": "raw\u2028text", "n": 1.10}, *qa(9))
    ]
    whole = b"\xef\xbb\xbf" + b"".join(lines[:60]) + broken + b"".join(lines[60:]) + b'{"text": "no end of line"}'
    (tmp_path / "a.jsonl").write_bytes(whole)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(whole + b"".join(lines) * 12, 1)[:-30])
    (tmp_path / "b.json").write_text(json.dumps([*qa(60, 90), {"nothing": 1}, *qa(40, 300)]))
    with (tmp_path / "c.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["question", "answer"], ["q", "a"], [], ["q", 'one\n"two"'], ["only one"]])
    pq.write_table(pa.Table.from_pylist(qa(50, 380)), tmp_path / "d.parquet", row_group_size=20)
    write_jsonl(tmp_path / "again.jsonl", [{**row, "seen": 2} for row in qa(30)])
    return [str(p) for p in sorted(tmp_path.iterdir())]


def told(result: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name != "workers"}


@pytest.mark.parametrize("meta", ["keep", "merge"])
def test_the_pool_does_not_depend_on_the_number_of_processes(
    inputs: list[str], tmp_path: Path, meta: Any, forked_workers: Any
) -> None:
    made = {}
    for workers in (1, 3):
        folder = tmp_path / f"ws{workers}"
        result = curate.ingest(folder, inputs, shard_bytes=4000, limits=LIMITS, meta=meta, workers=workers)
        made[workers] = tree_bytes(folder / "pool"), tree_bytes(folder / "rejects"), told(result)
    assert made[1] == made[3]
    result = made[1][2]
    assert (result["shards"] >= 3, result["copies"] > 100, result["rejected"]) == (True, True, 12)
    assert len(forked_workers) == 3, "rows were converted by other processes"


def test_an_ingest_that_stopped_goes_on_with_other_workers(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_workers: Any
) -> None:
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    curate.ingest(calm, inputs, shard_bytes=4000, limits=LIMITS, workers=1)
    flush, shards = PoolWriter.flush, iter(range(2))

    def stop(writer: PoolWriter) -> None:
        if next(shards, None) is None:
            raise KeyboardInterrupt
        flush(writer)

    monkeypatch.setattr(PoolWriter, "flush", stop)
    with pytest.raises(KeyboardInterrupt):
        curate.ingest(stopped, inputs, shard_bytes=4000, limits=LIMITS, workers=2)
    assert all(worker.poll() is not None for worker in forked_workers)
    monkeypatch.setattr(PoolWriter, "flush", flush)
    curate.ingest(stopped, inputs, shard_bytes=4000, limits=LIMITS, workers=2)
    assert tree_bytes(stopped / "pool") == tree_bytes(calm / "pool")
    assert tree_bytes(stopped / "rejects") == tree_bytes(calm / "rejects")


def test_what_stops_the_reading_of_a_file_is_told_by_any_number(tmp_path: Path, forked_workers: Any) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in qa(50)) + b" " * (80 << 20)))
    for workers in (1, 2):
        with pytest.raises(CurateError, match="unpacks to more than 250 times its size"):
            curate.ingest(tmp_path / f"ws{workers}", [str(path)], workers=workers)


def test_rows_in_memory_are_taken_by_this_process(tmp_path: Path, forked_workers: Any) -> None:
    here = object()
    rows = [{"text": f"row {i}", "held": here} for i in range(40)]  # a value that no other process could be sent
    result = curate.ingest(tmp_path / "ws", iter(rows), workers=2)
    assert (result.added, len(forked_workers)) == (40, 0)


def test_fewer_than_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="--workers"):
        curate.ingest(tmp_path / "ws", [{"text": "a"}], workers=0)


# --- in order --------------------------------------------------------------------------------------------


@pytest.fixture
def two(forked_workers: Any) -> Iterator[Workers]:
    workers = Local(workers=2).open()
    yield workers
    workers.close()


def test_results_come_in_the_order_of_the_items_which_are_not_read_far_ahead(two: Workers) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(40):
            taken.append(i)
            yield i

    def slow_at_even(i: int) -> int:
        import time

        time.sleep(0.02 * (i % 2 == 0))
        return i * i

    found = []
    for result in two.in_order(slow_at_even, items()):
        found.append(result)
        assert len(taken) <= len(found) + 8
    assert found == [i * i for i in range(40)]


def test_an_error_of_the_items_comes_after_what_was_before_it(two: Workers) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise CurateError("no more.")

    found = []
    with pytest.raises(CurateError, match=r"no more\."):
        for result in two.in_order(lambda i: -i, items()):
            found.append(result)
    assert found == [0, -1, -2, -3, -4]


def test_a_worker_that_dies_is_replaced_and_the_order_kept(two: Workers, tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def die_once(i: int) -> int:
        import os
        import signal

        if i == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert list(two.in_order(die_once, range(12))) == list(range(12))
