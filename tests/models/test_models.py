"""Models: loading, what is supervised, batches, a shared pass; against a slow reference, and on purpose broken."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.kinds.vectors import Vectors
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.length import Length
from curate.methods.scores.nll import Nll
from curate.methods.scores.rho import Rho
from curate.models.choice import TINY, ModelChoice, resolve
from curate.models.flops import forward_flops
from curate.models.forward import by_length, score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode, render
from curate.store.workspace import Workspace
from tests.conftest import ROOT, SAMPLE, qa, run_and_kill, write_jsonl
from tests.oracles.language_model import ifd, position_weighted, token_scores
from tests.support.templates import FAMILIES, FORGETFUL, MARKED

METHODS = (Nll(), Entropy(), El2n())


def chat(*turns: str) -> dict[str, Any]:
    """A sample of turns, the user's first."""
    roles = ("user", "assistant")
    return {"text": None, "messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


def raw(text: str) -> dict[str, Any]:
    return {"text": text, "messages": None}


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return LanguageModel(ModelChoice("tiny"))


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    """64 samples of the corpus, chats and raw texts, short and long."""
    lines = (SAMPLE / "pool/school.jsonl").read_text().splitlines()[:60]
    found = [chat(r["question"], r["answer"]) for r in map(json.loads, lines)]
    found += [raw(r["question"] + " " + r["answer"]) for r in map(json.loads, lines[:3])]
    return [*found, chat("One?", "One.", "And two, three, four?", "Two. " * 60)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny model in a folder of its own, to be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def scored(model: LanguageModel, samples: list[dict[str, Any]]) -> dict[str, Any]:
    columns, _ = score_samples({"base": model}, samples, {m.name: m.passes(None)[0] for m in METHODS})
    return columns


# --- against the slow reference --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 150, 4000])
def test_the_scores_of_a_pass_equal_the_slow_reference(samples: list[Any], batch_tokens: int) -> None:
    model = LanguageModel(ModelChoice("tiny", batch_tokens=batch_tokens))
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    encoded = encode(model.tokenizer, samples, 512)
    wanted = [token_scores(plain, one.ids.tolist(), one.supervised.tolist()) for one in encoded]
    order = random.Random(batch_tokens).sample(range(len(samples)), len(samples))
    columns = scored(model, [samples[i] for i in order])
    for name, column in (("nll", "nll"), ("entropy", "score"), ("el2n", "score")):
        want = np.array([wanted[i][name] for i in order])
        assert np.abs(columns[name][column] - want).max() < 1e-5, name
    assert columns["nll"]["tokens"].tolist() == [wanted[i]["tokens"] for i in order]
    assert np.allclose(columns["nll"]["ppl"], np.exp(-columns["nll"]["score"]))


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_ifd_and_rho_equal_the_slow_reference(samples: list[Any], batch_tokens: int, copy: Path) -> None:
    rewritten(copy, lambda w: {k: v * 0.9 if "mlp" in k else v for k, v in w.items()})
    model, other = (LanguageModel(ModelChoice(str(p), batch_tokens=batch_tokens)) for p in (TINY, copy))
    plain, reference = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64).eval() for p in (TINY, copy))
    methods = (Ifd(above_one="keep"), Ifd(of="ppl"), Rho())
    passes = {str(i): m.passes(None)[0] for i, m in enumerate(methods)}
    columns, _ = score_samples({"base": model, "reference": other}, samples, passes)
    for i, one in enumerate(encode(model.tokenizer, samples, 512)):
        ids, supervised = one.ids.tolist(), one.supervised.tolist()
        base, known = (token_scores(m, ids, supervised)["nll"] for m in (plain, reference))
        assert abs(columns["2"]["score"][i] - (base - known)) < 1e-5
        if samples[i]["messages"] is None:
            assert "raw text" in columns["0"]["error"][i] and np.isnan(columns["0"]["score"][i])
            continue
        want = ifd(plain, ids, supervised, model.tokenizer.bos_token_id)
        assert abs(columns["0"]["score"][i] - want) < 1e-5 * max(1, want)
        ratio = np.exp(columns["0"]["given"][i] - columns["0"]["alone"][i])
        assert abs(columns["1"]["ratio"][i] - ratio) < 1e-12
        assert np.isnan(columns["1"]["score"][i]) == (ratio > 1) == bool(columns["1"]["error"][i])


