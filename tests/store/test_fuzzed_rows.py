"""Rows at random through reading, rendering and export: none lost, none crashing, and each refusal has a reason.

Files that exports write are read as their consumers read them, by `datasets`, whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.exact_json import dumps, loads
from curate.kinds.export import Export, Row
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.datasets import Datasets
from curate.methods.exports.interleave import Interleave
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.litdata import Litdata
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.megatron import Megatron
from curate.methods.exports.open_instruct import OpenInstruct
from curate.methods.exports.parquet import Parquet
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random as RandomSelector
from curate.models.tokens import encode
from curate.store.input_formats import Reader
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.models.test_real_templates import NAMES, plain_tokenizer, tokenizer_with

MANY = int(os.environ.get("CURATE_FUZZED_ROWS", 20_000))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
SHAPES: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                  {"role": "assistant", "content": "a", "weight": 0, "name": "n"}], "tools": [CALL]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                  {"role": "tool", "content": "r", "tool_call_id": "1"}, {"role": "assistant", "content": "a"}],
     "tools": json.dumps([CALL]), "chat_template_kwargs": {"enable_thinking": False}},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name":"f"}'},
                       {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "documents": [{"title": "t", "text": "x"}]},
    {"instruction": "i", "input": "n", "output": "o", "history": [["q", "a"]]},
    {"question": "q?", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}},
    {"question": "q?", "choices": ["x", "y"], "answer": 1},
    {"text": "some text", "id": 7},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                  {"role": "assistant", "content": "a", "reasoning_content": "r", "train": False}]},
    {"prompt": "q", "chosen": "a", "rejected": "b", "tools": [CALL], "score_chosen": 0.5},
    {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
     "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "name": "n"}]},
    {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "label": False, "tools": [CALL]},
]  # fmt: skip
ODD: list[Any] = [
    *(None, "", " ", 0, -1, 1.10, 2**70, True, [], {}, [None], [[]], {"a": {"b": [1]}}, "null", "[1]", "\ud800"),
    *(float("nan"), "x" * 50, {"role": "user"}, [{"role": "user", "content": "q"}], '{"name": 3}', "\x00", "ﷺ"),
]
EXPORTS: list[Export] = [
    *(Jsonl(), Mds(), Trl(), Trl(style="prompt_completion"), Axolotl(), OpenInstruct(), Llamafactory()),
]


OF_KIND: dict[str, list[Export]] = {  # what of the pool -> the exports that have a place for some of it
    "text IS NOT NULL": [Trl(), Axolotl(), Llamafactory()],
    "text IS NULL AND rejected IS NULL AND wanted IS NULL": [Trl(style="messages"), Trl(style="prompt_completion"),
                                                            Axolotl(), OpenInstruct(), Llamafactory()],
    "rejected IS NOT NULL": [Trl(), Axolotl(), Llamafactory()],
    "wanted IS NOT NULL": [Trl(), Llamafactory()],
}  # fmt: skip
OURS: list[Export] = [
    *(Jsonl(), Parquet(), Datasets(), Mds(), Interleave(), Litdata(), Megatron(tokenizer="tiny")),
]


def mutated(value: Any, rng: np.random.Generator, rate: float) -> Any:
    """The value with a part of it dropped, doubled, or replaced here and there."""
    if rng.random() < rate:
        return ODD[rng.integers(len(ODD))]
    if isinstance(value, dict):
        kept = {k: mutated(v, rng, rate) for k, v in value.items() if rng.random() >= rate}
        return kept | ({"odd": ODD[rng.integers(len(ODD))]} if rng.random() < rate else {})
    if isinstance(value, list):
        return [mutated(v, rng, rate) for v in value for _ in range(1 + (rng.random() < rate)) if rng.random() >= rate]
    return f"{value}{rng.integers(1000)}" if isinstance(value, str) and len(value) == 1 else value  # else mostly copies


def rows(n: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    made = [mutated(SHAPES[rng.integers(len(SHAPES))], rng, [0.02, 0.1, 0.3][i % 3]) for i in range(n)]
    return [row | {"number": i} if isinstance(row, dict) else row for i, row in enumerate(made)]


@pytest.mark.parametrize("n", [1_000, pytest.param(MANY, marks=pytest.mark.repeated)])
def test_every_row_becomes_a_sample_or_a_reject_and_every_sample_is_rendered_or_refused(tmp_path: Path, n: int) -> None:
    given = rows(n, seed=n)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    ws = curate.open_workspace(tmp_path / "ws")
    told = curate.ingest(ws, [str(tmp_path / "a.jsonl")])
    assert told.read == n == told.added + told.copies + told.rejected and told.added > n / 10 and told.rejected > n / 20
    assert all(row["reason"] for row in curate.sql(ws, "SELECT reason FROM rejects"))
    tokenizers = [plain_tokenizer(), *(tokenizer_with(name) for name in ("qwen3", "deepseekv3", "phi3") if NAMES)]
    stored = curate.sql(
        ws, "SELECT id, source, messages, text, template_kwargs, rejected, wanted, meta FROM pool ORDER BY row"
    ).to_polars()
    samples = stored.to_dicts()
    assert sum(row["messages"] is not None for row in samples) > len(samples) / 3
    for tokenizer in tokenizers:
        for sample, item in zip(samples, encode(tokenizer, samples, 512), strict=True):
            assert item.error or len(item.ids) == len(item.supervised) > 0, sample
    for sample in samples:
        row, held = Row(**sample, some=frozenset(["tools", "keys"])), 0
        for exporter in EXPORTS:
            try:
                shown = exporter.example(row)
            except CurateError as unfit:
                assert str(unfit).startswith(f"sample {row.id} ") and str(unfit).endswith("."), unfit
                continue
            held += 1
            assert dumps(loads(dumps(shown))) == dumps(shown)
        assert held >= 2  # ours hold everything
        again = Reader().sample(loads(dumps(Jsonl().example(row))))
        assert again.id == row.id, (sample, Jsonl().example(row))
    every_file_is_whole(ws, tmp_path, len(samples))


def every_file_is_whole(ws: Workspace, folder: Path, n: int) -> None:
    """Exports every sample in every format that may hold it, and reads the files."""
    curate.select(ws, "every", RandomSelector(), SelectionSpec(frac=1.0))
    for exporter in OURS:
        done = curate.export(ws, "every", exporter, folder / exporter.name, skip_unfit=True)
        assert done.rows + len(done.skipped) == n and (not done.skipped or exporter.name == "megatron")
    told = 0
    for i, (condition, exporters) in enumerate(OF_KIND.items()):
        of_kind = curate.select(ws, f"kind_{i}", RandomSelector(), SelectionSpec(frac=1.0, where=condition)).rows
        told += of_kind
        for j, exporter in enumerate(exporters):
            out = folder / f"{i}-{j}"
            done = curate.export(ws, f"kind_{i}", exporter, out, skip_unfit=True)
            assert done.rows + len(done.skipped) == of_kind and done.rows, (exporter, condition)
            assert all(reason.startswith("sample ") and reason.endswith(".") for reason in done.skipped)
            assert read_whole(out) == done.rows
    assert told == n


def read_whole(out: Path) -> int:
    """The rows that `datasets` finds in the lines of an export, each of which it must read as what it says."""
    import datasets

    found = 0
    for path in out.glob("*.jsonl"):
        got = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(out / "cache"))
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        for row, line in zip(got, lines, strict=True):
            assert as_read(row) == as_read(json.loads(line))
        found += len(lines)
    return found


def as_read(row: Any) -> Any:
    """A row without what is null, which only says that another row has it; tools may be JSON text."""
    if isinstance(row, dict):
        if isinstance(row.get("tools"), str) and row["tools"]:
            row = {**row, "tools": json.loads(row["tools"])}
        return {k: as_read(v) for k, v in row.items() if v is not None}
    return [as_read(value) for value in row] if isinstance(row, list) else row
