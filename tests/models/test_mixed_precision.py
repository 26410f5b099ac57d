"""Products in bfloat16: the pass with products in float32 is the model's own, and rounding costs what is stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.methods.scores.el2n import El2n
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.nll import Nll
from curate.models import mixed_precision
from curate.models.choice import ModelChoice
from curate.models.mixed_precision import MixedBody, MixedHead, refuse_unknown
from curate.store.workspace import Workspace
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
    refuse_unknown(name, model.config)
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


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GPT2Config(n_layer=1, n_embd=8, n_head=1), "a model of type gpt2"),
        (MistralConfig(**SIZES, sliding_window=16), "a sliding window"),
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1), "a sliding window"),
    ],
)
def test_another_layout_is_refused(config: Any, said: str) -> None:
    with pytest.raises(CurateError, match=rf"^m: model.dtype=mixed_bfloat16 does not know.*{said}.*=bfloat16, or"):
        refuse_unknown("m", config)


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


def test_gradients_and_training_are_refused(handful_ws: Workspace, tmp_path: Path) -> None:
    choice = ModelChoice(NARROW, dtype="mixed_bfloat16", device="cpu")
    rows = tmp_path / "t.jsonl"
    rows.write_text('{"text": "one two three"}\n')
    curate.target(handful_ws, "t", rows)
    with pytest.raises(CurateError, match="is for forward passes of language models, not for gradients"):
        curate.score(handful_ws, Graddot(), target="t", models=choice)
