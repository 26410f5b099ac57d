"""CSV and TSV: what is written by others comes back as texts, and what is wrong with a row is said."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pandas
import pytest
from backports import zstd

import curate
from curate.errors import CurateError
from curate.store.input_files import find_inputs, records
from curate.store.input_formats import Unreadable
from curate.store.input_limits import InputLimits


def read(path: Path, skip: int = 0, limits: InputLimits | None = None) -> list[tuple[int, Any]]:
    (found,) = find_inputs(str(path), None, limits or InputLimits()).inputs
    return list(records(found, skip))


def rows(path: Path) -> list[Any]:
    return [record for _, record in read(path)]


def write(path: Path, text: str | bytes) -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def hard(n: int) -> list[dict[str, str | None]]:
    """Values that a reader may trip over."""
    dice = random.Random(n)
    odd = ['say "hi"', '"', '""', "a, b; c\td", "two\nlines", "two\r\nlines", "a\rb", " blank ", "日本語 é 😀", "007"]
    odd += ["1990-01-01", "null", "NA", "NaN", "true", "1e5", "'", "\\", "\\n", "=1+1", "\u2028", "\x00", "ends\n"]
    return [{"question": dice.choice(odd), "answer": dice.choice(odd) + str(i), "topic": dice.choice([*odd, None])}
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_what_is_written_is_read(
    tmp_path: Path, ending: str, delimiter: str, quoting: Any, end: str, packing: str
) -> None:
    want, out = hard(700), io.StringIO(newline="")
    if quoting == csv.QUOTE_MINIMAL and end == "\n":  # Python's writer leaves a lone \r bare there, which ends a row
        want = [row for row in want if "\r" not in "".join(value or "" for value in row.values())]
    writer = csv.DictWriter(out, list(want[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(want)
    path = write(tmp_path / f"a{ending}{packing}", out.getvalue())
    assert read(path) == list(enumerate(want, 2))
    assert read(path, skip=600) == list(enumerate(want, 2))[599:]
    assert find_inputs(str(path)).inputs[0].source.lower().removesuffix(".csv") == "a"


def test_what_pandas_writes_is_read_with_its_unnamed_index(tmp_path: Path) -> None:
    pandas.DataFrame({"text": ["a, b", 'c "d"\ne', None], "n": [1, 2, 3]}).to_csv(tmp_path / "p.csv")
    assert rows(tmp_path / "p.csv") == [
        {"column_1": "0", "text": "a, b", "n": "1"},
        {"column_1": "1", "text": 'c "d"\ne', "n": "2"},
        {"column_1": "2", "text": None, "n": "3"},
    ]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("text,n\na,1\nb,2", [(2, {"text": "a", "n": "1"}), (3, {"text": "b", "n": "2"})]),  # no new line at the end
        ("\ufefftext,n\na,1\n", [(2, {"text": "a", "n": "1"})]),
        ('\ufeff"text","n"\r\na,1\r\n', [(2, {"text": "a", "n": "1"})]),
        ("text\n\na\n\n\nb\n", [(3, {"text": "a"}), (6, {"text": "b"})]),  # empty lines are no rows
        ("\n\ntext\na\n", [(4, {"text": "a"})]),
        (" text , n\n a , 1\n", [(2, {"text": " a ", "n": " 1"})]),  # names are stripped, values are not
        ("text,n\n,\n", [(2, {"text": None, "n": None})]),
        ('text\n""\n', [(2, {"text": None})]),
        ('text,n\n5" pipe,1\n', [(2, {"text": '5" pipe', "n": "1"})]),
        ("text,n\ra,1\rb,2\r", [(2, {"text": "a", "n": "1"}), (3, {"text": "b", "n": "2"})]),
        ("text,n\n", []),
        ('"a, b"\nx\n', [(2, {"a, b": "x"})]),
        ('{"a",b\n1,2\n', [(2, {'{"a"': "1", "b": "2"})]),  # not taken for JSON
    ],
)
def test_headers_ends_and_empty_fields(tmp_path: Path, text: str, want: list[Any]) -> None:
    assert read(write(tmp_path / "a.csv", text)) == want


@pytest.mark.parametrize(
    ("text", "number", "reason", "raw", "after"),
    [
        ("text,n\na\nb,2\n", 2, "has 1 fields, and the header names 2 columns", "a\n", ["b"]),
        ("text,n\na,1,2\nb,2\n", 2, "has 3 fields, and the header names 2 columns", "a,1,2\n", ["b"]),
        ('text,n\n"a\nz",1\n"c",1,\nb,2\n', 3, "has 3 fields", '"c",1,\n', ["a\nz", "b"]),
        ('text,n\n"a"x,1\nb,2\n', 2, "a quote within a quoted field is doubled", '"a"x,1\n', ["b"]),
        ('text,n\nb,2\n"a,1\nc,3\n', 3, "not closed before the end of the file", '"a,1\nc,3\n', ["b"]),
        ("text,n\nb,2\ncaf\udce9,1\nd,4\n", 3, "is not UTF-8; save the file as UTF-8", "caf\udce9,1\n", ["b", "d"]),
    ],
)
def test_a_row_that_is_wrong_is_told_and_the_others_are_read(
    tmp_path: Path, text: str, number: int, reason: str, raw: str, after: list[str]
) -> None:
    found = read(write(tmp_path / "a.csv", text.encode("utf-8", "surrogateescape")))
    (bad,) = [(n, record) for n, record in found if isinstance(record, Unreadable)]
    assert bad[0] == number and reason in bad[1].reason and bad[1].raw == raw
    assert [record["text"] for _, record in found if isinstance(record, dict)] == after


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", "text,n,text\na,1,b\n", "the header names the column 'text' twice; rename one"),
        ("a.csv", "prompt;completion\na;b\n", "semicolons between the columns.*means commas.*save it with those"),
        ("a.csv", "prompt\tcompletion\na\tb\n", "tabs between the columns.*means commas"),
        ("a.tsv", "prompt,completion\na,b\n", "commas between the columns.*means tabs"),
        ("a.csv", "prompt,completion\na,b\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("a.csv", "frag\xe9,text\na,b\n".encode("latin-1"), "the header is not UTF-8"),
        ("a.csv", '"text,n\na,1\n', "the header opens a quote that is not closed"),
        ("a.txt", "text,n\na,1\n", r"no JSON, Parquet or Arrow file .* neither \.csv nor \.tsv"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_sentence(tmp_path: Path, name: str, data: Any, said: str) -> None:
    with pytest.raises(CurateError, match=f"{name}: .*{said}"):
        read(write(tmp_path / name, data))


def test_a_row_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    good = "a,1\n" * 3
    for bad in ('"never closed\n' + "b,2\n" * 2000, "x" * 5000 + "\n" + good):
        found = read(write(tmp_path / "a.csv", f"text,n\n{good}{bad}"), limits=InputLimits(row_mib=1000 / (1 << 20)))
        assert [n for n, _ in found] == [2, 3, 4, 5]
        assert "--limit row_mib=MIB allows more" in found[-1][1].reason
    long = "y" * 200_000  # csv's own limit is 131,072
    assert rows(write(tmp_path / "b.csv", f"text\n{long}\n")) == [{"text": long}]


def test_a_file_that_is_cut_is_told_where(tmp_path: Path) -> None:
    dice = random.Random(0)
    text = "text\n" + "".join(f"{dice.random()}\n" for _ in range(20_000))
    path = write(tmp_path / "a.csv.gz", text)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = read(path)
    assert "cut or damaged from here on" in found[-1][1].reason and 1000 < found[-1][0] < 20_000


def test_a_pool_and_a_target_of_csv(tmp_path: Path) -> None:
    """The same samples as from JSONL; rejects have the row's number; a folder and a glob have them, too."""
    said = [{"instruction": f"{i}, please", "input": None, "output": f"0{i}\nlines"} for i in range(50)]
    (tmp_path / "csv").mkdir()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    with (tmp_path / "csv" / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(said[0]))
        writer.writeheader()
        writer.writerows(said)
        file.write("too,few\nno answer,,\n")
    ws, by_json = curate.open_workspace(tmp_path / "ws"), curate.open_workspace(tmp_path / "json")
    done = curate.ingest(ws, [str(tmp_path / "csv")], shard_bytes=2000)
    assert (done.added, done.rejected, done.formats) == (50, 2, {"alpaca": 50})
    curate.ingest(by_json, [str(tmp_path / "a.jsonl")])
    query = "SELECT id, source, messages FROM pool ORDER BY id"
    got, want = ([dict(row) for row in curate.sql(w, query)] for w in (ws, by_json))
    assert [{**row, "source": "a"} for row in got] == want
    rejects = curate.sql(ws, "SELECT line, reason FROM rejects ORDER BY line")
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (52, "has 2 fields, and the header names 3 columns"),
        (53, "output is null"),
    ]
    assert curate.ingest(ws, [str(tmp_path / "csv/*.csv")]).files_skipped
    curate.target(ws, "t", str(tmp_path / "csv" / "a.csv"))
    assert curate.status(ws).targets
