from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, GradientCollector, GradientRequest, Pass
from curate.kinds.score import Score, Target, Warmup, near_target
from curate.kinds.vectors import Aggregate

if TYPE_CHECKING:
    from torch import Tensor

    from curate.gradients.backward import CheckpointView
    from curate.numerics.projections import Kind


@dataclass(frozen=True)
class Less(Score):
    """How far Adam's step on a sample goes along the target's gradient, by random projections (LESS).

    Formula, at the checkpoint c of a warm-up, with g the gradient of the mean loss of a sample's supervised tokens by
    the parameters that were trained, m and v the moments of AdamW as they were saved, and P a random projection to
    `dim` numbers:

        m' = 0.9 m + 0.1 g,    v' = 0.999 v + 0.001 g^2    (elementwise; beta1, beta2)
        Gamma = m' / sqrt(v' + 1e-8)                                    variant=code
        Gamma = (m' / (1 - beta1^(t+1))) / (sqrt(v' / (1 - beta2^(t+1))) + eps)    variant=paper, after t steps
        S[i, j] = sum over c of  w_c <P Gamma_i, P g_j> / (|P Gamma_i| |P g_j|)
        score_i = max over sub-tasks of the mean over the sub-task's examples j of S[i, j]

    w_c is the mean learning rate of the epoch that ends with c, over the sum of all. Of the target's examples the
    gradient is raw. The samples' features (float16, of unit length, with their norms, one of each checkpoint) do not
    depend on the target: a second one costs its own gradients, and a product. Without a target there are the features
    only. Checkpoints are those of the method's own warm-up (LoRA, a share of the pool, drawn by lot; trained once, kept
    in prepared/), or of --checkpoints: a run, or folders that Hugging Face's Trainer, peft or torch wrote, whose
    optimizer.pt is read by the parameters' names.

    Cost: the warm-up, 4N FLOPs a token of its epochs; then at each checkpoint 2N forward and 2N backward for each token
    of the pool and of the target (no weight of a frozen matrix has a gradient), and of each LoRA matrix an outer
    product; and 2 dim bytes a sample and checkpoint. Limit: the device's matrix products. The sparse projection costs
    an addition for each number of a gradient, the dense one 2 dim.

    Departures: batches of any size, where the authors' code runs at batch size 1; a sample's gradient is the one that
    it has alone. Projection by projector=sjlt unless told; rademacher is the authors' kind. Features are stored
    normalised, so a score is off by up to about 1e-5. Nothing is left out of the pool for having been in the warm-up,
    as in the paper.

    Reference: Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", ICML 2024,
    arXiv:2402.04333, Section 3 and Definition 3.1; its code for eps inside the root and no bias correction.

    >>> import torch
    >>> g, m, v = torch.tensor([[3.0, -4.0]]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 16.0])
    >>> [round(x, 4) for x in Less().gamma(g, m, v, t=10)[0].tolist()]  # 1.2 / sqrt(0.009), -0.4 / sqrt(16), nearly
    [12.6491, -0.1]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "each"

    aggregate: Aggregate = "subtask_max"
    """The maximum over sub-tasks of the sub-task's mean; the mean over all of the target's examples; their maximum."""
    keep_subtasks: bool = False
    """Keep every sub-task's mean in the column `subtasks`; not with the aggregate `max`."""
    variant: Literal["code", "paper", "sgd"] = "code"
    """Gamma as the authors' code has it, or as the paper; sgd: the raw gradient, which needs no optimizer's state."""
    beta1: float = 0.9
    """Adam's; take the training's own."""
    beta2: float = 0.999
    """Adam's; take the training's own."""
    eps: float = 1e-8
    """Adam's; in variant=code inside the root, where it bounds the denominator by 1e-4."""
    dim: int = 8192
    """Numbers of a projected gradient."""
    projector: Literal["sjlt", "rademacher", "none"] = "sjlt"
    """sjlt: sparse, at the speed of memory. rademacher: dense, as the authors'. none: gradients as they are."""
    nonzeros: int = 1
    """To how many places a number goes in the sparse projection."""
    seed: int = 0
    """Of the projection; features of other seeds cannot be compared."""
    warmup: float = 0.05
    """Share of the pool that the warm-up learns from."""
    epochs: float = 4.0
    """Of the warm-up; there is a checkpoint of each."""
    lr: float = 2e-5
    """Of the warm-up."""
    batch_size: int = 128
    """Of the warm-up."""
    micro_batch_size: int = 16
    """Rows of the warm-up that go through the model at once."""
    lora_r: int = 128
    """Rank of the warm-up's LoRA matrices; 0: all parameters are trained, and have gradients."""
    lora_alpha: float = 512.0
    """LoRA's factor."""
    lora_dropout: float = 0.1
    """Dropout before LoRA's matrices in the warm-up; gradients are taken without."""
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj"
    """Modules that LoRA goes beside, as `curate train` has them."""
    warmup_seed: int = 42
    """What the warm-up's samples are drawn by, and their order."""

    def __post_init__(self) -> None:
        if self.keep_subtasks and self.aggregate == "max":
            raise CurateError("less keeps sub-tasks' means, so keep_subtasks=true goes with mean or subtask_max.")
        if not 0 < self.warmup <= 1:
            raise CurateError(f"warmup={self.warmup:g} of less is a share of the pool, above 0 and at most 1.")
        if self.dim < 1:
            raise CurateError(f"dim={self.dim} of less: a projected gradient has at least one number.")

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def warm_up(self) -> Warmup:
        lora = {name: getattr(self, name) for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")}
        own = {name: getattr(self, name) for name in ("epochs", "lr", "batch_size", "micro_batch_size")}
        adam = {name: getattr(self, name) for name in ("beta1", "beta2", "eps")}
        return Warmup(self.warmup, self.warmup_seed, {**own, **lora, **adam, "schedule": "linear", "warmup": 0.03})

    # --- features ----------------------------------------------------------------------------------------

    def vectors(self) -> Pass:
        request = GradientRequest(self._adam, every=True, moments=self.variant != "sgd")
        return Pass("gradients", self._kept, requests={"gradient": request}, shaped_by=_SHAPING)

    def target_vectors(self) -> Pass:
        return Pass(
            "gradients", self._kept, requests={"gradient": GradientRequest(self._raw, every=True)}, shaped_by=_SHAPING
        )

    def _kept(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return {"vector": requests["gradient"]["vector"]}

    def _adam(self, at: CheckpointView, _: Any, places: np.ndarray) -> GradientCollector:
        return self._projected(at, places, self._raw_of if self.variant == "sgd" else partial(self._step, at))

    def _raw(self, at: CheckpointView, _: Any, places: np.ndarray) -> GradientCollector:
        return self._projected(at, places, self._raw_of)

    def _raw_of(self, name: str, g: Tensor) -> Tensor:
        return g

    def _step(self, at: CheckpointView, name: str, g: Tensor) -> Tensor:
        assert at.moments is not None
        mean, square = at.moments.mean[name].flatten(), at.moments.square[name].flatten()
        return self.gamma(g, mean, square, at.moments.step)

    def gamma(self, g: Tensor, m: Tensor, v: Tensor, t: int) -> Tensor:
        """Adam's step on each of B gradients, [B, n], after t steps whose moments are m and v, [n]; writes into g."""
        second = (g * g).mul_(1 - self.beta2).add_(self.beta2 * v)
        first = g.mul_(1 - self.beta1).add_(self.beta1 * m)
        if self.variant == "code":
            return first.div_(second.add_(self.eps).sqrt_())
        first /= 1 - self.beta1 ** (t + 1)
        return first.div_(second.div_(1 - self.beta2 ** (t + 1)).sqrt_().add_(self.eps))

    def _projected(self, at: CheckpointView, places: np.ndarray, transform: Any) -> GradientCollector:
        from curate.gradients.collectors import Projected
        from curate.numerics.projections import projector

        kind: Kind = self.projector
        return Projected(at, len(places), projector(kind, self.dim, self.seed, self.nonzeros, at.sizes), transform)

    # --- the score ---------------------------------------------------------------------------------------

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (near_target(self.aggregate, self.keep_subtasks),)


_SHAPING = (
    *("variant", "beta1", "beta2", "eps", "dim", "projector", "nonzeros", "seed"),
    *(
        "warmup",
        "epochs",
        "lr",
        "batch_size",
        "micro_batch_size",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_targets",
        "warmup_seed",
    ),
)
