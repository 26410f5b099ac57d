"""How a model is trained: everything but the model, the data and the weighting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from curate.errors import CurateError


@dataclass(frozen=True)
class TrainSettings:
    """The settings of `curate train --set FIELD=VALUE`. A row is a sample, or, packed, as many as fit the context."""

    epochs: float = 1.0
    """How often the training set is gone through; not used where `steps` is given."""
    steps: int = 0
    """Optimizer steps; 0: as many as `epochs` make."""
    batch_size: int = 32
    """Rows of an optimizer step, of all processes together."""
    micro_batch_size: int = 0
    """Rows that go through the model at once in a process, their gradients added up; 0: all of a step. Halved where
    memory runs out."""
    lr: float = 2e-5
    """Greatest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.03
    """Share of the steps in which it rises, from 0."""
    min_lr: float = 0.0
    """The learning rate that it falls to."""
    weight_decay: float = 0.0
    """AdamW's, of matrices; never of norms and biases."""
    beta1: float = 0.9
    """AdamW's."""
    beta2: float = 0.999
    """AdamW's."""
    eps: float = 1e-8
    """AdamW's."""
    clip: float = 1.0
    """Greatest norm of a step's gradient; 0: unbounded."""
    loss: Literal["answers", "all"] = "answers"
    """Tokens that are learnt: the assistant's turns (all of a raw text), or all."""
    reduction: Literal["token", "sample"] = "token"
    """A step's loss is the mean over its tokens, or over its samples of each one's mean."""
    packing: bool = False
    """Rows hold several samples up to the context, each with its own attention, positions and weight."""
    split: bool = False
    """A raw text over the context is learnt in pieces, each a row or a part of one, instead of being cut."""
    order: Literal["shuffle", "rank", "pool"] = "shuffle"
    """Anew for every epoch; or as the manifest ranks the samples; or as they stand in the pool."""
    lora_r: int = 0
    """Rank of LoRA's matrices; 0: all parameters are trained."""
    lora_alpha: float = 32.0
    """LoRA's factor: its update is scaled by alpha / r."""
    lora_dropout: float = 0.0
    """Dropout before LoRA's matrices."""
    lora_targets: str = "all-linear"
    """Names of the modules that LoRA goes beside, separated by commas (q_proj,v_proj); all-linear: all but the head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products (the weights that are trained stay float32): auto is bfloat16 on a GPU."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations twice instead of keeping them."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: one at the end."""
    checkpoint_epochs: bool = False
    """A checkpoint at the end of every epoch, too."""
    keep_checkpoints: int = 1
    """How many of the latest are kept; 0: all."""
    eval_every: int = 0
    """Steps between evaluations on the targets given by --eval; 0: at the end."""
    keep_weights: bool = True
    """Record every sample's loss and weight at every step (table `trained`)."""
    oversample: int = 4
    """Candidates for each sample that is learnt, where the weighting chooses (filter_then_weight, max_loss, …)."""
    projection: int = 64
    """Numbers that each side of a layer's gradient is projected to, where the weighting compares gradients; 0: none."""
    target_batch: int = 16
    """Samples of the target that a step's candidates are compared with, by lot."""
    target_every: int = 1
    """Steps for which one look at the target serves."""
    shuffle_weights: bool = False
    """A null: the weights of each step are dealt out to its samples by lot."""
    sum_gradients: bool = False
    """Add up the steps' gradients, before they are clipped, and keep them beside the optimizer's state."""
    count_flops: bool = False
    """Measure FLOPs beside reckoning them (flops_counted), by eager attention; slower."""

    def __post_init__(self) -> None:
        above = ("epochs", "batch_size", "lr", "eps", "oversample", "target_batch", "target_every")
        below_1 = ("warmup", "beta1", "beta2", "lora_dropout")
        others = ("steps", "micro_batch_size", "min_lr", "projection", "weight_decay", "clip", "lora_r", "lora_alpha")
        others += ("checkpoint_every", "keep_checkpoints", "eval_every")
        for names, rule, good in (
            (above, "a number above 0", lambda value: 0 < value < math.inf),
            (below_1, "at least 0 and below 1", lambda value: 0 <= value < 1),
            (others, "0 or more", lambda value: 0 <= value < math.inf),
        ):
            for name in names:
                if not good(getattr(self, name)):
                    raise CurateError(f"the setting {name} of the training is {rule}, not {getattr(self, name)}.")

        if self.split and self.reduction == "sample":
            raise CurateError("split=true parts a sample, and reduction=sample is a mean over whole ones; take token.")

    def in_bfloat16(self, device: str) -> bool:
        """Whether matrix products are in bfloat16 on a device of that type."""
        return self.precision == "bfloat16" or self.precision == "auto" and device == "cuda"

    def learning_rate(self, step: int, steps: int) -> float:
        """Of a step, from 1, among so many: as transformers' schedulers have it, which start from 0."""
        done, rising = step - 1, math.ceil(self.warmup * steps)
        if done < rising:
            return self.lr * done / rising
        if self.schedule == "constant":
            return self.lr
        progress = (done - rising) / max(1, steps - rising)
        left = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_lr + (self.lr - self.min_lr) * max(0.0, left)
