"""Small models of several families, samples in tokens, and their gradients to compare with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from curate.gradients.backward import Backward
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded
from tests.oracles import gradients as slow

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama tied, with padding that also stands in texts": LlamaConfig(
        **SMALL, tie_word_embeddings=True, pad_token_id=7
    ),
    "llama": LlamaConfig(**SMALL),
    "llama tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2, with biases": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gpt2, with places and layer norms": GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=64),
}
LORA = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}


def samples(seed: int = 0) -> list[Encoded]:
    """Seven samples of 5 to 30 tokens, some of them supervised."""
    rng, found = np.random.default_rng(seed), []
    for length in (12, 5, 30, 7, 19, 12, 26):
        supervised = rng.random(length) < 0.6
        supervised[0], supervised[-1] = False, True
        found.append(Encoded(rng.integers(1, 61, length).astype(np.int32), supervised))
    return found


def model_of(config: Any, lora: bool, dtype: Any = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype).eval()
    for parameter in model.parameters():  # norms are not 1 nor biases 0, once trained
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if lora:
        import peft  # takes seconds

        adapted: Any = peft.get_peft_model(
            model, peft.LoraConfig(target_modules="all-linear", fan_in_fan_out=isinstance(config, GPT2Config), **LORA)
        )
        model = adapted.get_base_model().to(dtype)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
    return LanguageModel(ModelChoice("tiny", device="cpu"), (model, load(ModelChoice("tiny"))[1]))


def backward_of(config: Any, lora: bool = False, dtype: Any = torch.float64) -> Backward:
    lm = model_of(config, lora, dtype)
    lm.model.requires_grad_(not lora)
    for name, parameter in lm.model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    return Backward.of(lm)


def tokens(one: Encoded) -> slow.Tokens:
    return one.ids.tolist(), one.supervised.tolist()
