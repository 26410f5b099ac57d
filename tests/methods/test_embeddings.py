"""Vectors of samples against slow references, and the encoders that make them or will not do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.kinds.vectors import Anchors, Vectors
from curate.methods.scores.embed import Embed
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.nll import Nll
from curate.models.choice import TINY, ModelChoice
from curate.models.flops import forward_flops
from curate.models.forward import Model, score_samples
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder
from curate.models.tokens import encode
from curate.store.workspace import Workspace
from curate.tables.state import table_state
from curate.tables.vector_table import vector_table, vectors_of
from tests.conftest import SAMPLE
from tests.oracles.language_model import position_weighted
from tests.support.narrow import NARROW

Samples = list[dict[str, Any]]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Chats and raw texts of the corpus, one of them longer than any context here."""
    lines = (SAMPLE / "pool/school.jsonl").read_text().strip().split("\n")[:40]
    rows = [json.loads(line) for line in lines]
    chats: Samples = [
        {"text": None, "messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": a}]}
        for r in rows
        for a in [r["answer"]]
    ]
    return [*chats, {"text": "a river and a mill. " * 90, "messages": None}, {"text": "one", "messages": None}]


def vectors_of_samples(model: Model, method: Any, samples: Samples) -> np.ndarray:
    found, _ = score_samples(dict.fromkeys(method.models, model), samples, {"x": method.vectors()})
    return Vectors.of(found["x"]["vector"], found["x"]["error"]).unit


# --- against slow references -----------------------------------------------------------------------------


def texts_of(samples: Samples) -> list[str]:
    return [s["text"] or "\n".join(m["content"] for m in s["messages"]) for s in samples]


@pytest.fixture(scope="module")
def theirs(minilm: Path, samples: Samples) -> np.ndarray:
    """The samples' vectors by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm), device="cpu")
    return encoder.encode(texts_of(samples), batch_size=7, show_progress_bar=False)


@pytest.mark.parametrize("batch_tokens", [1, 300, 5000])
def test_embed_equals_sentence_transformers_own_encode(
    minilm: Path, samples: Samples, theirs: np.ndarray, batch_tokens: int
) -> None:
    model = SentenceEncoder(ModelChoice(str(minilm), batch_tokens=batch_tokens))
    assert np.abs(vectors_of_samples(model, Embed(), samples) - theirs).max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_an_encoders_own_pooling_is_kept(minilm: Path, samples: Samples, tmp_path: Path, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(minilm, tmp_path / "encoder"))
    said = json.loads((folder / "1_Pooling/config.json").read_text())
    modes = {key: False for key in said if key.startswith("pooling_mode")}
    key = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}[pooling]
    (folder / "1_Pooling/config.json").write_text(json.dumps({**said, **modes, key: True}))
    some = samples[-12:]  # the one that is cut among them
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts_of(some), show_progress_bar=False)
    ours = vectors_of_samples(SentenceEncoder(ModelChoice(str(folder))), Embed(), some)
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.fixture(scope="module")
def want(samples: Samples) -> list[list[float]]:
    """The samples' vectors by the slow reference."""
    tokenizer = LanguageModel(ModelChoice("tiny")).tokenizer
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    return [position_weighted(plain, one.ids.tolist()) for one in encode(tokenizer, samples, 512)]


@pytest.mark.parametrize("batch_tokens", [1, 300, 5000])
def test_embed_lm_equals_the_slow_reference(samples: Samples, want: list[list[float]], batch_tokens: int) -> None:
    model = LanguageModel(ModelChoice("tiny", batch_tokens=batch_tokens))
    assert np.abs(vectors_of_samples(model, EmbedLm(), samples) - want).max() < 1e-5


def test_the_flops_of_an_encoder_are_those_that_torch_counts(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    model.pooler = None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(3, 50, dtype=torch.long))
    assert abs(forward_flops(model, 3, 50, 0) / counter.get_total_flops() - 1) < 0.05


