"""What an input may cost: rows too long, broken elements, blanks without end, files that unpack to far more."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

import curate
from curate.errors import CurateError
from curate.runs.audit_toml import read_plan
from curate.store import input_limits, json_rows
from curate.store.given_data import find_given
from curate.store.input_files import find_inputs, records
from curate.store.input_formats import Unreadable
from curate.store.input_limits import InputLimits
from curate.store.workspace import Workspace
from tests.conftest import in_this_process
from tests.support.fuzz import fuzzed

SMALL = InputLimits(row_mib=1000 / (1 << 20))
DIGITS = "7" * 5000


def read(path: Path, limits: InputLimits = SMALL) -> list[Any]:
    (found,) = find_inputs(str(path), None, limits).inputs
    return [record for _, record in records(found)]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


LONG = json.dumps({"text": "x" * 70_000})


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_is_too_long_is_one_reject_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    parts = ['{"a":1}', LONG, '{"a":2}', '{"a":"' + "[" * 2000 + '"}', '{"a":3}']
    text = "\n".join(parts) if name.endswith("l") else f"[{','.join(parts)}]"
    found = read(written(tmp_path / name, text))
    assert [found[0], found[2], found[4]] == [{"a": 1}, {"a": 2}, {"a": 3}] and len(found) == 5
    assert f"is {len(LONG) + name.endswith('l'):,} " in found[1].reason and "--limit row_mib=MIB" in found[1].reason
    assert isinstance(found[3], Unreadable) and len(found[1].raw) <= 4096


def test_a_stream_has_the_limit_too_and_a_line_is_not_read_whole() -> None:
    class Lines(io.RawIOBase):
        most = 0

        def readline(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            assert size is not None and 0 < size <= 1 << 20
            return data.readline(size)

    data = io.BytesIO(f'{{"a":1}}\n{LONG}\n{{"a":2}}\n'.encode())
    found = [row for _, row in json_rows.json_lines(Lines(), SMALL)]  # type: ignore[arg-type]
    assert found[::2] == [{"a": 1}, {"a": 2}] and isinstance(found[1], Unreadable)
    (given,) = find_given(io.BytesIO(f"{LONG}\n".encode()), None, SMALL).inputs
    assert isinstance(next(row for _, row in records(given)), Unreadable)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    "bad",
    [
        "oops",
        '{"b":}',
        '{"b" 1}',
        '{"b":[1,{"c":2}}',
        '{"b":"],[{","c":}',
        r'{"b":"\"],[","c":}',
        r'{"b":"\x"}',
        '{"b":1}}',
        '{"b":"line\nend","c":2}',
        "[" * 5000 + "]" * 5000,
        "1 2",
        "'b'",
    ],
)
def test_after_a_broken_element_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    found = read(written(tmp_path / "a.json", f'[{{"a":1}}, {bad} ,\n{{"a":2}}, {{"a":[{{"x":"]"}}]}}]'), InputLimits())
    assert found[0] == {"a": 1} and found[2:] == [{"a": 2}, {"a": [{"x": "]"}]}]
    assert "element 2 of the array, at character 10" in found[1].reason and found[1].raw.startswith(bad[:20])


def test_an_element_without_an_end_is_told_with_its_place(tmp_path: Path) -> None:
    for bad in ('{"b":"never closed, {"c":1}]', '{"b":[1,2', "[" * 3000):
        *good, last = read(written(tmp_path / "a.json", f'[{{"a":1}}, {bad}'), InputLimits())
        assert good == [{"a": 1}] and "from its element 2 on, at character 10" in last.reason


def test_blanks_without_end_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.store.input_files.BLANKS", 1000)
    for text in (" " * 200_000 + "{}", "\n" * 200_000):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(CurateError, match="begins with more than 1,000 blanks"):
            find_inputs(str(path))
    assert read(written(tmp_path / "b.jsonl", " \n\n" * 100 + '{"a":1}')) == [{"a": 1}]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_a_file_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Any
) -> None:
    monkeypatch.setattr(input_limits, "SMALL", 100_000)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(b'{"text":"the same"}\n' * 50_000))
    with pytest.raises(CurateError, match="more than 20 times its size .*--limit ratio=N allows more"):
        read(path, InputLimits(ratio=20))
    with pytest.raises(CurateError, match=r"more than 0.0001 GiB; --limit unpacked_gib=GIB"):
        read(path, InputLimits(unpacked_gib=0.0001))
    assert len(read(path, InputLimits(ratio=10_000))) == 50_000
    with pytest.raises(CurateError, match="more than 20 times its size"):
        (given,) = find_given(io.BytesIO(path.read_bytes()), None, InputLimits(ratio=20)).inputs
        list(records(given))
        assert given.rows
        given.rows.refuse_if_stopped("nothing")


def test_a_parquet_file_of_the_same_again_and_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_limits, "SMALL", 100_000)
    pq.write_table(pa.table({"text": pa.array(["the same"] * 200_000)}), tmp_path / "a.parquet")
    with pytest.raises(CurateError, match="times its size"):
        read(tmp_path / "a.parquet", InputLimits(ratio=2))


def test_another_packing_is_named(tmp_path: Path) -> None:
    for head, name in ((b"\xfd7zXZ\x00\x00\x04", "xz"), (b"BZh91AY&", "bzip2"), (b"PK\x03\x04abcd", "zip")):
        (tmp_path / "a.jsonl").write_bytes(head)
        with pytest.raises(CurateError, match=f"packed as {name}; unpack it"):
            find_inputs(str(tmp_path / "a.jsonl"))


def test_numbers_of_any_size_are_kept_and_those_that_are_none_are_rejects(ws: Workspace, tmp_path: Path) -> None:
    rows = [f'{{"text":"a{i}","n":{n}}}' for i, n in enumerate([DIGITS, f"-{DIGITS}", 2**64 + 1, "1e400", "-0", "NaN"])]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text":"last","n":-Infinity}']))
    (tmp_path / "b.json").write_text("[" + ",".join(rows).replace('"a', '"b') + "]")
    told = curate.ingest(ws, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")])
    assert (told.read, told.added, told.rejected) == (13, 10, 3)
    kept = [DIGITS, f"-{DIGITS}", str(2**64 + 1), "1e400", "-0"]
    assert [row["meta"] for row in curate.sql(ws, "SELECT meta FROM pool ORDER BY row")] == [
        f'{{"n":{n}}}' for n in kept * 2
    ]
    reasons = {row["reason"] for row in curate.sql(ws, "SELECT reason FROM rejects")}
    assert any("n is nan, which JSON does not have" in reason for reason in reasons)
    table = pa.table({"text": ["c", "d", "e"], "x": [1.5, float("nan"), float("inf")]})
    pq.write_table(table, tmp_path / "c.parquet")
    for data in (str(tmp_path / "c.parquet"), table, [{"text": "e", "x": float("nan")}, {"text": "f", "x": 10**5000}]):
        told = curate.ingest(ws, data)
        assert told.rejected == 2 and told.read == told.rejected + told.added + told.copies


def test_what_is_nested_deeply_is_told(tmp_path: Path) -> None:
    plan = written(tmp_path / "plan.toml", "a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(CurateError, match="nested too deeply"):
        read_plan(plan)
    with pytest.raises(CurateError, match="is no TOML"):
        read_plan(written(plan, f"seeds = {DIGITS}"))
    for text in ('{"a":' * 5000 + "1" + "}" * 5000, "[" * 5000):
        assert isinstance(read(written(tmp_path / "a.jsonl", f'{{"a":1}}\n{text}'), InputLimits())[1], Unreadable)


def test_limits_are_options(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text":"short"}\n' + LONG)
    command = ["ingest", "-w", str(tmp_path / "ws"), str(path), "--limit"]
    told = in_this_process([*command, "row_mib=0.01"])
    assert not told.returncode and "1 sample added" in told.stdout and "1: is 70,012 bytes long" in told.stdout
    for wrong, words in (("row_mib=0", "above 0"), ("rows=1", "no setting 'rows'"), ("ratio=many", "ratio")):
        failed = in_this_process([*command, wrong])
        assert failed.returncode == 2 and words in failed.stderr


def test_arrays_cut_and_changed_anywhere_lose_no_element_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 7)
    dice = random.Random(3)
    whole = json.dumps([{"n": i, "t": 'a "q" [x]', "l": [{"k": i}]} for i in range(8)])
    for _ in range(300):
        place = dice.randrange(1, len(whole))
        text = whole[:place] + dice.choice(['"', "}", "]", "{", "[", ",", "", "\\", "\n"]) + whole[place + 1 :]
        found = [row for _, row in json_rows.json_array(io.StringIO(text), InputLimits())]
        good = [row for row in found if not isinstance(row, Unreadable)]
        assert len(good) >= 8 or len(good) < len(found), text


def test_files_at_random_end_in_rows_rejects_or_a_sentence(tmp_path: Path) -> None:
    """At length: `python -m tests.attack.fuzz --minutes M --seed S`."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    tally = fuzzed(seed, tmp_path, seconds=600, most=20)
    assert not tally.wrong and tally.tried == 20, (seed, str(tally), tally.wrong[:5])


def test_a_nested_text_that_is_no_utf_8_costs_one_row(tmp_path: Path) -> None:
    texts = pa.array([b"q", b"a", b"\xff", b"a"]).view(pa.string())
    turns = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * 2), texts], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays([0, 2, 4], turns)})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    found = read(tmp_path / "a.arrow")
    assert found[0]["messages"][1]["content"] == "a" and isinstance(found[1], Unreadable) and len(found) == 2


def test_offsets_that_point_elsewhere_are_rejects() -> None:
    places = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 99, 3)))
    unsound = pa.StringArray.from_buffers(3, places, pa.py_buffer(b"abc"))
    found = [row for _, row in records(find_given(pa.table({"text": unsound})).inputs[0])]
    assert found[0] == {"text": "a"} and [type(row) for row in found[1:]] == [Unreadable, Unreadable]
