"""Models: a shared pass and its batches against a slow reference."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from curate.errors import CurateError
from curate.kinds.vectors import Vectors
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.rho import Rho
from curate.models.choice import TINY, ModelChoice
from curate.models.flops import forward_flops
from curate.models.forward import by_length, score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode
from tests.oracles.language_model import ifd, position_weighted, token_scores
from tests.support.models import METHODS, chat, rewritten, scored
from tests.support.narrow import NARROW

# --- against the slow reference --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 150, 4000])
def test_the_scores_of_a_pass_equal_the_slow_reference(samples: list[Any], batch_tokens: int) -> None:
    model = LanguageModel(ModelChoice(NARROW, batch_tokens=batch_tokens))
    plain = AutoModelForCausalLM.from_pretrained(NARROW, dtype=torch.float64).eval()
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
def test_ifd_and_rho_equal_the_slow_reference(samples: list[Any], batch_tokens: int, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NARROW, tmp_path / "model"))
    rewritten(copy, lambda w: {k: v * 0.9 if "mlp" in k else v for k, v in w.items()})
    model, other = (LanguageModel(ModelChoice(str(p), batch_tokens=batch_tokens)) for p in (NARROW, copy))
    plain, reference = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64).eval() for p in (NARROW, copy))
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


FLOAT32 = 3e-5  # what rounding in 30 layers comes to; in which order sums are taken is the processor's


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, pytest.param(24, marks=pytest.mark.repeated)])
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
            assert columns[name][found][i] == pytest.approx(want[name], rel=FLOAT32), name
        ratio = ifd(slow, one.ids.tolist(), one.supervised.tolist(), begin, given=want["nll"])
        assert columns["ifd"]["score"][i] == pytest.approx(ratio, rel=FLOAT32)
        assert np.abs(vectors[i] - position_weighted(slow, one.ids.tolist())).max() < 1e-5
    half = tmp_path / "half.gguf"
    half.write_bytes(smollm2.read_bytes()[: smollm2.stat().st_size // 2])
    with pytest.raises(CurateError, match="half.gguf"):
        load(ModelChoice(str(half)))


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
