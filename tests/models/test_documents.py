"""The bounds of a raw text: one BOS, and one EOS or none, whether the text brings them or not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.kinds.export import Row
from curate.methods.exports.megatron import Megatron
from curate.methods.scores.nll import Nll
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import encode
from curate.runs.config import TrainingSpec
from curate.training.settings import TrainSettings
from tests.conftest import write_jsonl
from tests.models.test_real_templates import plain_tokenizer


def with_bos() -> Any:
    """A tokenizer that adds BOS to every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


def ids(tokenizer: Any, text: str, **more: Any) -> list[int]:
    (item,) = encode(tokenizer, [{"messages": None, "text": text}], 512, **more)
    assert not item.error and item.supervised.tolist() == [False] + [True] * (len(item.ids) - 1)
    return item.ids.tolist()


@pytest.mark.parametrize("make", [plain_tokenizer, with_bos])
def test_a_document_ends_once_if_it_is_asked_and_begins_once(make: Any) -> None:
    tokenizer = make()
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    plain = ids(tokenizer, "A short document.")
    assert plain == tokenizer("A short document.")["input_ids"] and plain[-1] != tokenizer.eos_token_id
    ended = [*plain, tokenizer.eos_token_id]
    for text in ("A short document.", f"A short document.{eos}", f"{bos}A short document.{eos}{eos}"):
        assert ids(tokenizer, text) == plain
        assert ids(tokenizer, text, add_eos_token=True) == ended
    assert ids(tokenizer, f"A{eos}B")[-1] != tokenizer.eos_token_id
    for rule, tokens in (("text", 0), ("parse", 1)):  # inside, it is part of the text
        assert ids(tokenizer, f"A{eos}B", special_tokens=rule).count(tokenizer.eos_token_id) == tokens


def tokens_but_bos(found: np.ndarray) -> list[int]:
    return [token for token in found.tolist() if token != plain_tokenizer().bos_token_id]


def test_a_text_of_nothing_has_no_end() -> None:
    (item,) = encode(plain_tokenizer(), [{"messages": None, "text": ""}], 512, add_eos_token=True)
    assert not item.supervised.any() and tokens_but_bos(item.ids) == []


def test_training_learns_where_a_text_ends_and_scores_do_if_they_are_asked(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", [{"text": "A short document."}])])
    n = len(plain_tokenizer()("A short document.")["input_ids"])
    for name, more, tokens in (("plain", {}, n), ("ended", {"add_eos_token": True}, n + 1)):
        curate.score(ws, Nll(), names={"nll": name}, models=ModelChoice("tiny", **more))
        (row,) = curate.sql(ws, f"SELECT {name}_tokens AS tokens FROM samples")
        assert row["tokens"] == tokens - 1
    for name, ends in (("ends", True), ("open", False)):
        settings = TrainSettings(steps=1, batch_size=1, add_eos_token=ends)
        curate.train(ws, name, TrainingSpec(ModelChoice("tiny"), Uniform(), settings))
    told = {row["run"]: row["supervised"] for row in curate.sql(ws, "SELECT run, supervised FROM metrics")}
    assert told == {"ends": n, "open": n - 1}
    with pytest.raises(curate.CurateError, match="with add_eos_token=False, not True"):
        curate.train(ws, "open", TrainingSpec(ModelChoice("tiny"), Uniform(), TrainSettings(steps=1, batch_size=1)))


@pytest.mark.parametrize("tail", ["", "\n", " \n"])
def test_megatron_s_documents_end_once(monkeypatch: pytest.MonkeyPatch, tail: str) -> None:
    tokenizer = copy.deepcopy(plain_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}" + tail + "{% endfor %}"
    )
    exporter = Megatron(tokenizer="tiny")
    monkeypatch.setitem(exporter.__dict__, "_tokenizer", tokenizer)
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for row in (Row.of(said), Row.of("a text"), Row.of(f"a text{tokenizer.eos_token}")):
        (found,) = exporter._tokens([row])
        ends = np.flatnonzero(found == tokenizer.eos_token_id)
        assert len(ends) == (2 if row.messages else 1) and not tokenizer.decode(found[ends[-1] + 1 :]).strip()
