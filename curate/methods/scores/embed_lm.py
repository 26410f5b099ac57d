from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target, near_target
from curate.kinds.signals import Forward
from curate.kinds.vectors import Aggregate


@dataclass(frozen=True)
class EmbedLm(Score):
    """Similarity to the target in the model's own hidden states: mean cosine with the target's examples.

    Formula, with h_l the last layer's hidden state (after the final norm) at token l = 1 ... L of the whole sample, its
    prompt included:

        e(x) = sum over l of w_l h_l,   w_l = l / (1 + ... + L),   then divided by its length
        score = mean over the target's examples v of  e(x) . e(v)  =  e(x) . (mean of e(v))

    A later token has seen more of the sample, so it gets more weight; padding gets none. `aggregate` takes the mean,
    the maximum, or the maximum over sub-tasks of the sub-task's mean. The vectors are stored (float16, with their norm)
    and reused for every target, by `curate neighbors` and by the selectors on vectors; RDS+ is this score with
    --selector round_robin. Without a target only the vectors are computed.

    Cost: one forward pass, 2N FLOPs per token, without the output head; shared with other scores by the same model
    requested together. A further target costs its own pass and 2D FLOPs per sample. Bottleneck: the device's matrix
    products.

    Departures: the papers' code runs at batch size 1, where there is no padding to handle; here the weights count a
    sample's own tokens only. RDS+ truncates at 2,048 tokens; here the limit is the model's context
    (--set model.context=2048). Vectors are stored in float16, so a cosine is off by up to about 1e-4.

    Reference: Ivison et al., "Large-Scale Data Selection for Instruction Tuning" (RDS+), 2025, arXiv:2503.01807,
    Section 3; ADAPT (ICLR 2026), Section 5.3, which weighs training samples by it.

    >>> import torch
    >>> states = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[5.0, 0.0], [0.0, 0.0]]])  # of two tokens, and of one
    >>> import numpy as np
    >>> batch = Forward(None, np.array([1, 0]), states, np.array([2, 1]))
    >>> EmbedLm().vectors().requests["states"].of(batch)["vector"].tolist()
    [[1.0, 2.0], [5.0, 0.0]]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True

    aggregate: Aggregate = "mean"
    """Mean over the target's examples, their maximum, or the maximum over sub-tasks of the sub-task's mean."""
    keep_subtasks: bool = False
    """Keep every sub-task's mean in the column `subtasks`; not with the aggregate `max`."""

    def __post_init__(self) -> None:
        if self.keep_subtasks and self.aggregate == "max":
            raise CurateError("embed_lm keeps sub-tasks' means, so keep_subtasks=true goes with mean or subtask_max.")

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def vectors(self) -> Pass:
        return Pass("forward", self._vector, requests={"states": ForwardRequest(hidden=True, of=self._pooled)})

    def _pooled(self, batch: Forward) -> Columns:
        """The position-weighted mean of each sample's hidden states, float32 [B, D]; those past its end are zero."""
        import torch

        assert batch.hidden is not None
        places = torch.arange(1, batch.hidden.shape[1] + 1, device=batch.hidden.device).to(batch.hidden.dtype)
        lengths = batch.hidden.new_tensor(batch.lengths)
        summed = (batch.hidden * places[:, None]).sum(1)
        return {"vector": (summed / (lengths * (lengths + 1) / 2)[:, None]).cpu().numpy()}

    def _vector(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return requests["states"]

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (near_target(self.aggregate, self.keep_subtasks),)