@pytest.mark.parametrize("aggregate", ["mean", "max", "subtask_max"])
def test_nearness_equals_a_loop_over_pairs(aggregate: Any) -> None:
    rng = np.random.default_rng(0)
    pool, target = rng.normal(size=(30, 8)), rng.normal(size=(9, 8))
    subtasks = [str(i % 3) for i in range(9)]
    batch = Vectors.of(pool)
    found = Anchors.of(Vectors.of(target, subtasks=subtasks), aggregate).nearness(batch)
    for x, score in zip(pool, found["score"], strict=True):
        each = [float(x @ v / np.linalg.norm(x) / np.linalg.norm(v)) for v in target]
        by_task = [np.mean([c for c, s in zip(each, subtasks, strict=True) if s == task]) for task in "012"]
        want = {"mean": np.mean(each), "max": max(each), "subtask_max": max(by_task)}[aggregate]
        assert score == pytest.approx(want, abs=1e-12)
    if aggregate != "max":
        kept = Anchors.of(Vectors.of(target, subtasks=subtasks), aggregate, keep_subtasks=True).nearness(batch)
        assert np.allclose(kept["score"], found["score"]) and sorted(kept["subtasks"]) == ["0", "1", "2"]


def test_a_vector_that_is_none_has_a_reason_and_comes_back_from_a_table_so() -> None:
    raw = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 0.0]], np.float32)
    import pyarrow as pa

    stored = vectors_of(vector_table(pa.array(list("abcd")), {"vector": raw, "error": ["", "", "", "is none"]}))
    assert stored.error.tolist() == ["", *["its vector is zero or not finite"] * 2, "is none"]
    assert stored.norm[0] == 5.0 and np.isnan(stored.norm[1:]).all() and stored.unit.dtype == np.float16
    assert np.abs(stored.unit[0] - [0.6, 0.8]).max() < 1e-3 and not stored.unit[1:].any()
    scores = Anchors.of(Vectors.of(raw[:1]), "mean").nearness(stored)["score"]
    assert scores[0] == pytest.approx(1.0, abs=1e-3) and np.isnan(scores[1:]).all()
    with pytest.raises(CurateError, match="no example of the target has a vector"):
        Anchors.of(stored.take(np.array([1, 2])), "mean")


# --- encoders that will not do ---------------------------------------------------------------------------


def test_what_is_wrong_with_an_encoder_is_said(minilm: Path, tmp_path: Path, school_ws: Workspace, cli: Any) -> None:
    done = cli("score", "embed", "--model", NARROW, ws=school_ws)
    assert done.returncode == 2 and "is no sentence encoder (it has no modules.json" in done.stderr
    done = cli("score", "embed", "--set", "model.context=9999", "--model", "minilm", ws=school_ws)
    assert done.returncode == 2 and "more than the 512 tokens" in done.stderr
    assert cli("score", "embed", ws=school_ws).returncode == 0  # what failed before stands in nobody's way
    folder = Path(shutil.copytree(minilm, tmp_path / "encoder"))
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(CurateError, match="has the module Dense"):
        SentenceEncoder(ModelChoice(str(folder)))
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(CurateError, match="has no module Pooling"):
        SentenceEncoder(ModelChoice(str(folder)))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    with pytest.raises(CurateError, match="puts a prompt before every text"):
        SentenceEncoder(ModelChoice(str(folder)))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(CurateError, match="lower-cases its texts itself"):
        SentenceEncoder(ModelChoice(str(folder)))
    with pytest.raises(CurateError, match="more than the 512 tokens"):
        SentenceEncoder(ModelChoice(str(minilm), context=600))


def test_a_text_too_long_for_an_encoder_is_cut_and_counted_or_refused(minilm: Path) -> None:
    given = [{"text": "river " * 400, "messages": None}, {"text": "  ", "messages": None}]
    step = {"x": Embed().vectors()}
    found, usage = score_samples({"encoder": SentenceEncoder(ModelChoice(str(minilm)))}, given, step)
    assert usage.cut == 1 and found["x"]["error"].tolist() == ["", "has no text"]
    strict = SentenceEncoder(ModelChoice(str(minilm), too_long="refuse"))
    found, usage = score_samples({"encoder": strict}, given, step)
    assert usage.cut == 0 and "more than the context of 256" in found["x"]["error"][0]


def test_a_bare_model_is_the_base_and_the_encoder_stays_the_usual_one(minilm: Path, school_ws: Workspace) -> None:
    curate.score(school_ws, Nll(), Embed(), EmbedLm(), models=NARROW)
    made = {n: table_state(school_ws, "vectors", n).recipe.models for n in school_ws.vectors_names()}
    assert {n: {r: m.name for r, m in models.items()} for n, models in made.items()} == {
        "embed": {"encoder": "minilm"},
        "embed_lm": {"base": NARROW},
    }
    passes = [(r["name"], r["samples"]) for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert sorted(passes) == [("embed", 200), ("nll, embed_lm", 200)]
