"""Control tokens of models in texts: told by source, left out on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.store.special_tokens import special_in
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

END = "<|endoftext|>"
ROWS: list[dict[str, Any]] = [
    {"text": f"one{END}two"},
    {"prompt": "<|im_start|>who?", "completion": "me</s>"},
    {"prompt": "q", "chosen": "a good answer", "rejected": f"bad{END}"},
    {"text": "a < b, x[INT] and <b>bold</b>, <|, |>"},
    {"prompt": "plain", "completion": "plain"},
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"a{END}b<|im_end|>", {END, "<|im_end|>"}),
        ("<｜begin▁of▁sentence｜>", {"<｜begin▁of▁sentence｜>"}),
        ("<s>[INST] <<SYS>>x<</SYS>> [/INST]</s>", {"<s>", "[INST]", "<<SYS>>", "<</SYS>>", "[/INST]", "</s>"}),
        ("<start_of_turn>user<end_of_turn><eos>", {"<start_of_turn>", "<end_of_turn>", "<eos>"}),
        ("a <| b |> c, <|two words|>, <strong>, </span>, [INSTALL], <S>", set()),
        ("", set()),
    ],
)
def test_what_is_a_control_token(text: str, found: set[str]) -> None:
    assert special_in([None, text]) == found


def test_they_are_told_by_source(ws: Workspace, tmp_path: Path, cli: Any) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "web.jsonl", ROWS)])
    (note,) = curate.ingest(ws, [write_jsonl(tmp_path / "more.jsonl", [{"text": f"x{END}"}, {"text": "y"}])]).warnings
    assert note.startswith(f"control tokens of models stood in the texts of 1 samples ({END}; of more 50%): ")
    assert "--strip-special leaves them out" in note
    texts = [row["text"] for row in curate.sql(ws, "SELECT text FROM pool WHERE text IS NOT NULL ORDER BY row")]
    assert texts[0] == f"one{END}two"  # as it was read
    fresh = cli("ingest", tmp_path / "web.jsonl", "-w", tmp_path / "other").stdout
    assert "of 3 samples (" in fresh and "of web 60%" in fresh


def test_they_are_left_out_on_request(ws: Workspace, tmp_path: Path, cli: Any) -> None:
    file = write_jsonl(tmp_path / "web.jsonl", ROWS)
    done = cli("ingest", file, "--strip-special", "--json", ws=ws)
    told = json.loads(done.stdout)
    assert told["special"] == {"web": 3} and told["special_tokens"] == {END: 2, "<|im_start|>": 1, "</s>": 1}
    assert told["warnings"][0].endswith("and were left out")
    rows = list(curate.sql(ws, "SELECT messages, text, rejected FROM pool ORDER BY row"))
    assert rows[0]["text"] == "onetwo" and [m["content"] for m in rows[1]["messages"]] == ["who?", "me"]
    assert [m["content"] for m in rows[2]["rejected"]] == ["q", "bad"] and rows[3]["text"] == ROWS[3]["text"]
    clean = curate.open_workspace(tmp_path / "clean")
    curate.ingest(clean, [write_jsonl(tmp_path / "c.jsonl", [{"text": "onetwo"}])])
    (row,) = curate.sql(clean, "SELECT id FROM pool")
    assert row["id"] == curate.sql(ws, "SELECT id FROM pool WHERE row = 0")[0]["id"]  # the same sample


def test_a_text_of_nothing_else_is_refused(ws: Workspace, tmp_path: Path) -> None:
    rows = [{"text": END}, {"text": "y"}]
    done = curate.ingest(ws, [write_jsonl(tmp_path / "web.jsonl", rows)], strip_special=True)
    assert (done.added, done.rejected) == (1, 1) and done.reasons == {"has no text": 1}
