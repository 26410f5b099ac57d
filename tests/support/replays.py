"""Short trainings of a small transformer in float64, whose derivatives can be compared with finite differences."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.loop import Snapshot, Trainer
from curate.training.settings import TrainSettings

VOCABULARY = 48


class WideNorm(nn.Module):
    """Llama's norm in the type of its input; its own computes in float32, whose rounding differences would show."""

    def __init__(self, theirs: Any):
        super().__init__()
        self.weight, self.eps = theirs.weight, theirs.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@cache
def beginning(lora: int, tied: bool) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.3,
        )
    )  # fmt: skip
    model.requires_grad_(True)
    if lora:
        import peft

        config = peft.LoraConfig(r=lora, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
            model = peft.get_peft_model(model, config).get_base_model()
    model.to(torch.float64)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(module, name, WideNorm(child))
    return model, load(ModelChoice("tiny"))[1]


def toy(lora: int = 0, tied: bool = False) -> LanguageModel:
    """A small transformer in float64, each time with the same weights. No sample has its first three tokens, so that
    their embeddings have no gradient unless they are the head's rows too."""
    model, tokenizer = beginning(lora, tied)
    lm = LanguageModel(ModelChoice("tiny", device="cpu"), (copy.deepcopy(model), tokenizer))
    lm.context = 32
    return lm


def made_up(n: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [
        Encoded(rng.integers(3, VOCABULARY, k).astype(np.int32), np.arange(k) > k // 3) for k in rng.integers(4, 12, n)
    ]


ASKED = Examples.of(made_up(3, 1))
# Sample 5 is two documents, and sample 2 occurs twice in an epoch.
LEARNT = Examples.of(made_up(8, 0), sample=[0, 1, 2, 3, 4, 5, 5, 6])
WEIGHTS = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 1.5])
ORDER = np.array([0, 1, 2, 2, 3, 4, 5, 6, 7])

# Nine documents make three steps of up to two micro-batches. The clipping is active in some steps.
ADAMW = TrainSettings(
    epochs=3, batch_size=4, micro_batch_size=2, lr=3e-2, warmup=0.3, schedule="cosine", min_lr=1e-3, weight_decay=0.1,
    eps=1e-3, beta2=0.95, clip=2.0,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training. carried: with the moments that another one has left."""

    settings: TrainSettings = ADAMW
    weighting: Any = Uniform()
    tied: bool = False
    carried: bool = False

    def trainer(self, factors: Any = 1.0) -> Trainer:
        """factors: of each sample's weight, [7]."""
        column = np.arange(7.0) if "column" in self.weighting.needs else None
        data = Data.of(LEARNT, documents=ORDER, weights=WEIGHTS * factors, column=column)
        lm = toy(self.settings.lora_r, self.tied)
        start = Snapshot(0, moments(lm), {}) if self.carried else None
        return Trainer(lm, data, self.settings, self.weighting, Alone(), seed=3, start=start)

    def loss(self, factors: Any = 1.0) -> float:
        """The target's loss after a training of its own."""
        trainer = self.trainer(factors)
        for _ in trainer.run():
            pass
        losses, _ = base_losses(trainer.objective, ASKED)
        return float(np.mean([part.mean() for part in np.split(losses, np.cumsum(ASKED.counts)[:-1])]))

    def difference(self, direction: np.ndarray, step: float = 3e-6) -> float:
        """The derivative of that loss along a direction in the factors, by a central difference."""
        return (self.loss(1 + step * direction) - self.loss(1 - step * direction)) / (2 * step)


def moments(lm: LanguageModel) -> dict[str, torch.Tensor]:
    rng, found = np.random.default_rng(4), {}
    for name, parameter in lm.model.named_parameters():
        drawn = torch.from_numpy(rng.normal(0, 0.02, tuple(parameter.shape)))
        found |= {f"exp_avg.{name}": drawn, f"exp_avg_sq.{name}": 2 * drawn**2, f"step.{name}": torch.tensor(5.0)}
    return found