def test_what_goes_the_same_way_goes_once(tiny: LanguageModel, samples: list[Any], monkeypatch: Any) -> None:
    seen, batch = [], LanguageModel._batch
    monkeypatch.setattr(
        LanguageModel, "_batch", lambda s, e, requests: seen.append((len(e), len(requests))) or batch(s, e, requests)
    )
    passes = {m.name: m.passes(None)[0] for m in (*METHODS, Ifd(), Rho())}
    score_samples({"base": tiny, "reference": tiny}, samples, passes)
    # All but the raw texts go twice: whole, for nll, entropy, el2n, ifd and both of rho's; and the answer alone.
    assert sum(n for n, requests in seen if requests == 6) == len(samples)
    assert sum(n for n, requests in seen if requests == 1) == sum(s["messages"] is not None for s in samples)


def test_a_head_that_is_no_plain_product_goes_through_the_models_own(tiny: LanguageModel, samples: list[Any]) -> None:
    plain = scored(tiny, samples)
    capped = LanguageModel(ModelChoice("tiny"))
    assert capped.plain_head
    capped.plain_head = False  # as for a model that caps or scales its logits
    for name, columns in scored(capped, samples).items():
        assert np.abs(columns["score"] - plain[name]["score"]).max() < 1e-5


def test_a_model_that_scales_its_logits_is_noticed(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    for path in TINY.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    shutil.copy(TINY / "chat_template.jinja", tmp_path)
    model = LanguageModel(ModelChoice(str(tmp_path)))
    assert not model.plain_head
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    sample = chat("What is it?", "It is that.")
    (one,) = encode(model.tokenizer, [sample], 512)
    want = token_scores(plain, one.ids.tolist(), one.supervised.tolist())
    assert abs(scored(model, [sample])["nll"]["nll"][0] - want["nll"]) < 1e-5


@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 64)])
def test_the_flops_are_those_that_torch_counts(batch: int, length: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(batch, length, dtype=torch.long))
    assert abs(forward_flops(model, batch, length, batch * length) / counter.get_total_flops() - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [64])
