from __future__ import annotations

from pathlib import Path

import pytest

import curate
from curate.errors import CurateError
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from tests.conftest import qa, write_jsonl


def test_a_target_has_subtasks_and_splits_and_each_split_is_replaced_alone(ws: Workspace, tmp_path: Path) -> None:
    val = write_jsonl(
        tmp_path / "val.jsonl", [{**r, "kind": "even" if i % 2 == 0 else "odd"} for i, r in enumerate(qa(6))]
    )
    test = write_jsonl(tmp_path / "test.jsonl", qa(9, 50))
    curate.target(ws, "t", val, subtask="kind")
    result = curate.target(ws, "t", test, split="test")
    assert result.rows == {"val": 6, "test": 9}
    before = load_target(ws, "t")
    assert before.subtasks == ("even", "odd") * 3 and len(before.text) == 6
    curate.target(ws, "t", test, split="test")
    assert load_target(ws, "t").fingerprint == before.fingerprint  # the judge's split chooses nothing
    curate.target(ws, "t", val)
    assert load_target(ws, "t").fingerprint != before.fingerprint  # other sub-tasks


def test_rows_may_name_their_split(ws: Workspace, tmp_path: Path) -> None:
    rows = [{**r, "part": p} for r, p in zip(qa(4), ["val", "test", "val", "dev"], strict=True)]
    result = curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", rows), mapping={"split": "part"})
    assert result.rows == {"val": 2, "test": 1} and result.rejected == 1
    (row,) = curate.sql(ws, 'SELECT reason, "into" FROM rejects')
    assert "'dev'" in row["reason"] and row["into"] == "target t"


def test_an_empty_target_and_a_bad_name_are_refused(ws: Workspace, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [])
    with pytest.raises(CurateError, match="no sample for the target"):
        curate.target(ws, "t", path)
    with pytest.raises(CurateError, match="must match"):
        curate.target(ws, "My-Target", path)
    with pytest.raises(CurateError, match="val"):
        curate.target(ws, "t", path, split="train")
    assert ws.target_names() == []


def test_a_target_without_val_cannot_choose(ws: Workspace, tmp_path: Path) -> None:
    curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", qa(2)), split="test")
    with pytest.raises(CurateError, match="no val split"):
        load_target(ws, "t")
