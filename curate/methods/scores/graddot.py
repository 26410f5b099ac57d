from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from curate.errors import CurateError
from curate.gradients.mean_gradient import mean_gradient, products
from curate.kinds.passes import Pass
from curate.kinds.score import Score, Target
from curate.kinds.vectors import Groups


@dataclass(frozen=True)
class Graddot(Score):
    """Inner product of the sample's gradient with the target's: what a step on it does to the target's loss.

    Formula, with g the gradient of the mean loss of a sample's supervised tokens with respect to the parameters (all of
    --model, or those trained in the last of --checkpoints), and v over the target's examples:

        score_i = g_i . mean over v of g_v

    or, with aggregate=subtask_max, the maximum over sub-tasks of the product with the sub-task's mean. To first order
    it is the decrease of the target's loss after a gradient step on the sample, divided by the learning rate. Gradients
    are not normalised, so a sample with a large one, as noise has, can score high by its norm alone: `less` normalises
    to length 1.

    Cost: the target forward and backward once, 6N FLOPs per token; then 2N forward and 2N backward for each token of
    the pool and 2N for the product, which never materialises the gradient of a single sample: it is a directional
    derivative. by=jvp computes it in forward mode, without a backward pass: 6N for each sub-task; by=difference by two
    forward passes, 4N, for one direction alone and only in float32. Bottleneck: the device's matrix products. Memory:
    about 20 bytes for each parameter and sub-task.

    Departures: none known.

    Reference: ADAPT (ICLR 2026), Equation 4; Pruthi et al., "Estimating Training Data Influence by Tracing Gradient
    Descent" (TracIn), NeurIPS 2020, arXiv:2002.08484, of one checkpoint.

    >>> import numpy as np
    >>> target = Target.of(["a", "b"], ["one", "two"])
    >>> requests = {"gradient": {"dot": np.array([[2.0, -1.0], [0.5, 0.25]])}}
    >>> last = Graddot(aggregate="subtask_max").passes(target)[1]
    >>> last.map(requests, last.open({"0/samples": np.array([1.0, 1.0])}))["score"].tolist()
    [2.0, 0.5]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "last"
    ranks_in_bfloat16: ClassVar = True

    aggregate: Literal["mean", "subtask_max"] = "mean"
    """Over all of the target's examples, or the maximum over sub-tasks of the sub-task's mean."""
    keep_subtasks: bool = False
    """Keep every sub-task's product in the column `subtasks`; then each is a direction of its own."""
    by: Literal["ghost", "jvp", "difference"] = "ghost"
    """ghost: from the factors of each layer's gradient. jvp: in forward mode, where no backward pass is wanted.
    difference: of the sample's losses, a short step to either side; a third cheaper, and off by rounding: by a ten
    thousandth of the values' root mean square with two million parameters, by a fiftieth with 135 million."""

    def __post_init__(self) -> None:
        if self.by == "difference" and (self.keep_subtasks or self.aggregate == "subtask_max"):
            raise CurateError(
                "by=difference of graddot is for one direction, and each of the target's sub-tasks is one; take "
                "by=ghost, which multiplies with all of them in one pass, or aggregate=mean without keep_subtasks."
            )

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        groups = Groups.of(target.subtasks, self.aggregate == "subtask_max" or self.keep_subtasks)
        score = partial(groups.aggregated, aggregate=self.aggregate, keep=self.keep_subtasks)
        shaped_by = ("aggregate", "keep_subtasks", "target")
        return mean_gradient(groups, shaped_by), products(score, self.by)
