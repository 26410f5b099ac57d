"""What data says never reaches a terminal as a command, a forged line or a turned direction; JSON keeps its values."""

from __future__ import annotations

import contextlib
import json
import re

import pytest

import curate
from curate.cli.main import main
from curate.progress import Progress
from curate.store.workspace import Workspace
from curate.text_table import one_line, table, visible, visible_json

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31md\u202ee\u2066f\x7fg\u2028h"
FORGED = f"{HOSTILE}\n  forged          9,999"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
COMMANDS = [
    ["status"],
    ["ledger"],
    ["verify"],
    ["head"],
    ["head", "--where", f"source <> '{HOSTILE}'"],
    ["show", "ID"],
    ["show", "t"],
    ["show", "best"],
    ["show", "length"],
    ["diff", "best", "rest"],
    ["compare", "best", "rest"],
    ["explain", "ID", "--score", "length"],
    ["export", "best", "--to", "jsonl", "--preview", "1"],
    ["sql", 'SELECT source, text, meta AS "x\x1b[2J\u202e" FROM pool', "--format", "table"],
    ["sql", "SELECT source, text, meta FROM pool", "--format", "json"],
    ["sql", "SELECT source, text, meta FROM pool", "--format", "jsonl"],
    ["sql", f"SELECT nothing AS \"{HOSTILE}\" FROM pool WHERE '{HOSTILE}'"],
    ["sql", f"SELECT * FROM '{HOSTILE}'"],
    ["select", FORGED, "--by", "length", "--frac", "0.5"],
    ["select", "x", "--by", FORGED, "--frac", "0.5"],
    ["show", FORGED],
    ["drop", FORGED],
    [FORGED],
    ["status", f"--{FORGED}"],
    ["ingest", f"/no/{FORGED}.jsonl"],
    ["target", "t2", f"/no/{FORGED}.jsonl"],
    ["score", FORGED],
    ["score", "length", "--set", f"{FORGED}=1"],
]


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose data is hostile wherever data can be."""
    folder = tmp_path_factory.mktemp("hostile")
    turns = [{"role": "user", "content": FORGED}, {"role": "assistant", "content": HOSTILE, "note\x1b[2J": FORGED}]
    rows = [
        {"text": f"{FORGED} one", "source": FORGED, "level\x1b[2J": HOSTILE},
        {"messages": turns, "source": HOSTILE, "subject": FORGED},
        {"text": "plain", "source": "plain"},
        {"neither": FORGED},
    ]
    (folder / "data").mkdir()
    (folder / "data" / f"a\x1b[2J\u202e{'b'}\r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, folder / "data", mapping={"source": "source"})
    curate.target(ws, "t", [{"text": FORGED, "topic": FORGED}], subtask="topic")
    curate.score(ws, "length")
    curate.select(ws, "best", by="length_words", frac=0.7)
    curate.select(ws, "rest", by="n_chars", frac=0.4)
    return ws


def _printed(ws: Workspace, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    sample = curate.sql(ws, "SELECT id FROM pool WHERE messages IS NOT NULL")[0]["id"]
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main(["-w", str(ws.path), *(sample if word == "ID" else word for word in words)])
    said = capsys.readouterr()
    assert said.out or said.err
    assert said.err.count("\n") <= 1, said.err
    return said.out + said.err


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: one_line(" ".join(words))[:50])
def test_nothing_raw_is_printed(ws: Workspace, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(ws, words, capsys)
    assert not RAW.search(printed), repr(printed)
    assert not re.search(r"^  forged +9,999$", printed, re.MULTILINE) or words[0] in ("head", "show"), printed


def test_what_is_read_is_told_without_anything_raw(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ws.path.parent
    words_of_ingest = ["ingest", "-w", str(folder / "again"), str(folder / "data"), "--map=source=source", "--dry-run"]
    for words in (words_of_ingest, words_of_ingest[:-1]):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr()
        assert not RAW.search(said.out + said.err), repr(said)
    assert "\\x1b" in said.out and not re.search(r"^  forged +9,999$", said.out, re.MULTILINE)


def test_json_has_the_very_values(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(ws, ["sql", "SELECT DISTINCT source FROM pool ORDER BY 1", "--format", "json"], capsys)
    assert {row["source"] for row in json.loads(printed)} == {FORGED, HOSTILE, "plain"}
    assert {row["source"] for row in json.loads(_printed(ws, ["status", "--json"], capsys))["sources"]} == {
        FORGED,
        HOSTILE,
        "plain",
    }


def test_escapes() -> None:
    assert visible(FORGED).count("\n") == 1 and "\\x1b]0;title\\x07" in visible(FORGED) and "\\u202e" in visible(FORGED)
    assert "\n" not in one_line(FORGED) and one_line("a\tb\nc") == "a\\tb\\nc"
    assert json.loads(visible_json(json.dumps([FORGED, "\U000e0041"], ensure_ascii=False))) == [FORGED, "\U000e0041"]
    assert visible("é 漢 👩‍🔬 العربية") == "é 漢 👩‍🔬 العربية"
    lines = table([{"a": FORGED}], {"a": f"head\n{HOSTILE}"}).split("\n")
    assert len(lines) == 2 and not RAW.search("".join(lines))
    assert not RAW.search(Progress(FORGED, 3).line())
