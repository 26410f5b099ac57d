"""FLOPs of training are those that are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.flops import TRAINING, TrainingFlops, paper_flops
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings


def small(width: int, layers: int, tied: bool) -> Any:
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(("width", "layers", "tied"), [(64, 2, True), (128, 6, False)])
@pytest.mark.parametrize("length", [24, 200])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_flops_of_training_are_what_is_counted(
    width: int, layers: int, tied: bool, length: int, kind: str, processes: Any
) -> None:
    model = small(width, layers, tied)
    model.requires_grad_(True)
    if kind == "lora":
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        ).get_base_model()
    lm = LanguageModel(ModelChoice("tiny"), (model, load(ModelChoice("tiny"))[1]))
    examples = Examples.of(
        [Encoded(np.arange(length, dtype=np.int32) % 512, np.arange(length) > length // 2) for _ in range(3)]
    )
    settings = TrainSettings(lr=1e-4, batch_size=3, count_flops=True)
    (done,) = Trainer(lm, Data.of(examples), settings, Uniform(), processes).run()
    usage = done.usage["train"]
    assert usage.flops_counted and abs(usage.flops / usage.flops_counted - 1) < 0.05
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(input_ids=torch.zeros(3, length, dtype=torch.int64))
    from curate.models.flops import forward_flops

    assert abs(forward_flops(model, 3, length, 3 * length) / counter.get_total_flops() - 1) < 0.05


def test_flops_of_the_papers() -> None:
    """RegMix's published overhead: 512 proxies of a million parameters, a billion tokens each."""
    assert 512 * paper_flops(TRAINING, 1e6, 1, 1e9) == 3.072e18
    assert paper_flops(TRAINING, 10, 3) == 6 * 10 * 3 * 2048


def test_frozen_parts_have_no_weight_gradients_among_the_flops() -> None:
    model = small(64, 2, True)
    model.requires_grad_(True)
    whole = TrainingFlops(model).step(4, 64, 256)
    model.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    assert TrainingFlops(model).step(4, 64, 256) < 0.7 * whole
