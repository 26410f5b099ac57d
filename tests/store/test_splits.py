"""Folders and datasets of several splits: train, or the one that is asked for, and never a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError
from curate.store.dataset_inputs import HubDataset, split_of
from curate.store.input_files import find_inputs, records, source_name
from curate.store.workspace import Workspace


def questions(split: str, n: int) -> list[dict[str, str]]:
    return [{"instruction": f"{split} question {i}", "output": "an answer"} for i in range(n)]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """What `hf download` leaves of a dataset."""
    folder = tmp_path / "snapshot"
    (folder / "data").mkdir(parents=True)
    for split, n in (("train", 5), ("test", 3), ("validation", 2)):
        pq.write_table(pa.Table.from_pylist(questions(split, n)), folder / f"data/{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "dataset_infos.json").write_text('{"default": {"splits": {}}}')
    return folder


def asked(ws: Workspace) -> set[str]:
    return {row["q"].split()[0] for row in curate.sql(ws, "SELECT messages[1].content AS q FROM pool")}


def test_of_a_hub_snapshot_train_is_read_and_the_rest_is_said(ws: Workspace, snapshot: Path) -> None:
    result = curate.ingest(ws, [str(snapshot)])
    assert asked(ws) == {"train"} and result.added == 5
    assert result.warnings == [
        f"{snapshot}: 2 files of the splits test, validation are not read (--split NAME reads another)"
    ]


@pytest.mark.parametrize(("split", "read"), [("test", "test"), ("validation", "validation"), ("val", "validation")])
def test_another_split_is_read_where_it_is_named(ws: Workspace, snapshot: Path, split: str, read: str) -> None:
    curate.ingest(ws, [str(snapshot)], split=split)
    assert asked(ws) == {read}


def test_what_has_no_such_split_is_refused_with_those_it_has(ws: Workspace, snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="has no files of a split 'dev2'|has files of the splits"):
        curate.ingest(ws, [str(snapshot)], split="dev2")
    (snapshot / "data/train-00000-of-00001.parquet").unlink()
    with pytest.raises(CurateError, match="has files of the splits test, validation only; name one: --split test"):
        curate.ingest(ws, [str(snapshot)])
    single = tmp_path / "a.jsonl"
    single.write_text(json.dumps(questions("a", 1)[0]))
    with pytest.raises(CurateError, match="a file has no splits; leave out --split test"):
        curate.ingest(ws, [str(single)], split="test")
    curate.ingest(ws, [str(snapshot / "data/test-00000-of-00001.parquet")])  # a file that is named is read
    assert asked(ws) == {"test"}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00003.parquet", "train"),
        ("gsm8k_test.jsonl.gz", "test"),
        ("Validation.json", "validation"),
        ("dev/part-0.jsonl", "validation"),
        ("main/eval/0.parquet", "test"),
        ("gsm8k.test.jsonl", "test"),
        ("data-test-v2.jsonl", "test"),
        ("train_dev_pairs.jsonl", "train"),
        ("my-test-data/part.jsonl", "test"),
        ("test/train-0.parquet", "train"),
        ("school.jsonl", None),
        ("training_data_latest.jsonl", "train"),
        ("contest.jsonl", None),
        ("latest/valentine.jsonl", None),
        ("retrained.jsonl", None),
    ],
)
def test_a_split_is_a_word_of_a_name_or_a_folder(path: str, split: str | None) -> None:
    assert split_of(Path("/folder") / path, Path("/folder")) == split


def test_splits_that_a_pattern_mixes_are_read_and_told(ws: Workspace, snapshot: Path, tmp_path: Path) -> None:
    (note,) = curate.ingest(ws, [str(snapshot / "data/*.parquet")]).warnings
    assert note.startswith("files of the splits test, validation are read beside train (test-00000-of-00001.parquet, ")
    assert asked(ws) == {"train", "test", "validation"}
    held_out = [str(snapshot / f"data/{split}-00000-of-00001.parquet") for split in ("test", "validation")]
    other = curate.open_workspace(tmp_path / "other")
    assert not curate.ingest(other, held_out).warnings


def test_a_folder_of_files_without_splits_is_read_whole(ws: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("atlas", "school"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(name, 2)))
    result = curate.ingest(ws, [str(folder)])
    assert result.added == 4 and not result.warnings


def test_an_empty_saved_dataset_is_said_and_the_others_are_read(ws: Workspace, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string")})
    datasets.Dataset.from_dict({"text": []}, features=features).save_to_disk(str(tmp_path / "empty"))
    datasets.Dataset.from_dict({"text": ["a text", "another"]}).save_to_disk(str(tmp_path / "full"))
    result = curate.ingest(ws, [str(tmp_path / "empty"), str(tmp_path / "full")])
    assert result.added == 2 and result.warnings == [f"{tmp_path / 'empty'} is empty"]
    with pytest.raises(CurateError, match="nothing to ingest, every file is empty"):
        curate.ingest(ws, [str(tmp_path / "empty")])


def test_saved_datasets_in_a_folder_are_read_as_such(ws: Workspace, tmp_path: Path) -> None:
    saved = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(questions(split, 2)) for split in ("train", "test")}
    )
    saved.save_to_disk(str(tmp_path / "all/one"))
    curate.ingest(ws, [str(tmp_path / "all")])
    assert asked(ws) == {"train"}
    curate.ingest(ws, [str(tmp_path / "all")], split="test")
    assert asked(ws) == {"train", "test"}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("owner/name", ("owner/name", None, None, None, None)),
        ("hf:owner/name:main", ("owner/name", "main", None, None, None)),
        ("owner/name:main:test", ("owner/name", "main", "test", None, None)),
        ("owner/name:main@v1.2#test", ("owner/name", "main", None, "v1.2", "test")),
        ("owner/name@refs/convert/parquet", ("owner/name", None, None, "refs/convert/parquet", None)),
        ("owner/name#validation", ("owner/name", None, None, None, "validation")),
    ],
)
def test_a_hub_name_has_a_configuration_a_revision_and_a_split(given: str, parts: tuple[str | None, ...]) -> None:
    hub = HubDataset.of(given)
    assert hub and (hub.name, hub.first, hub.second, hub.revision, hub.split) == parts
    assert source_name(given) == "name"


def test_configurations_and_splits_of_a_hub_dataset_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two configurations, read by datasets itself, stands for the hub."""
    for config in ("main", "socratic"):
        for split in ("train", "test"):
            (tmp_path / config).mkdir(exist_ok=True)
            (tmp_path / config / f"{split}.jsonl").write_text(
                json.dumps({"question": f"{config} {split}", "answer": "a"})
            )
    files = "  data_files:\n" + "".join(f"  - split: {s}\n    path: CONFIG/{s}.jsonl\n" for s in ("train", "test"))
    configs = "".join(f"- config_name: {c}\n{files}".replace("CONFIG", c) for c in ("main", "socratic"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    load = datasets.load_dataset

    def from_folder(path: str, *more: Any, **kwargs: Any) -> Any:
        assert path == "owner/name"
        return load(str(tmp_path), *more, cache_dir=str(tmp_path / "cache"), **{k: v for k, v in kwargs.items() if v})

    monkeypatch.setattr(datasets, "load_dataset", from_folder)

    def read(given: str, split: str | None = None) -> list[str]:
        return [row["question"] for item in find_inputs(given, split).inputs for _, row in records(item)]

    assert read("owner/name:main") == ["main train"]
    assert read("owner/name:socratic:test") == read("owner/name:socratic#test") == ["socratic test"]
    assert read("owner/name:main", "test") == ["main test"]
    with pytest.raises(CurateError, match="name its configuration if it has several: owner/name:CONFIG"):
        read("owner/name")
    with pytest.raises(CurateError, match="has splits train, test; name one"):
        read("owner/name:main#nowhere")


def test_turns_kept_as_a_struct_of_lists_are_turns(ws: Workspace, tmp_path: Path) -> None:
    turns = pa.struct([("from", pa.list_(pa.string())), ("value", pa.list_(pa.string()))])
    rows = [{"from": ["human", "gpt"], "value": ["a question", "an answer"]}, {"from": ["human"], "value": ["q", "a"]}]
    pq.write_table(pa.table({"conversations": pa.array(rows, turns)}), tmp_path / "a.parquet")
    result = curate.ingest(ws, [str(tmp_path / "a.parquet")])
    assert result.added == 1 and list(result.reasons) == ["conversations is no list"]
    (row,) = curate.sql(ws, "SELECT messages[2].content AS answer FROM pool")
    assert row["answer"] == "an answer"
