"""What is named as a part of a chat and is none is told; a label of 1, 0 or a text is one where the user says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import curate
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

CHAT = {"prompt": "q", "completion": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}


def told(*beside: dict[str, Any], **kwargs: Any) -> list[str]:
    reader = Reader(**kwargs)
    for fields in beside:
        reader.sample({**CHAT, **fields})
    return reader.notes()


@pytest.mark.parametrize(
    "beside",
    [
        {"tools": ["f", "g"]}, {"tools": "f, g"}, {"functions": 3}, {"documents": [{"title": "t", "body": "x"}]},
        {"documents": ["x"]}, {"chat_template_kwargs": [1]},
    ],
)  # fmt: skip
def test_what_no_model_sees_is_told(beside: dict[str, Any]) -> None:
    (name,) = beside
    (note,) = told(beside, {}, beside)
    assert note.startswith(f"{name} of 2 samples is no ") and note.endswith("so that no model sees it")


@pytest.mark.parametrize(
    "beside",
    [{"tools": [TOOL]}, {"tools": None}, {"tools": "[]"}, {"documents": []}, {"label": True}, {"label": "red"}],
)
def test_what_is_plain_is_not(beside: dict[str, Any]) -> None:
    assert told(beside) == []


def test_it_is_not_told_of_raw_text_and_by_the_reader_that_absorbs_another() -> None:
    reader = Reader()
    reader.sample({"text": "x", "tools": "f", "label": 1})
    assert reader.notes() == []
    reader.sample({**CHAT, "tools": "f"})
    first = reader.fresh()  # of the rows before, in another process
    first.sample({**CHAT, "tools": "f"})
    assert len(reader.notes()) == len(first.notes()) == 1 and "1 sample" in first.notes()[0]
    first.absorb(reader)
    assert "2 samples" in first.notes()[0]


@pytest.mark.parametrize(("label", "wanted"), [(1, True), (0, False), ("True", True), ("false", False), ("0", False)])
def test_a_label_is_one_where_the_user_says_so(label: Any, wanted: bool) -> None:
    assert Reader().sample({**CHAT, "label": label}).wanted is None
    (note,) = told({"label": label})
    assert note.endswith("if it says whether the answer is wanted (KTO), --map label=label reads it so")
    assert Reader(mapping={"label": "good"}).sample({**CHAT, "good": label}).wanted is wanted
    assert Reader().sample({**CHAT, "kto_tag": label}).wanted is wanted
    plain = Reader().sample({**CHAT, "label": wanted})
    assert plain.id == Reader(mapping={"label": "label"}).sample({**CHAT, "label": label}).id


def test_another_label_that_the_user_names_is_refused() -> None:
    with pytest.raises(Refused, match="has the label 'good', and true or false"):
        Reader(mapping={"label": "label"}).sample({**CHAT, "label": "good"})


def test_labels_of_csv(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nq,a,True\nq,b,False\n")
    (note,) = curate.ingest(ws, [str(tmp_path / "a.csv")]).warnings
    assert note.startswith("label of 2 samples is 1, 0 or a text and went to meta")
    other = curate.open_workspace(tmp_path / "other")
    curate.ingest(other, [str(tmp_path / "a.csv")], mapping={"label": "label"})
    assert [row["wanted"] for row in curate.sql(other, "SELECT wanted FROM pool ORDER BY row")] == [True, False]


def test_tools_that_are_told_are_in_the_result(ws: Workspace, tmp_path: Path) -> None:
    result = curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", [{**CHAT, "tools": ["f"]}])])
    assert result.warnings == ["tools of 1 samples is no list of objects and went to meta, so that no model sees it"]
