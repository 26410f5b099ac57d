"""Products in bfloat16: the pass with products in float32 is the model's own, and rounding costs what is stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.kinds import registry
from curate.kinds.vectors import Vectors
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed import Embed
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.methods.weightings.uniform import Uniform
from curate.models import mixed_precision
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.mixed_precision import MixedBody, MixedHead, is_known
from curate.models.sentence_encoder import SentenceEncoder
from curate.runs.config import TrainingSpec
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.objective import Objective
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.support.narrow import NARROW

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
STRETCHED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "stretched": LlamaConfig(**SIZES, rope_parameters=STRETCHED),
    "all heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, rms_norm_eps=1e-2),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():  # norms and biases that do something
        weight.normal_(std=0.1) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_with_products_in_float32_it_is_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(CONFIGS[name])
    assert is_known(model.config)
    ids, mask = torch.randint(0, 300, (3, 70)), torch.ones(3, 70).long()
    mask[1, 9:] = 0
    kept = mask.bool()
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[kept]
        found = MixedBody(model, torch.float32)(ids).last_hidden_state[kept]
        rounded = MixedBody(model)(ids).last_hidden_state[kept]
        torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-5)
        error = ((rounded - states).norm() / states.norm()).item()
        assert 1e-4 < error < 0.02  # bfloat16 has 8 bits: 0.004 for each of some products in a row
        log_p = torch.log_softmax(model.get_output_embeddings()(states), -1)
        labels = ids[kept]
        monkeypatch.setattr(mixed_precision, "_ROWS", 50)
        head = MixedHead(model.get_output_embeddings(), torch.float32)
        pieces = [(piece.clone(), own) for piece, own in head.log_p(states, labels)]
        assert len(pieces) > 1
        torch.testing.assert_close(torch.cat([piece for piece, _ in pieces]), log_p, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([own for _, own in pieces]), labels)


def test_a_batch_after_a_larger_one_has_nothing_of_it() -> None:
    """Its memory is used again."""
    model = made(CONFIGS["llama"])
    body, ids = MixedBody(model), torch.randint(0, 300, (2, 11))
    with torch.inference_mode():
        first = body(ids).last_hidden_state.clone()
        body(torch.randint(0, 300, (4, 40)))
        assert torch.equal(body(ids).last_hidden_state, first)


OTHERS = {
    "gpt2": GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=300, n_positions=256),
    "gemma": GemmaConfig(**SIZES, head_dim=16),
    "a window": MistralConfig(**SIZES, sliding_window=16),
    "windows in some": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_layout_has_rounded_products_too(name: str) -> None:
    model = made(OTHERS[name])
    assert not is_known(model.config)
    ids = torch.randint(0, 300, (3, 70))
    valid = torch.ones(3, 70, dtype=torch.bool)
    exact, mixed = (
        LanguageModel(
            ModelChoice(name, dtype=dtype, device="cpu", context=70), (model, SimpleNamespace(model_max_length=256))
        )
        for dtype in ("float32", "mixed_bfloat16")
    )
    with torch.inference_mode():
        states = exact._states(ids, valid, True)[0]
        rounded = mixed._states(ids, valid, True)[0]
        labels = ids.flatten()
        (log_p, _), (wanted, _) = (next(m._log_p(states.flatten(0, 1), labels, True)) for m in (mixed, exact))
        torch.testing.assert_close(log_p, wanted[: len(log_p)], rtol=0.05, atol=0.05)
    assert rounded.dtype == torch.float32
    assert 1e-4 < ((rounded - states).norm() / states.norm()).item() < 0.02


def test_scores_are_those_of_float32_up_to_rounding_and_columns_do_not_mix(handful_ws: Workspace) -> None:
    choice = ModelChoice(NARROW, dtype="mixed_bfloat16", device="cpu")
    exact = ModelChoice(NARROW, dtype="float32", device="cpu")
    methods = [Nll(), Entropy(), El2n()]
    curate.score(handful_ws, *methods, models=choice, names={m.name: f"{m.name}_mixed" for m in methods})
    curate.score(handful_ws, *methods, models=exact)
    for name in ("nll", "entropy", "el2n"):
        (row,) = curate.sql(
            handful_ws,
            f"SELECT max(abs({name} - {name}_mixed)) AS most, avg({name}) AS mean, count({name}_mixed) AS n, "
            f"count({name}) AS m FROM samples",
        )
        assert 0 < row["most"] < 0.005 * abs(row["mean"]) and row["n"] == row["m"]
    with pytest.raises(CurateError, match=r"another dtype.*--fresh"):
        curate.score(handful_ws, Nll(), models=choice)


APART = {"tracin": "a sum of graddot over checkpoints", "embed": "by an encoder, below"}


def test_scores_that_say_so_rank_as_in_float32(few_ws: Workspace) -> None:
    """Of gradients of all parameters and of LoRA's; LESS's warm-up is a training with such products, too."""
    named = {name for name in registry.names("score") if registry.find("score", name).ranks_in_bfloat16} - set(APART)
    cheap: dict[str, dict[str, Any]] = {
        "less": {"warmup": 0.5, "epochs": 2.0, "dim": 512, "lora_r": 8}, "ifd": {"above_one": "keep"},
    }  # fmt: skip
    methods = [registry.make("score", name, cheap.get(name, {})) for name in sorted(named)]
    for dtype in ("float32", "mixed_bfloat16"):
        names: dict[str, Any] = {
            "names": {m.name: f"{m.name}_{dtype}" for m in methods},
            "vectors": {m.name: f"{m.name}_{dtype}_vectors" for m in methods if m.vectors()},
        }
        curate.score(few_ws, *methods, models=ModelChoice(NARROW, dtype=dtype, device="cpu"), target="facts", **names)
    table = curate.sql(few_ws, "SELECT * FROM samples").to_polars()
    for name in named:
        exact, mixed = (table[f"{name}_{dtype}"].to_numpy() for dtype in ("float32", "mixed_bfloat16"))
        assert np.array_equal(np.isnan(exact), np.isnan(mixed))
        exact, mixed = exact[~np.isnan(exact)], mixed[~np.isnan(mixed)]
        assert len(exact) > 15 and not np.array_equal(exact, mixed)
        assert spearmanr(exact, mixed).statistic > 0.99, name


def test_a_training_keeps_its_weights_in_float32_and_says_its_precision(sums_ws: Workspace) -> None:
    losses = {}
    for name, dtype, settings in (
        ("exact", "float32", {}),
        ("mixed", "mixed_bfloat16", {}),
        ("chosen", "float32", {"precision": "bfloat16"}),
        ("refused", "mixed_bfloat16", {"precision": "float32"}),
    ):
        training = TrainSettings(steps=3, batch_size=8, lr=1e-3, **settings)
        model = ModelChoice(NARROW, dtype=dtype, device="cpu")
        curate.train(sums_ws, name, TrainingSpec(model, Uniform(), training))
        recipe = Run(sums_ws, name).require_recipe()
        assert recipe.model.dtype == "float32" and (recipe.settings["precision"] == "bfloat16") == (
            name in ("mixed", "chosen")
        )
        losses[name] = [row["loss"] for row in curate.sql(sums_ws, f"SELECT loss FROM metrics WHERE run = '{name}'")]
    assert losses["mixed"] == losses["chosen"] != losses["exact"] == losses["refused"]
    assert losses["mixed"] == pytest.approx(losses["exact"], rel=0.01)


def test_an_encoder_s_products_are_rounded_and_its_vectors_hardly_change(handful_ws: Workspace, minilm: Path) -> None:
    vectors = {}
    for dtype in ("float32", "mixed_bfloat16"):
        encoder = SentenceEncoder(ModelChoice(str(minilm), dtype=dtype, device="cpu"))
        texts = [{"text": f"town {i} of the north", "messages": None} for i in range(9)]
        columns, _ = score_samples({"encoder": encoder}, texts, {"embed": Embed().vectors()})
        vectors[dtype] = Vectors.of(columns["embed"]["vector"]).unit
    cosines = (vectors["float32"] * vectors["mixed_bfloat16"]).sum(1)
    assert cosines.min() > 0.999 and not np.array_equal(*vectors.values())


def test_frozen_weights_in_bfloat16_change_nothing(sums_ws: Workspace) -> None:
    """Autocast rounds a weight to the same number at every product."""
    settings = TrainSettings(batch_size=8, lora_r=4, precision="bfloat16", lora_targets="q_proj,v_proj")
    losses, gradients = [], []
    for rounded in (True, False):
        made = trainable(ModelChoice(NARROW, device="cpu"), settings).model
        frozen = [
            m.weight for m in made.model.modules() if isinstance(m, torch.nn.Linear) and not m.weight.requires_grad
        ]
        assert {w.dtype for w in frozen[:-1]} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in made.model.parameters() if p.requires_grad)
        assert made.model.get_input_embeddings().weight.dtype == torch.float32
        if not rounded:
            whole = LanguageModel(ModelChoice(NARROW, device="cpu")).model
            names = dict(whole.named_parameters())
            for name, parameter in made.model.named_parameters():
                if parameter.dtype == torch.bfloat16:
                    parameter.data = names[name.replace(".base_layer", "")].data
        torch.manual_seed(0)
        ids = torch.randint(0, 300, (3, 20))
        with Objective(made, True).precision():
            states = made.body(input_ids=ids, use_cache=False).last_hidden_state
        loss = states.float().pow(2).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in made.model.parameters() if p.grad is not None])
    assert losses[0] == losses[1] and all(map(torch.equal, *gradients))
    training = TrainingSpec(ModelChoice(NARROW), Uniform(), replace(settings, steps=2))
    done = curate.train(sums_ws, "lora", training)
    assert done.steps == 2 and done.loss is not None and not np.isnan(done.loss)
