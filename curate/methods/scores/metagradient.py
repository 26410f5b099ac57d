from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Replay, Score, Target
from curate.kinds.text import Text

_LEFT_OUT = "it is not in the training (nothing of it is supervised, or it does not fit the context)"
_TRAINING = (
    *(
        "epochs",
        "steps",
        "batch_size",
        "micro_batch_size",
        "lr",
        "schedule",
        "warmup",
        "weight_decay",
        "beta1",
        "beta2",
    ),
    *("eps", "clip", "loss", "reduction", "lora_r", "lora_alpha"),
)


@dataclass(frozen=True)
class Metagradient(Score):
    """The exact derivative of the target's loss after a whole training, by the sample's weight in it (MAGIC).

    Formula: with L(omega) the target's loss (the mean over its examples of each one's mean loss over its supervised
    tokens) after a training of --model on the pool, in which omega_i multiplies the losses of sample i in every epoch,

        score_i = - dL / d omega_i    at omega = 1

    The training is `curate train`'s by the settings below: its batches, learning rates, clipping and AdamW, replayed
    backwards step by step. Nothing is approximated but by rounding; what is not said is how far a derivative reaches.

    Cost: five trainings with all parameters, a little over four with LoRA: the training, most of it again, and for each
    step a forward and a backward pass, and a backward pass through both. Bottleneck: the device's matrix products.
    Memory: a micro-batch's graph is three times that of training; besides, on the processor or, where that would be
    more than a gigabyte, in files of the workspace, 7 numbers per trained parameter for each of about the root of the
    number of steps. It runs in one process, products in float32, and begins anew if it is killed.

    Departures: the denominator of a step's loss (its number of supervised tokens) is a constant. Of subtasks there is
    no score of their own. Snapshots are kept at equal distances, which takes one more training, where the paper's take
    log_k(T) and O(k log T) memory.

    Where it breaks: where the loss after training is no smooth function of the weights, as with a large learning rate,
    or in Adam's first steps, which are nearly the sign of a gradient. A larger eps, a longer warmup and a smaller lr
    make it smoother ("metasmooth"). `curate trial` and `curate foretell` measure how well it foretells.

    Reference: Ilyas and Engstrom, "MAGIC: Near-Optimal Data Attribution for Deep Learning", arXiv:2504.16430; Engstrom
    et al., "Optimizing ML Training with Metagradient Descent", arXiv:2503.13751.

    >>> import numpy as np
    >>> from curate.kinds.text import Text
    >>> last = Metagradient().passes(Target.of(["a"]))[-1]
    >>> text = Text.of(["one", "two"])
    >>> state = {"ids": np.sort(text.ids), "values": np.array([0.5, -1.0])[np.argsort(text.ids)]}
    >>> last.map(text, state)["score"].tolist()
    [-0.5, 1.0]
    """

    scope: ClassVar = "pool"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)

    epochs: float = 1.0
    """Passes over the pool."""
    steps: int = 0
    """Number of optimizer steps; 0: as many as `epochs` take."""
    batch_size: int = 32
    """Samples per optimizer step."""
    micro_batch_size: int = 0
    """Samples per forward and backward pass; 0: all of a step. Divided where memory runs out."""
    lr: float = 2e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate schedule after the warm-up."""
    warmup: float = 0.03
    """Fraction of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's beta1."""
    beta2: float = 0.999
    """AdamW's beta2."""
    eps: float = 1e-8
    """AdamW's epsilon; a larger one makes the training smoother."""
    clip: float = 1.0
    """Maximum gradient norm; 0: no clipping."""
    loss: Literal["answers", "all"] = "answers"
    """Supervised tokens: of the assistant's turns (of raw text, all), or all for every token."""
    reduction: Literal["token", "sample"] = "token"
    """A step's loss: the mean over its tokens, or over its samples of each one's mean."""
    lora_r: int = 0
    """LoRA rank; 0: all parameters are trained."""
    lora_alpha: float = 32.0
    """LoRA's alpha: its update is scaled by alpha / r."""
    seed: int = 0
    """Seed of the order of the samples, and of LoRA's matrices."""

    def replay(self) -> Replay:
        return Replay({name: getattr(self, name) for name in _TRAINING}, self.seed)

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        shaped_by = ("target", "seed", *_TRAINING)
        training = Pass("training", self._derivatives, self._by_id, shaped_by=shaped_by, over="training")
        return training, Pass("values", self._values)

    def _derivatives(self, replayed: Arrays, _: Any) -> Arrays:
        return replayed

    def _by_id(self, partials: Iterable[Arrays]) -> Arrays:
        """The samples in order of their ids."""
        (replayed,) = partials
        order = np.argsort(replayed["ids"])
        return {**replayed, "ids": replayed["ids"][order], "values": replayed["values"][order]}

    def _values(self, batch: Text, state: Arrays) -> Columns:
        places = np.searchsorted(state["ids"], batch.ids)
        inside = np.append(state["ids"], 0)[places] == batch.ids
        inside &= places < len(state["ids"])
        score = np.full(len(places), np.nan)
        score[inside] = -state["values"][places[inside]]
        return {"score": score, "error": np.where(inside, "", _LEFT_OUT).astype(object)}

    def state_note(self, before: Mapping[str, np.ndarray]) -> str:
        loss, steps = float(before["loss"][0]), int(before["steps"][0])
        drift = float(before["drift"][0])
        other = f"; its losses were off by up to {drift:.1g} when it was replayed" if drift else ""
        return f"the target's loss is {loss:.3f} after the training of {steps:,} steps{other}"