def test_a_real_model_from_a_gguf_file_equals_the_slow_reference(
    smollm2: Path, shared: Path, tmp_path: Path, n: int
) -> None:
    lines = (shared / "pool/gsm8k.jsonl").read_text().strip().split("\n")
    real = sorted((chat(r["question"], r["answer"]) for r in map(json.loads, lines)), key=lambda s: len(str(s)))[:n]
    model = LanguageModel(ModelChoice(str(smollm2), batch_tokens=1000))
    methods = (*METHODS, Ifd(above_one="keep"))
    passes = {m.name: m.passes(None)[0] for m in methods} | {"embed_lm": EmbedLm().vectors()}
    columns, _ = score_samples({"base": model}, real, passes)
    vectors = Vectors.of(columns["embed_lm"]["vector"]).unit
    slow, begin = model.model.double(), model.tokenizer.bos_token_id
    for i, one in enumerate(encode(model.tokenizer, real, model.context)):
        assert model.tokenizer.decode(one.ids[one.supervised]) == real[i]["messages"][1]["content"] + "<|im_end|>"
        want = token_scores(slow, one.ids.tolist(), one.supervised.tolist())
        for name, found in (("nll", "nll"), ("entropy", "score"), ("el2n", "score")):
            assert columns[name][found][i] == pytest.approx(want[name], rel=1e-5), name
        ratio = ifd(slow, one.ids.tolist(), one.supervised.tolist(), begin)
        assert columns["ifd"]["score"][i] == pytest.approx(ratio, rel=1e-5)
        assert np.abs(vectors[i] - position_weighted(slow, one.ids.tolist())).max() < 1e-5
    half = tmp_path / "half.gguf"
    half.write_bytes(smollm2.read_bytes()[: smollm2.stat().st_size // 2])
    with pytest.raises(CurateError, match="half.gguf"):
        load(ModelChoice(str(half)))


# --- what is supervised ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistants_turns_are_supervised_and_nothing_else(tiny: LanguageModel, family: str) -> None:
    template, end = FAMILIES[family]
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = template
    # The answers stand in the questions too, and are such that a search of the text would find them elsewhere.
    talk = chat("say user, or assistant", "assistant", "assistant, or [/INST] user?", "say user")
    text, spans = render(tokenizer, talk["messages"])
    assert [text[a:b].strip() for a, b in spans] == [f"assistant{end}", f"say user{end}"]
    (one,) = encode(tokenizer, [talk], 512)
    assert not one.error
    said = tokenizer.decode(one.ids[one.supervised])
    assert said.replace(" ", "") == f"assistant{end}sayuser{end}".replace(" ", "")


def test_a_template_that_marks_the_assistants_words_is_believed(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = MARKED
    text, spans = render(tokenizer, chat("a", "bc", "d", "e")["messages"])
    assert text == "U:a\nA:bc!\nU:d\nA:e!\n" and [text[a:b] for a, b in spans] == ["bc!", "e!"]


def test_a_template_that_takes_a_turn_back_and_one_that_refuses_give_a_reason(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = FORGETFUL
    one_turn, two_turns = encode(tokenizer, [chat("a", "b"), chat("a", "b", "c", "d")], 512)
    assert not one_turn.error and "renders a turn differently when more messages follow" in two_turns.error
    tokenizer.chat_template = FAMILIES["mistral"][0]
    system = {"text": None, "messages": [{"role": "system", "content": "x"}, *chat("a", "b")["messages"]]}
    (refused,) = encode(tokenizer, [system], 512)
    assert "only user and assistant here" in refused.error


def test_a_model_without_a_template_gets_a_plain_one(tiny: LanguageModel) -> None:
    tokenizer = load(ModelChoice("tiny"))[1]
    tokenizer.chat_template = None
    text, spans = render(tokenizer, chat("a", "b", "c", "d")["messages"])
    assert text == "<|begin|>a\nb<|end|>\nc\nd<|end|>"
    assert [text[a:b] for a, b in spans] == ["b<|end|>", "d<|end|>"]


def test_what_has_nothing_to_score_has_a_reason_and_leaves_the_others_alone(tiny: LanguageModel) -> None:
    long = chat("long", "x " * 2000)
    given = [chat("a?", "b."), chat("only a question"), raw(""), long]
    columns = scored(tiny, given)["nll"]
    assert "no assistant's turn" in columns["error"][1] and "or no text" in columns["error"][2]
    assert np.isnan(columns["score"][[1, 2]]).all()
    alone = scored(tiny, given[:1])["nll"]
    assert abs(alone["score"][0] - columns["score"][0]) < 1e-5


def test_a_sample_over_the_context_is_cut_and_counted_or_refused(tiny: LanguageModel) -> None:
    long, short = chat("long", "x " * 2000), chat("a?", "b.")
    passes = {"nll": Nll().passes(None)[0]}
    columns, usage = score_samples({"base": tiny}, [long, short], passes)
    assert usage.cut == 1 and np.isfinite(columns["nll"]["score"]).all()
    refusing = LanguageModel(ModelChoice("tiny", too_long="refuse", context=100))
    columns, usage = score_samples({"base": refusing}, [long, short], passes)
    assert "more than the context of 100" in columns["nll"]["error"][0] and usage.cut == 0
    with pytest.raises(CurateError, match="more than the 512 tokens"):
        LanguageModel(ModelChoice("tiny", context=1000))


# --- batches and memory ----------------------------------------------------------------------------------


def test_batches_hold_every_sample_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(by_length(lengths, 1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 1000 for b in batches)
    assert sum(len(b) * lengths[b].max() for b in batches) < 1.05 * lengths.sum()


def test_where_memory_runs_out_the_batch_is_halved_and_that_is_remembered(
    samples: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, model = scored(LanguageModel(ModelChoice("tiny")), samples), LanguageModel(ModelChoice("tiny"))
    batch, sizes = LanguageModel._batch, []

    def small(self: Any, encoded: Any, requests: Any) -> Any:
        sizes.append(max(len(one.ids) for one in encoded) * len(encoded))
        if sizes[-1] > 300:
            raise torch.OutOfMemoryError("out of memory")
        return batch(self, encoded, requests)

    monkeypatch.setattr(LanguageModel, "_batch", small)
    again = scored(model, samples)
    first_fit = next(i for i, n in enumerate(sizes) if n <= 300)
    lengths = [len(one.ids) for one in encode(model.tokenizer, samples, 512)]
    too_long = [i for i, n in enumerate(lengths) if n > 300]
    assert len(too_long) == 0 or all("more memory than there is" in again["nll"]["error"][i] for i in too_long)
    fine = [i for i in range(len(samples)) if i not in too_long]
    assert np.abs(again["nll"]["score"][fine] - calm["nll"]["score"][fine]).max() < 1e-5
    assert max(sizes[first_fit:]) <= 300


# --- loading ---------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_model_is_said(copy: Path, tmp_path: Path) -> None:
    def said(name: Any, **settings: Any) -> str:
        with pytest.raises(CurateError) as caught:
            load(ModelChoice(str(name), **settings))
        return str(caught.value)

    assert "did you mean 'tiny'" in said("tinny")
    assert "there is no such model" in said(tmp_path / "none.gguf")
    assert "has no config.json" in said(tmp_path)
    rewritten(copy, lambda w: {k: torch.full_like(v, float("nan")) if "norm" in k else v for k, v in w.items()})
    assert "not all finite" in said(copy)
    (copy / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "has no tokenizer" in said(copy)
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    assert "has no weights" in said(copy)
    torch.save(weights, copy / "pytorch_model.bin")
    assert "can run any code" in said(copy) and "model.allow_pickle=true" in said(copy)


def test_a_vocabulary_that_does_not_match_and_a_file_cut_short_are_said(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    rewritten(copy, lambda w: {k: v[:1000].clone() if v.shape[0] == 1024 else v for k, v in w.items()})
    with pytest.raises(CurateError, match="1024 tokens and the model only 1000"):
        load(ModelChoice(str(copy)))
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CurateError, match="cannot be loaded as a causal language model"):
        load(ModelChoice(str(copy)))


def test_a_pickled_checkpoint_is_loaded_where_it_is_allowed(
    copy: Path, samples: list[Any], tiny: LanguageModel
) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    model = LanguageModel(ModelChoice(str(copy), allow_pickle=True))
    assert np.array_equal(scored(model, samples)["nll"]["score"], scored(tiny, samples)["nll"]["score"])


def test_a_hub_id_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CurateError, match="could not be fetched from the hub"):
        resolve("nobody/no-such-model")


# --- through the engine ----------------------------------------------------------------------------------


@pytest.fixture
def small_ws(ws: Workspace, tmp_path: Path) -> Workspace:
    lines = (SAMPLE / "pool/school.jsonl").read_text().splitlines()[:200]
    curate.ingest(ws, [write_jsonl(tmp_path / "few.jsonl", [json.loads(x) for x in lines])], shard_bytes=8000)
    return ws


def test_scores_that_share_a_pass_go_through_the_model_once(
    small_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, p: seen.append(len(e)) or batch(s, e, p))
    results = curate.score(small_ws, *METHODS, models="tiny")
    assert [r.rows for r in results] == [200] * 3 and sum(seen) == 200
    (row,) = [r for r in curate.ledger(small_ws) if r["stage"] == "score"]
    assert row["name"] == "nll, entropy, el2n" and row["samples"] == 200 and row["flops"] > 0
    (whole,) = curate.sql(small_ws, "SELECT * FROM ledger WHERE stage = 'score'")
    assert whole["tokens"] <= whole["padded_tokens"] < 1.2 * whole["tokens"] and whole["model"] == "tiny"
    assert whole["flops_paper"] == 2.0 * whole["n_params"] * whole["samples"] * 2048 and whole["device"] == "cpu"
    together = curate.sql(small_ws, "SELECT nll, entropy, el2n FROM samples ORDER BY row")
    for method in METHODS:
        curate.score(small_ws, method, names={method.name: f"{method.name}_alone"}, models="tiny")
    alone = curate.sql(
        small_ws, "SELECT nll_alone nll, entropy_alone entropy, el2n_alone el2n FROM samples ORDER BY row"
    )
    assert together == alone


def test_text_and_model_scores_go_in_one_command_each_its_own_way(small_ws: Workspace, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "val.jsonl", [{"question": "How many plums?", "answer": "4 plums."}])
    curate.target(small_ws, "plums", str(tmp_path / "val.jsonl"))
    methods = (Length(), Nll(), Bm25(), Entropy())
    results = curate.score(small_ws, *methods, target="plums", models="tiny")
    assert [(r.name, r.computed) for r in results] == [(n, 200) for n in ("length", "nll", "bm25_plums", "entropy")]
    told = [(r["name"], r["phase"]) for r in curate.ledger(small_ws) if r["stage"] == "score"]
    assert ("nll, entropy", "forward") in told and ("length", "count") in told
    with pytest.raises(CurateError, match="the method nll is named twice"):
        curate.score(small_ws, Nll(), Nll(), models="tiny")


def test_a_score_that_was_there_is_not_computed_again_beside_a_new_one(small_ws: Workspace) -> None:
    curate.score(small_ws, Nll(), models="tiny")
    first, second = curate.score(small_ws, Nll(), Entropy(), models="tiny")
    assert (first.computed, first.reused, second.computed) == (0, 200, 200)
    with pytest.raises(CurateError, match="another base model or another dtype of it"):
        curate.score(small_ws, Nll(), models=ModelChoice("tiny", dtype="bfloat16"))
    assert curate.verify(small_ws).damaged == []


def test_a_killed_pass_through_a_model_goes_on_where_it_stood(
    small_ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import curate
        from curate.methods.scores.entropy import Entropy
        from curate.methods.scores.nll import Nll
        from curate.tables import spec
        spec.unit_size = lambda models: 3000.0
        curate.score(curate.open_workspace(sys.argv[1]), Nll(), Entropy(), models="tiny")
    """
    query = "SELECT nll, entropy FROM samples ORDER BY row"
    monkeypatch.setattr("curate.tables.spec.unit_size", lambda models: 3000.0)
    calm = curate.open_workspace(shutil.copytree(small_ws.path, tmp_path / "calm"))
    curate.score(calm, Nll(), Entropy(), models="tiny")
    run_and_kill(code, str(small_ws.path), die_at=6)  # the second score's table of the third unit is not committed
    seen, batch = [], LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, requests: seen.append(len(e)) or batch(s, e, requests))
    results = curate.score(small_ws, Nll(), Entropy(), models="tiny")
    assert [r.rows for r in results] == [200, 200] and 0 < sum(seen) < 200
    for want, got in zip(curate.sql(calm, query), curate.sql(small_ws, query), strict=True):
        assert got == pytest.approx(want, abs=1e-5)
    opened = curate.open_workspace(small_ws.path)  # which enters the killed run's account
    (n,) = curate.sql(opened, "SELECT count(*) AS runs, sum(samples) >= 200 AS whole FROM ledger WHERE stage = 'score'")
    assert n == {"runs": 2, "whole": True}
    assert not list(small_ws.path.rglob("_units")) and not list(small_ws.path.rglob("*.tmp"))


def test_a_damaged_part_of_a_models_score_is_repaired(small_ws: Workspace) -> None:
    curate.score(small_ws, Nll(), models="tiny")
    before = curate.sql(small_ws, "SELECT nll FROM samples ORDER BY row")
    part = small_ws.score_folder("nll") / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-7])
    assert len(curate.verify(small_ws, repair=True).damaged) == 1
    assert curate.sql(small_ws, "SELECT nll FROM samples ORDER BY row") == before


def test_rho_takes_two_models_and_names_the_one_that_is_missing(small_ws: Workspace, cli: Any, copy: Path) -> None:
    done = cli("score", "rho", "--model", "tiny", ws=small_ws)
    assert done.returncode == 2 and "needs a model: add --model reference=MODEL" in done.stderr
    done = cli("score", "rho", "nll", "--model", "base=tiny", "--model", f"reference={copy}", ws=small_ws)
    assert done.returncode == 0, done.stderr
    assert curate.sql(small_ws, "SELECT max(abs(score)) AS most FROM rho") == [{"most": 0.0}]  # equal models


def test_the_command_line_takes_models_by_name_and_says_what_is_missing(small_ws: Workspace, cli: Any) -> None:
    done = cli("score", "nll", ws=small_ws)
    assert done.returncode == 2 and "needs a model: add --model MODEL" in done.stderr
    done = cli("score", "nll", "entropy", "--model", "tiny", "--set", "model.batch_tokens=500", ws=small_ws)
    assert done.returncode == 0 and "entropy: 200 samples scored now" in done.stdout, done.stderr
    assert done.stderr == ""
    done = cli("score", "el2n", "--model", "tiny", "--set", "model.batch=500", ws=small_ws)
    assert done.returncode == 2 and "the model has no setting 'batch'" in done.stderr


def test_models_and_their_scores_need_no_arrow_polars_duckdb_or_faiss() -> None:
    code = f"""
import sys
for name in ("pyarrow", "polars", "duckdb", "faiss", "orjson", "datasets", "cloudpickle"):
    sys.modules[name] = None
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.choice import ModelChoice
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.nll import Nll
from curate.methods.scores.rho import Rho
model = LanguageModel(ModelChoice({str(TINY)!r}))
passes = {{"nll": Nll().passes(None)[0]}}
columns, _ = score_samples({{"base": model}}, [{{"text": "a river", "messages": None}}], passes)
assert columns["nll"]["score"][0] < 0
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_flops_are_counted_beside_where_that_is_asked_for(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", qa(30))])
    curate.score(ws, Nll(), models=ModelChoice("tiny", count_flops=True))
    (row,) = curate.sql(ws, "SELECT flops, flops_counted, flops_paper FROM ledger WHERE stage = 'score'")
    assert row["flops_counted"] == pytest.approx(row["flops"], rel=0.05) and row["flops_paper"] > row["flops"]
