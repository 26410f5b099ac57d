from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing
from curate.models.logit_sketch import MOST_TOKENS, Memory, projected, released_scale, singular_values


@dataclass(frozen=True)
class UdsOnline(Weighting):
    """Chooses samples with large and diverse logits, far from those most recently trained on (UDS).

    Formula, with L_i [N, V] the logits of a candidate at all its N tokens under the current model, and z_i = D^T L_i C
    their random projection to d2 by d1 dimensions:

        s_i = ||L_i||_* + alpha mean over j in M of ||z_i - z_j||,    the second term 0 while M is empty

    The highest fill the batch; M, the last `memory` chosen ones, is first in, first out, and is saved in checkpoints.
    With oversample=4 one in four is chosen, as published.

    Cost: a forward pass over the candidates, 2N FLOPs per token, and 2 E^2 + 2 E d1 more for the logits' singular
    values and projections; the chosen go through the model once more, 6N per token. Bottleneck: those passes.

    Departures: the published code takes the logits of rows zero-padded to 512 tokens; here padding does not contribute.
    Its transform is not normalised, and its alpha fits the distances that result, so distances are scaled to match
    here. Its optional term within a batch is left out. It chooses from every micro-batch; here the choice is from the
    whole step.

    Reference: UDS, arXiv:2510.16882; code gfyddha/UDS, UDSamplingTrainer.py.

    >>> import torch
    >>> from curate.models.head import Head
    >>> from curate.kinds.signals import Forward
    >>> states = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]]])  # of two tokens, and of one
    >>> outputs = Forward(None, np.array([1, 1]), states, np.array([2, 1]), head=Head(torch.eye(2)))
    >>> weights, state = UdsOnline().update(Step(1, outputs=outputs, room=1), {})
    >>> weights.values.tolist(), weights.measure.tolist(), state["memory"].shape
    ([1.0, 0.0], [7.0, 5.0], (1, 1024))
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("outputs",)
    chooses: ClassVar = True

    alpha: float = 2.5e-3
    """Weight of the distance from the memory."""
    memory: int = 1024
    """How many of the chosen samples are remembered."""
    d1: int = 128
    """Dimensions that the vocabulary is projected to."""
    d2: int = 8
    """Dimensions that the positions in a sample are projected to."""
    length: int = 512
    """Length of the published code's padded rows, which sets the scale of distances."""
    seed: int = 0
    """Seed of the projections."""

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.memory < 0 or min(self.d1, self.d2, self.length) < 1:
            raise CurateError(
                f"uds_online needs alpha and memory of 0 or more, and d1, d2 and length of 1 or more, not "
                f"alpha={self.alpha:g}, memory={self.memory}, d1={self.d1}, d2={self.d2}, length={self.length}."
            )
        if self.d1 > MOST_TOKENS:
            raise CurateError(f"uds_online.d1={self.d1} is more than the tokens of any vocabulary; take fewer.")
        if self.d2 > self.length:
            raise CurateError(
                f"uds_online.d2={self.d2} is more than the {self.length} positions of a row (length); take fewer."
            )

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.outputs is not None
        useful = singular_values(step.outputs).sum(1)
        scale = released_scale(step.outputs.head.vocabulary, self.length)
        z = projected(step.outputs, self.d1, self.d2, self.seed).astype(np.float64) * scale
        memory = Memory(self.memory, state.get("memory", np.zeros((0, z.shape[1]), np.float32)).astype(np.float64))
        score = useful + self.alpha * memory.distance(z)
        chosen = highest(score, step.room)
        memory.push(z[chosen])
        return Weights(weighing(chosen, len(score)), score), {**state, "memory": memory.kept.astype(np.float32)}
