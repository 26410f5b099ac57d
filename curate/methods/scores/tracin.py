from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.gradients.mean_gradient import mean_gradient, products
from curate.kinds.passes import Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.vectors import Groups


@dataclass(frozen=True)
class Tracin(Score):
    """What training on the sample did to the target's loss, over a training run's checkpoints (TracInCP).

    Formula, at the checkpoints c of a training run (--checkpoints RUN), with g the gradient of the mean loss of a
    sample's supervised tokens with respect to the trained parameters, and v over the target's examples:

        score_i = sum over c of  eta_c  g_i(c) . mean over v of g_v(c)

    eta_c is the mean learning rate of the steps since the previous checkpoint. With aggregate=subtask_max it is the
    maximum over sub-tasks, each with its own mean. With one checkpoint it is `graddot` times the learning rate.

    Cost: per checkpoint the same as `graddot`: the target at 6N FLOPs per token, the pool at 6N; the gradient of a
    single sample is never materialised. Bottleneck: the device's matrix products. Memory: about 20 bytes for each
    parameter and sub-task, and checkpoint.

    Departures: the paper scores samples that the run was trained on; here other samples can be scored too.

    Reference: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020,
    arXiv:2002.08484, Section 3.3 (TracInCP).

    >>> target = Target.of(["a", "b"])
    >>> requests = {"gradient": {"dot": np.array([[[2.0], [1.0]], [[0.5], [0.25]]])}}  # [B, C, K], by eta
    >>> last = Tracin().passes(target)[1]
    >>> last.map(requests, last.open({"0/samples": np.array([2.0])}))["score"].tolist()
    [3.0, 0.75]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "each"
    ranks_in_bfloat16: ClassVar = True

    aggregate: Literal["mean", "subtask_max"] = "mean"
    """Over all of the target's examples, or the maximum over sub-tasks of the sub-task's mean."""
    keep_subtasks: bool = False
    """Keep every sub-task's sum in the column `subtasks`; then each is a direction of its own."""

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        groups = Groups.of(target.subtasks, self.aggregate == "subtask_max" or self.keep_subtasks)

        def score(dots: np.ndarray, shares: np.ndarray) -> Columns:
            return groups.aggregated(dots.sum(1), shares, self.aggregate, self.keep_subtasks)

        shaped_by = ("aggregate", "keep_subtasks", "target")
        return mean_gradient(groups, shaped_by, every=True), products(score, every=True)
