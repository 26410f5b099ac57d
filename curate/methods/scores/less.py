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

PUBLISHED = 1.53  # training steps that a sample of the pool costs in all, by ADAPT's Appendix C


@dataclass(frozen=True)
class Less(Score):
    """Alignment of Adam's step on a sample with the target's gradient, by random projections (LESS).

    Formula, at the checkpoint c of a warm-up, with g the gradient of the mean loss of a sample's supervised tokens with
    respect to the trained parameters, m and v AdamW's saved moments, and P a random projection to `dim` dimensions:

        m' = 0.9 m + 0.1 g,    v' = 0.999 v + 0.001 g^2    (elementwise; beta1, beta2)
        Gamma = m' / sqrt(v' + 1e-8)                                    variant=code
        Gamma = (m' / (1 - beta1^(t+1))) / (sqrt(v' / (1 - beta2^(t+1))) + eps)    variant=paper, after t steps
        S[i, j] = sum over c of  w_c <P Gamma_i, P g_j> / (|P Gamma_i| |P g_j|)
        score_i = max over sub-tasks of the mean over the sub-task's examples j of S[i, j]

    w_c is the mean learning rate of the epoch that ends with c, divided by the sum over all epochs. The target's
    examples use the raw gradient. The samples' features (float16, of unit length, with their norms, one per checkpoint)
    do not depend on the target: a second target costs only its own gradients and a product. Without a target only the
    features are computed. Checkpoints are those of the method's own warm-up (LoRA, on a share of the pool drawn at
    random; trained once, kept in prepared/), or those of --checkpoints: a run, or folders written by Hugging Face's
    Trainer, peft or torch, whose optimizer.pt is read by parameter name.

    Cost: the warm-up, 4N FLOPs per token of its epochs; then at each checkpoint 2N forward and 2N backward for each
    token of the pool and of the target (frozen matrices get no weight gradient), and an outer product for each LoRA
    matrix; storage: 2 dim bytes per sample and checkpoint. Bottleneck: the device's matrix products. The sparse
    projection costs one addition per element of a gradient, the dense one 2 dim FLOPs. The ledger's flops_paper is
    ADAPT's count (Appendix C): 1.53 training steps of 2,048 tokens for each sample of the pool, which leaves out the
    warm-up and the target.

    Departures: batches of any size, where the authors' code runs at batch size 1; a sample's gradient does not depend
    on its batch. The projection defaults to projector=sjlt; rademacher is the authors' kind. Features are stored
    normalised, so a score is off by up to about 1e-5. As in the paper, samples of the warm-up are scored like all
    others.

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
    ranks_in_bfloat16: ClassVar = True

    aggregate: Aggregate = "subtask_max"
    """The maximum over sub-tasks of the sub-task's mean; the mean over all of the target's examples; their maximum."""
    keep_subtasks: bool = False
    """Keep every sub-task's mean in the column `subtasks`; not with the aggregate `max`."""
    variant: Literal["code", "paper", "sgd"] = "code"
    """Gamma as in the authors' code, or as in the paper; sgd: the raw gradient, which needs no optimizer state."""
    beta1: float = 0.9
    """Adam's beta1; use the training's own value."""
    beta2: float = 0.999
    """Adam's beta2; use the training's own value."""
    eps: float = 1e-8
    """Adam's eps; variant=code has it inside the root, so that the denominator is at least 1e-4."""
    dim: int = 8192
    """Dimensions of a projected gradient."""
    projector: Literal["sjlt", "rademacher", "none"] = "sjlt"
    """sjlt: sparse, limited by memory bandwidth. rademacher: dense, as the authors'. none: gradients as they are."""
    nonzeros: int = 1
    """How many output dimensions each gradient element contributes to in the sparse projection."""
    seed: int = 0
    """Seed of the projection; features with different seeds cannot be compared."""
    warmup: float = 0.05
    """Share of the pool that the warm-up trains on."""
    epochs: float = 4.0
    """Epochs of the warm-up; each ends with a checkpoint."""
    lr: float = 2e-5
    """Learning rate of the warm-up."""
    batch_size: int = 128
    """Batch size of the warm-up."""
    micro_batch_size: int = 16
    """Rows per forward pass in the warm-up."""
    lora_r: int = 128
    """Rank of the warm-up's LoRA matrices; 0: all parameters are trained, and the gradients are those of all."""
    lora_alpha: float = 512.0
    """LoRA's scaling factor alpha."""
    lora_dropout: float = 0.1
    """Dropout before LoRA's matrices in the warm-up; gradients are computed without it."""
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj"
    """Modules that get LoRA matrices, as in `curate train`."""
    warmup_seed: int = 42
    """Seed of the draw and the order of the warm-up's samples."""

    def __post_init__(self) -> None:
        if self.keep_subtasks and self.aggregate == "max":
            raise CurateError("less keeps sub-tasks' means, so keep_subtasks=true goes with mean or subtask_max.")
        if not 0 < self.warmup <= 1:
            raise CurateError(f"warmup={self.warmup:g} of less is a share of the pool, above 0 and at most 1.")
        if self.dim < 1:
            raise CurateError(f"dim={self.dim} of less: a projected gradient has at least one dimension.")

        if not 1 <= self.nonzeros <= self.dim and self.projector == "sjlt":
            raise CurateError(
                f"nonzeros={self.nonzeros} of less: an element goes to at least one of the dim={self.dim} dimensions, "
                "and at most to all of them."
            )

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def warm_up(self) -> Warmup:
        lora = {name: getattr(self, name) for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")}
        settings = {name: getattr(self, name) for name in ("epochs", "lr", "batch_size", "micro_batch_size")}
        adam = {name: getattr(self, name) for name in ("beta1", "beta2", "eps")}
        shaping = {**settings, **lora, **adam, "schedule": "linear", "warmup": 0.03}
        return Warmup(self.warmup, self.warmup_seed, shaping, in_papers=False)

    # --- features ----------------------------------------------------------------------------------------

    def vectors(self) -> Pass:
        request = GradientRequest(self._adam, every=True, moments=self.variant != "sgd", paper=PUBLISHED)
        return Pass("gradients", self._kept, requests={"gradient": request}, shaped_by=_SHAPING)

    def target_vectors(self) -> Pass:
        request = GradientRequest(self._raw, every=True, paper=0.0)
        return Pass("gradients", self._kept, requests={"gradient": request}, shaped_by=_SHAPING)

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
        """Adam's step on each of B gradients, [B, n], after t steps whose moments are m and v, [n]; overwrites g."""
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
