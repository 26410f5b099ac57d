from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from curate.errors import CurateError
from curate.store.input_files import find_inputs, records, source_name
from curate.store.input_formats import Unreadable

ROWS = [{"text": f'row {i} \u00e9 \u65e5 \U0001f600 " \\ \n', "n": i} for i in range(3000)]


def read(path: Path, skip: int = 0) -> list[Any]:
    (found,) = find_inputs(str(path)).inputs
    return [record for _, record in records(found, skip)]


def packed(path: Path, data: bytes) -> Path:
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


LINES = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "data"), [("a.jsonl", LINES), ("a.json", ARRAY), ("wrong.txt", ARRAY)])
def test_json_of_every_kind_is_read_by_its_bytes_not_its_name(
    tmp_path: Path, name: str, data: bytes, ending: str
) -> None:
    path = packed(tmp_path / (name + ending), data)
    assert read(path) == ROWS
    assert read(path, skip=2990) == ROWS[2990:]


def test_tables_and_dataset_folders_are_read(tmp_path: Path) -> None:
    import datasets

    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table)
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(str(tmp_path / "splits"))
    for name in ("a.parquet", "file.arrow", "stream.arrow", "disk", "splits"):
        assert read(tmp_path / name) == ROWS, name
    assert len(read(tmp_path / "splits" / "test")) == 5


def test_a_hub_id_is_loaded_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading code, with a folder of that name standing in for the hub."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_text('{"text": "from the hub"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (found,) = find_inputs("hf:owner/name").inputs
    assert (found.kind, found.source) == ("hub", "name")
    assert [r for _, r in records(found)] == [{"text": "from the hub"}]
    assert find_inputs("hf:owner/name:train").inputs[0].key == found.key
    (tmp_path / "owner" / "name" / "train.jsonl").write_text('{"text": "another revision"}\n')
    assert find_inputs("hf:owner/name").inputs[0].key != found.key
    with pytest.raises(CurateError, match="neither a file here nor a dataset"):
        find_inputs("owner/missing")


def test_an_array_is_streamed_across_chunks_whatever_stands_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(0)
    rows = [[["nested"], 1]] + [
        dice.choice([ROWS[i], i, str(i) * 9, None, [i, {"a": "]},{"}], -1.5e-7, True]) for i in range(100)
    ]
    path = tmp_path / "a.json"
    for indent in (None, 2, 40):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        for chunk in (1, 7, 64, 1 << 20):
            monkeypatch.setattr("curate.store.json_rows._CHUNK", chunk)
            assert read(path) == rows


@pytest.mark.parametrize(
    ("data", "good", "reason"),
    [
        (b'[{"a":1},{"a":2},{"a":', 2, "array cannot be read"),
        (b'[{"a":1},{"a":2}', 2, "closing bracket"),
        (b'[{"a":1},{"a":2}]\n[{"a":3}]', 2, "behind the end"),
        (b'[{"a":1},{"a":2},{"a":"oops}]', 2, "from its element 3 on, at character 17"),
    ],
)
def test_a_broken_array_gives_what_stands_before_the_break(tmp_path: Path, data: bytes, good: int, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    *rows, last = read(path)
    assert len(rows) == good and isinstance(last, Unreadable) and reason in last.reason


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("data", [LINES, ARRAY])
def test_a_cut_archive_gives_what_could_be_unpacked_and_says_so(tmp_path: Path, ending: str, data: bytes) -> None:
    dice = random.Random(1)
    data = data.replace(b"row", bytes(f"row {dice.random()}", "ascii"))
    path = packed(tmp_path / f"a{ending}", data + b"\n" + bytes(dice.randbytes(200_000).hex(), "ascii"))
    path.write_bytes(path.read_bytes()[:-100_000])
    *rows, last = read(path)
    assert isinstance(last, Unreadable) and "cut or damaged" in last.reason or len(rows) > 0


def test_lines_that_are_no_json_are_told_and_the_others_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n\n{"a":\n{"a":"\xff\xfe"}\n{"a":NaN}\n{"a":2}')
    (found,) = find_inputs(str(path)).inputs
    rows = list(records(found))
    assert [line for line, _ in rows] == [1, 3, 4, 5, 6]  # the empty line counts, and holds nothing
    good = [r["a"] for _, r in rows if not isinstance(r, Unreadable)]
    assert good[::2] == [1, 2] and good[1] != good[1]  # NaN, as json.dumps writes it
    assert all("is not JSON" in r.reason for _, r in rows if isinstance(r, Unreadable))


def test_one_unreadable_value_in_a_table_costs_one_row(tmp_path: Path) -> None:
    import datetime

    ill = pa.array([b"fine", b"\xff\xfe", b"too"]).view(pa.string())
    pq.write_table(pa.table({"text": ill}), tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet")
    assert [got[0], got[2]] == [{"text": "fine"}, {"text": "too"}] and isinstance(got[1], Unreadable)
    far = pa.array([0, 2**60], pa.timestamp("us"))
    pq.write_table(pa.table({"at": far, "text": ["a", "b"]}), tmp_path / "b.parquet")
    got = read(tmp_path / "b.parquet")
    assert got[0]["at"] == datetime.datetime(1970, 1, 1) and isinstance(got[1], Unreadable)


def test_deep_nesting_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a":1},' + "[" * 200_000 + "]" * 200_000 + "]")
    assert isinstance(read(tmp_path / "a.json")[-1], Unreadable)


def test_one_row_of_five_megabytes_is_read(tmp_path: Path) -> None:
    row = {"text": "x" * 5_000_000}
    for name, text in (("a.jsonl", json.dumps(row)), ("a.json", json.dumps([row, row]))):
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name)[0] == row


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b"\x00\x01\x02 binary", "no JSON, Parquet or Arrow"),
        ("a.jsonl.gz", b"\x1f\x8b", "cannot be unpacked"),
        ("a.parquet", b"PAR1 and then nothing", "cannot be read as parquet"),
    ],
)
def test_a_file_that_is_no_data_is_refused(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CurateError, match=sentence):
        read(tmp_path / name)


def test_paths_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(CurateError, match="no such file"):
            find_inputs(str(path))
    with pytest.raises(CurateError, match="no file in this folder"):
        find_inputs(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("data/p3.jsonl.gz", "p3"),
        ("gsm8k.jsonl", "gsm8k"),
        ("data/folder", "folder"),
        ("data/part-*.jsonl", "part"),
        ("data/*.jsonl", "data"),
        ("hf:owner/name", "name"),
        ("v1.5/train.parquet", "train"),
    ],
)
def test_the_source_is_the_path_without_its_endings(given: str, name: str) -> None:
    assert source_name(given) == name


def test_a_folder_and_a_glob_are_one_source(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "note.txt"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    for given in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        found = find_inputs(given).inputs
        assert [Path(f.path).name for f in found] == ["a.jsonl", "b.jsonl"]
        assert len({f.source for f in found}) == 1
