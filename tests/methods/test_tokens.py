"""Tokens as a score: the trainer's own counts, without weights, and budgets that go by them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import curate
from curate.methods.scores.nll import Nll
from curate.methods.scores.tokens import Tokens
from curate.models.choice import TINY, ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load_tokenizer
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl
from tests.support.narrow import NARROW


def test_the_counts_are_those_of_the_template_and_of_raw_text_one_sample_at_a_time(school_ws: Workspace) -> None:
    raw = {"text": "a text without an answer"}
    curate.ingest(school_ws, [write_jsonl(school_ws.path.parent / "raw.jsonl", [raw])])
    curate.score(school_ws, Tokens(), models=NARROW)
    tokenizer = load_tokenizer(ModelChoice(NARROW))
    rows = curate.sql(school_ws, "SELECT messages, text, tokens, tokens_supervised FROM samples ORDER BY row")
    for row in rows:
        if row["messages"]:
            chat = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
            expected = len(tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"])
            answers = sum(len(tokenizer(m["content"])["input_ids"]) for m in chat if m["role"] == "assistant")
            assert answers <= row["tokens_supervised"] < row["tokens"]
        else:
            expected = len(tokenizer(row["text"])["input_ids"])
            assert row["tokens_supervised"] == expected - 1
        assert row["tokens"] == expected
    assert len(rows) == 201


def test_no_weights_are_read_and_nothing_is_charged_for_them(school_ws: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "bare"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    weights.write_bytes(whole[:head] + b"\xff" * (len(whole) - head))  # not a number, which loading refuses
    curate.score(school_ws, Tokens(), models=str(folder))
    (row,) = [r for r in curate.ledger(school_ws) if r["name"] == "tokens"]
    assert row["flops"] == 0 and row["phase"] == "tokenise"
    with pytest.raises(curate.CurateError, match="not all finite"):
        curate.score(school_ws, Nll(), models=str(folder))


def test_beside_a_score_by_the_same_model_the_pass_is_shared(
    school_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate.score(school_ws, Tokens(), names={"tokens": "alone"}, models=NARROW)
    seen: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, p: seen.append(len(e)) or batch(s, e, p))
    planned = curate.score(school_ws, Tokens(), Nll(), models=NARROW, dry_run=True)
    alone = curate.score(school_ws, Nll(), models=NARROW, dry_run=True)
    curate.score(school_ws, Tokens(), Nll(), models=NARROW)
    assert sum(seen) == 200
    assert [p.planned[0]["flops"] for p in planned] == [0.0, alone[0].planned[0]["flops"]]
    (differ,) = curate.sql(
        school_ws, "SELECT count(*) FILTER (alone != tokens OR tokens_supervised != nll_tokens) n FROM samples"
    )
    assert differ["n"] == 0


def test_a_long_sample_counts_as_far_as_the_context_goes(school_ws: Workspace) -> None:
    (result,) = curate.score(school_ws, Tokens(), models=ModelChoice(NARROW, context=8))
    (most,) = curate.sql(school_ws, "SELECT max(tokens) n, count(*) FILTER (tokens = 8) cut FROM samples")
    assert most["n"] == 8 and result.cut >= 1
    (same,) = curate.score(school_ws, Tokens(of="supervised"), names={"tokens": "learnt"}, models=NARROW)
    assert same.nulls == 0


def test_a_budget_in_tokens_goes_by_them_and_a_guess_is_said_to_be_one(school_ws: Workspace) -> None:
    guessed = curate.select(school_ws, "guessed", "random", SelectionSpec(tokens=500))
    assert any("curate score tokens --model" in warning for warning in guessed.warnings)
    curate.score(school_ws, Nll(), models=NARROW)
    assert curate.select(school_ws, "answers", "random", SelectionSpec(tokens=500)).counted_by == "nll_tokens"
    curate.score(school_ws, Tokens(), models=NARROW)
    result = curate.select(school_ws, "counted", "random", SelectionSpec(tokens=500))
    (sum_,) = curate.sql(school_ws, "SELECT sum(tokens) n FROM samples JOIN counted USING (id)")
    assert result.counted_by == "tokens" and result.tokens == sum_["n"] <= 500 and not result.warnings
    curate.score(school_ws, Tokens(of="supervised"), names={"tokens": "a_sup"}, models=NARROW)
    assert curate.select(school_ws, "still", "random", SelectionSpec(tokens=500)).counted_by == "tokens"
    learnt = curate.select(school_ws, "learnt", "random", SelectionSpec(tokens=500, token_count="tokens_supervised"))
    assert learnt.rows >= result.rows
