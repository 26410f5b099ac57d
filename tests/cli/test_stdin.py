"""`curate ingest -` and `curate target NAME -`: JSON Lines of standard input, in a process of their own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

import curate
from tests.conftest import ROOT, qa, write_jsonl

ROWS = [{**row, "level": 2**70 + i} for i, row in enumerate(qa(200))]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def piped(data: bytes, *words: str, ws: Path) -> subprocess.CompletedProcess[bytes]:
    """The command with `data` written into its standard input, which is a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "curate.cli", *words, "-w", str(ws)]
    return subprocess.run(command, input=data, capture_output=True, env=environment)


def samples(ws: Path) -> Any:
    return curate.sql(ws, "SELECT id, source, messages, meta FROM pool ORDER BY row")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
def test_standard_input_is_a_file_of_the_same_lines(tmp_path: Path, pack: Any) -> None:
    done = piped(pack(LINES), "ingest", "-", "--source", "web", ws=tmp_path / "piped")
    assert done.returncode == 0 and b"200 samples added" in done.stdout, done.stderr
    curate.ingest(tmp_path / "ws", write_jsonl(tmp_path / "web.jsonl", ROWS))
    assert samples(tmp_path / "piped") == samples(tmp_path / "ws")


def test_its_source_is_stdin_its_lines_are_numbered_and_known_rows_are_copies(tmp_path: Path) -> None:
    data = b"\n" + LINES + b"{broken\n"
    assert piped(data, "ingest", "-", ws=tmp_path / "ws").returncode == 0
    assert curate.sql(tmp_path / "ws", "SELECT DISTINCT source FROM pool") == [{"source": "stdin"}]
    assert curate.sql(tmp_path / "ws", "SELECT file, line FROM rejects") == [{"file": "standard input", "line": 202}]
    again = piped(LINES, "ingest", "-", "--json", ws=tmp_path / "ws")
    assert {key: json.loads(again.stdout)[key] for key in ("added", "copies")} == {"added": 0, "copies": 200}


def test_a_target_is_read_from_it_too(tmp_path: Path) -> None:
    done = piped(LINES, "target", "maths", "-", "--subtask", "level", ws=tmp_path / "ws")
    assert done.returncode == 0 and b"200 val samples" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", b"standard input: nothing to ingest"),
        (b'[{"text": "a"}]\n', b"standard input, line 1: is a JSON list"),
        (b"PAR1....", b"standard input, line 1: is not JSON"),
    ],
    ids=["nothing", "array", "parquet"],
)
def test_what_is_no_json_lines_is_refused(tmp_path: Path, data: bytes, sentence: bytes) -> None:
    done = piped(data, "ingest", "-", ws=tmp_path / "ws")
    assert done.returncode == 2 and sentence in done.stderr and b"Traceback" not in done.stderr, done.stderr


def test_a_pipe_that_is_cut_is_told_and_keeps_what_came_before(tmp_path: Path) -> None:
    done = piped(gzip.compress(LINES)[:-300], "ingest", "-", ws=tmp_path / "ws")
    assert done.returncode == 0 and b"rejected" in done.stdout, done.stderr
    (reject,) = curate.sql(tmp_path / "ws", "SELECT reason FROM rejects")
    assert "cut or damaged from here on" in reject["reason"]
