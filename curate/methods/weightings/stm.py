from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Stm(Weighting):
    """Leaves out the tokens that surprise the base model (selective token masking).

    Formula, for every supervised token, with p0 the model that training starts from:

        w = 1 where exp(-log p0(token)) <= threshold, else 0
        loss = sum of w (token loss) / sum of w

    Cost: one forward pass over the training set before the first step, 2N FLOPs per token; 8 bytes per token are kept.

    Departures: none known; the first token of a text, which nothing predicts and which the authors' code masks by
    giving it perplexity 10, is never supervised here. Their variants `lowest` and `random` are not offered.

    Reference: "Clear Minds Think Alike: What Makes LLM Fine-tuning Robust? A Study of Token Perplexity" (2025),
    appier-research/robust-llm-finetunes.

    >>> step = Step(1, counts=np.array([3]), base_token_loss=np.log([1.1, 2.5, 2.6]))
    >>> Stm().update(step, {})[0].values.tolist()
    [1.0, 1.0, 0.0]
    """

    needs: ClassVar = ("base_token_loss",)

    threshold: float = 2.5
    """Highest perplexity of a token that is trained on."""
    normalize: Literal["none", "mean1"] = "mean1"
    """mean1: the loss is averaged over the tokens that are left, as with masked labels; none: over all."""

    def __post_init__(self) -> None:
        require(f"stm.threshold={self.threshold}", self.threshold >= 1, "1 or more (a perplexity)")

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.base_token_loss is not None
        return Weights((step.base_token_loss <= np.log(self.threshold)).astype(np.float64)), state
