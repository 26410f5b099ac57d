"""Each export, read back by its consumer's own loader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.export import Export, Row
from curate.methods.exports.datasets import Datasets
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.parquet import Parquet
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random
from curate.store.manifests import read_manifest, write_manifest
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl
from tests.support.exports import CALL, LONG, TOOLS


@pytest.fixture
def chosen(sample_ws: Workspace) -> Workspace:
    curate.select(sample_ws, "best", Random(), SelectionSpec(top=200))
    return sample_ws


def wanted(ws: Workspace) -> list[dict[str, Any]]:
    """The selected samples in the pool's order."""
    return curate.sql(ws, "SELECT p.* FROM best JOIN pool p USING (row) ORDER BY row")


def chat(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def test_jsonl_is_read_by_datasets(chosen: Workspace, tmp_path: Path) -> None:
    import datasets

    result = curate.export(chosen, "best", Jsonl(), str(tmp_path / "out"))
    got = datasets.load_dataset("json", data_files=result.files, split="train", cache_dir=str(tmp_path / "cache"))
    want = wanted(chosen)
    assert got["id"][:] == [r["id"] for r in want]
    assert [chat(m) for m in got["messages"]] == [chat(r["messages"]) for r in want]
    assert set(got["loss_weight"]) == {1.0} and got["meta"][0]["skill"] == json.loads(want[0]["meta"])["skill"]


def test_parquet_is_read_by_datasets_and_comes_back_as_the_same_samples(chosen: Workspace, tmp_path: Path) -> None:
    import datasets

    result = curate.export(chosen, "best", Parquet(), str(tmp_path / "out"))
    got = datasets.load_dataset("parquet", data_files=result.files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [chat(m) for m in got["messages"]] == [chat(r["messages"]) for r in wanted(chosen)]
    again = curate.open_workspace(tmp_path / "again")
    curate.ingest(again, result.files)
    assert curate.sql(again, "SELECT id FROM pool ORDER BY row") == [{"id": r["id"]} for r in wanted(chosen)]


def test_a_datasets_folder_is_loaded_by_datasets(chosen: Workspace, tmp_path: Path) -> None:
    import datasets

    result = curate.export(chosen, "best", Datasets(), str(tmp_path / "out"))
    got = datasets.load_from_disk(result.folder)
    assert [chat(m) for m in got["messages"]] == [chat(r["messages"]) for r in wanted(chosen)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "ws"]  # nothing is left beside it


@pytest.fixture
def varied(ws: Workspace, tmp_path: Path) -> Workspace:
    """A long conversation with a system turn, and one that calls a tool."""
    curate.ingest(ws, [write_jsonl(tmp_path / "v.jsonl", [{"messages": LONG}, {"messages": CALL, "tools": TOOLS}])])
    curate.select(ws, "best", Random(), SelectionSpec(top=2))
    return ws


def test_every_turn_role_and_tool_call_reaches_the_files(varied: Workspace) -> None:
    first, second = curate.preview(varied, "best", Trl(), 2)  # some chat has several answers
    assert first == {"messages": [*CALL[:-1], {**CALL[-1], "weight": 1}], "tools": TOOLS}
    assert second == {"messages": LONG, "tools": "null"}
    second, first = curate.preview(varied, "best", Trl(style="prompt_completion"), 2)
    assert [chat(first[key]) for key in ("prompt", "completion")] == [LONG[:-1], LONG[-1:]]
    assert [chat(second[key]) for key in ("prompt", "completion")] == [chat(CALL[:-1]), chat(CALL[-1:])]
    assert second["prompt"][1]["tool_calls"] == CALL[1]["tool_calls"] and second["tools"] == TOOLS
    first, second = curate.preview(varied, "best", Jsonl(), 2)
    assert first["messages"] == LONG and second["messages"] == CALL and second["tools"] == TOOLS
    assert sorted([first["rank"], second["rank"]]) == [0, 1]
    for exporter in (Parquet(), Datasets()):
        first, second = curate.preview(varied, "best", exporter, 2)
        assert chat(first["messages"]) == LONG
        assert json.loads(second["messages"][1]["extra"]) == {"tool_calls": CALL[1]["tool_calls"]}
    assert curate.preview(varied, "best", Llamafactory(), 2, skip_unfit=True) == [
        {"messages": LONG, "tools": ""},
        {
            "messages": [
                CALL[0],
                {"role": "function_call", "content": '{"name":"clock","arguments":{}}'},
                {"role": "tool", "content": "noon"},
                CALL[3],
            ],
            "tools": json.dumps(TOOLS, separators=(",", ":")),
        },
    ]


def test_trl_refuses_roles_that_no_template_knows() -> None:
    with pytest.raises(CurateError, match="function_call"):
        Trl().example(Row.of([{"role": "function_call", "content": "x"}]))


def test_trl_refuses_a_file_of_two_shapes(ws: Workspace, tmp_path: Path) -> None:
    rows = [{"text": "raw"}, {"question": "q", "answer": "a"}]
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", rows)])
    curate.select(ws, "best", Random(), SelectionSpec(top=2))
    with pytest.raises(CurateError, match="one shape"):
        curate.export(ws, "best", Trl(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    curate.export(ws, "best", Jsonl(), str(tmp_path / "out"))


def test_llamafactory_describes_every_file_it_writes(ws: Workspace, tmp_path: Path) -> None:
    rows = [{"text": "raw"}, {"question": "q", "answer": "a"}, {"system": "s", "question": "q", "answer": "a"}]
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", rows)])
    curate.select(ws, "best", Random(), SelectionSpec(top=3))
    curate.export(ws, "best", Llamafactory(), str(tmp_path / "out"))
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert set(info) == {"best", "best_text"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "best.jsonl", "best_pt.llamafactory.yaml", "best_sft.llamafactory.yaml", "best_text.jsonl", "dataset_info.json"
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/best_text.jsonl").read_text()) == {"text": "raw"}


def test_samples_a_format_cannot_hold_are_refused_or_left_out_and_told(ws: Workspace, tmp_path: Path) -> None:
    odd = {"messages": [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "no"}]}
    tools = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [{}]}]}
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", [odd, {"question": "q", "answer": "a"}, tools])])
    curate.select(ws, "best", Random(), SelectionSpec(top=3))
    with pytest.raises(CurateError, match="--skip-unfit"):
        curate.export(ws, "best", Llamafactory(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    result = curate.export(ws, "best", Llamafactory(), str(tmp_path / "out"), skip_unfit=True)
    assert result.rows == 1 and len(result.skipped) == 2
    assert any("assistant, user" in why for why in result.skipped) and any(
        "tool_calls" in why for why in result.skipped
    )


# --- what holds for every format -------------------------------------------------------------------------

ALL: list[Export] = [Jsonl(), Parquet(), Datasets(), Trl(), Llamafactory()]


def reweighted(ws: Workspace, weights: list[float], repeats: list[int]) -> None:
    table, lineage = read_manifest(ws, "best")
    n = table.num_rows
    columns = {name: table[name] for name in table.column_names}
    columns["weight"] = pa.array((weights * n)[:n], pa.float32())
    columns["repeats"] = pa.array((repeats * n)[:n], pa.int32())
    write_manifest(ws, "best", pa.table(columns), lineage)


@pytest.mark.parametrize("exporter", ALL, ids=lambda e: e.name)
def test_repeats_are_written_out_and_weights_are_carried_or_refused(
    chosen: Workspace, tmp_path: Path, exporter: Export
) -> None:
    reweighted(chosen, [1.0], [1, 0, 3])
    result = curate.export(chosen, "best", exporter, str(tmp_path / "repeated"))
    assert result.rows == sum([1, 0, 3] * 66 + [1, 0])
    reweighted(chosen, [0.5, 1.5], [1])
    if exporter.weighted:
        curate.export(chosen, "best", exporter, str(tmp_path / "weighted"))
        assert {exporter.example(Row("0", "s", None, "t", loss_weight=0.5))["loss_weight"]} == {0.5}
    else:
        with pytest.raises(CurateError, match="cannot carry them"):
            curate.export(chosen, "best", exporter, str(tmp_path / "weighted"))


@pytest.mark.parametrize("exporter", ALL, ids=lambda e: e.name)
def test_a_preview_is_what_is_written(chosen: Workspace, tmp_path: Path, exporter: Export) -> None:
    shown = curate.preview(chosen, "best", exporter, 3)
    assert len(shown) == 3
    result = curate.export(chosen, "best", exporter, str(tmp_path / "out"))
    if result.files[0].endswith(".jsonl"):
        assert [json.loads(line) for line in Path(result.files[0]).read_text().splitlines()[:3]] == shown


def test_the_folder_one_stands_in_will_do(chosen: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert curate.export(chosen, "best", Jsonl(), ".").rows == 200
    assert (tmp_path / "here" / "best.jsonl").exists()


def test_a_folder_that_is_not_empty_is_left_alone(chosen: Workspace, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CurateError, match="not empty"):
        curate.export(chosen, "best", Jsonl(), str(tmp_path / "out"))
    with pytest.raises(CurateError, match="no manifest 'bset': did you mean 'best'"):
        curate.export(chosen, "bset", Jsonl(), str(tmp_path / "new"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert curate.export(chosen, "best", Jsonl(), str(tmp_path / "empty")).rows == 200


# --- the consumers whose packages do not fit this environment ---------------------------------------------

LLAMAFACTORY = [
    "llamafactory==0.9.5",
    "peft==0.18.1",
    "omegaconf",
    "antlr4-python3-runtime==4.9.3",
    "torchdata==0.11.0",
]
READ = """
import json, sys
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

folder, name = sys.argv[1:]
(attributes,) = get_dataset_list([name], folder)
training = Seq2SeqTrainingArguments(output_dir=folder + "/run", report_to=[])
data = DataArguments(dataset=name, dataset_dir=folder)
rows = _load_single_dataset(attributes, ModelArguments(model_name_or_path="none"), data, training)
print(json.dumps([[row["_system"], row["_prompt"], row["_response"]] for row in rows]))
"""


@pytest.mark.consumers
def test_llamafactory_reads_its_export(sample_ws: Workspace, tmp_path: Path) -> None:
    """LLaMA-Factory's own parser, loader and converter, installed without the dependencies it does not need here."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, *LLAMAFACTORY], check=True, timeout=600)
    (site / "torchaudio.py").write_text("")  # imported, not used for text; it has no CPU build
    curate.ingest(sample_ws, [write_jsonl(tmp_path / "v.jsonl", [{"messages": LONG}, {"text": "raw text"}])])
    curate.select(sample_ws, "best", Random(), SelectionSpec(frac=1.0))
    curate.export(sample_ws, "best", Llamafactory(), str(tmp_path / "out"))

    def read(name: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path / "out"), name],
            env={"PYTHONPATH": str(site), "DISABLE_VERSION_CHECK": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    want = [chat(r["messages"]) for r in wanted(sample_ws) if r["messages"]]
    rows = read("best")
    assert [[*prompt, *response] for _, prompt, response in rows[:-1]] == want[:-1]
    assert rows[-1] == ["be brief", LONG[1:-1], LONG[-1:]]
    assert read("best_text") == [["", [{"role": "user", "content": "raw text"}], []]]
