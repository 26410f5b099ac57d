"""Rows at random through reading, rendering and export: none lost, none crashing, and each refusal has a reason."""

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
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.open_instruct import OpenInstruct
from curate.methods.exports.trl import Trl
from curate.models.tokens import encode
from curate.store.input_formats import Reader
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
]  # fmt: skip
ODD: list[Any] = [
    *(None, "", " ", 0, -1, 1.10, 2**70, True, [], {}, [None], [[]], {"a": {"b": [1]}}, "null", "[1]", "\ud800"),
    *(float("nan"), "x" * 50, {"role": "user"}, [{"role": "user", "content": "q"}], '{"name": 3}', "\x00", "ﷺ"),
]
EXPORTS: list[Export] = [
    *(Jsonl(), Mds(), Trl(), Trl(style="prompt_completion"), Axolotl(), OpenInstruct(), Llamafactory()),
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


@pytest.mark.parametrize("n", [3_000, pytest.param(MANY, marks=pytest.mark.repeated)])
def test_every_row_becomes_a_sample_or_a_reject_and_every_sample_is_rendered_or_refused(tmp_path: Path, n: int) -> None:
    given = rows(n, seed=n)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    ws = curate.open_workspace(tmp_path / "ws")
    told = curate.ingest(ws, [str(tmp_path / "a.jsonl")])
    assert told.read == n == told.added + told.copies + told.rejected and told.added > n / 10 and told.rejected > n / 20
    assert all(row["reason"] for row in curate.sql(ws, "SELECT reason FROM rejects"))
    tokenizers = [plain_tokenizer(), *(tokenizer_with(name) for name in ("qwen3", "deepseekv3", "phi3") if NAMES)]
    stored = curate.sql(
        ws, "SELECT id, source, messages, text, template_kwargs, meta FROM pool ORDER BY row"
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
