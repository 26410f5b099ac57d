from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._gates import clipped, sigmoid

_RULE = "above eps; where the target is no nearer to itself than other samples are, take scale=none"


@dataclass(frozen=True)
class Adapt(Weighting):
    """Weights a sample by its similarity to the target under the current model (ADAPT).

    Formula, with h_l the last layer's hidden state at token l of the sample, from the training step's own forward pass:

        phi(x) = sum over l of (l / (1 + ... + L)) h_l                                    (Eq. 9)
        s(x)   = mean over the target's samples v of  cos(phi(x), phi(v))                 (Eq. 10)
        w(x)   = sigmoid(s(x) / max(tau, eps)),   loss = sum of w(x) l(x)                 (Eq. 11, Algorithm 1)

    The states of a causal model all point much the same way, so that the cosines are all positive and nearly equal, and
    with them the weights: `curate train` says what share of the samples is effective. `center` takes away what they
    have in common, estimated at every look at the target from some of the samples that are trained on:

        states:  phi(x) - m in place of phi(x), also for v,   m the mean of phi over these samples
        cosine:  s(x) - c in place of s(x),                   c the mean of s over these samples

    and `scale` divides s, centred or not, before tau does, which is then in units of that divisor:

        pool:    the standard deviation of s over these samples
        target:  the mean of s over the target's own samples

    Only the mean of the target's unit vectors is kept, since the mean of the cosines is the product with it. It is
    recomputed every `refresh` steps (t mod R = 1) or epochs. No gradient flows through the weights.

    Cost: 2D FLOPs per sample and 2D per token for the weighted mean, of a step's 6N per token; and a forward pass over
    the target's val split (with center or scale=pool also over center_samples), 2N per token, every `refresh` steps, a
    separate phase in the ledger. Bottleneck: that of the training step.

    Departures and choices: R has no published value; the paper does not center. Section 5.1 says that aggregated scores
    are normalised, and neither over what nor how; Eq. 10 and Algorithm 1 do not. Over a step's batch is not offered: a
    sample's weight would depend on the samples beside it. With tau = 1 a weight lies between 0.27 and 0.73. AdamW
    undoes such a factor that all weights have in common, as its step does not depend on the gradient's scale; what
    remains of it is that the gradient's norm is less often above `clip`, which can move the model more than the
    weights' differences do: compare with clip=0, or with constant weights (clip_low=clip_high). normalize=mean1 takes
    the factor away (the general form of Section 3.3 divides by the sum, Algorithm 1 does not). Section 5.1 mentions
    clipping of weights, which the algorithm lacks: off by default. The target's samples are encoded without dropout.

    Reference: ADAPT, "Rethinking Data Curation in LLM Training: Online Reweighting Offers Better Generalization than
    Offline Methods" (ICLR 2026), Section 5.3.

    >>> import torch
    >>> toward = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> state = Adapt().refreshed(torch.tensor([[5.0, 0.0]]), {})
    >>> Adapt().update(Step(1, states=toward), state)[0].values.round(3).tolist()
    [0.731, 0.5]
    """

    needs: ClassVar = ("states",)
    uses_target: ClassVar = True

    tau: float = 1.0
    """Temperature of the gate; smaller is sharper."""
    refresh: int = 50
    """Steps, or epochs, between two updates of the target's mean (R); no published value."""
    refresh_unit: Literal["steps", "epochs"] = "steps"
    """What `refresh` counts."""
    center: Literal["none", "states", "cosine"] = "none"
    """none: as in the paper; states: the mean state is taken away from all states; cosine: the mean cosine from all."""
    center_samples: int = 256
    """Samples that are trained on over which that mean is taken, drawn anew at every look at the target."""
    scale: Literal["none", "pool", "target"] = "none"
    """Divisor of the similarity: none, as in the paper; pool: its standard deviation over samples that are trained on;
    target: its mean over the target's own."""
    clip_low: float = 0.0
    """No weight is below this."""
    clip_high: float | None = None
    """No weight is above this; none: no bound."""
    normalize: Literal["none", "mean1"] = "none"
    """none: as in Algorithm 1; mean1: a step's weights are scaled to a mean of 1."""
    eps: float = 1e-8
    """Lower bound on a norm or a temperature that is divided by."""

    def __post_init__(self) -> None:
        require(f"adapt.refresh={self.refresh}", self.refresh >= 1, "1 or more")
        require(f"adapt.center_samples={self.center_samples}", self.center_samples >= 1, "1 or more")
        spread = self.scale != "pool" or self.center_samples > 1
        require(f"adapt.center_samples={self.center_samples} with scale=pool", spread, "2 or more")

    @property
    def background(self) -> int:
        return self.center_samples if self.center != "none" or self.scale == "pool" else 0

    def refreshed(self, anchors: Any, state: Arrays, background: Any = None) -> Arrays:
        anchors, some = anchors.double(), anchors[:0].double() if background is None else background.double()
        found: Arrays = {}
        if self.center == "states":
            found["mean"] = some.mean(0).cpu().numpy()
        own = self._unit(self._centred(anchors, found))
        found["anchor"] = own.mean(0).cpu().numpy()
        if self.center == "cosine":
            found["cosine"] = np.array([self._nearness(some, found).mean()])
        if self.scale != "none":
            over = self._nearness(some, found).std() if self.scale == "pool" else self._nearness(anchors, found).mean()
            require(f"adapt.scale={self.scale}: the divisor of the similarities, {over:.3g},", over > self.eps, _RULE)
            found["scale"] = np.array([float(over)])
        return found

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        states = step.states
        assert states is not None
        nearness = self._nearness(states.double(), state) / state.get("scale", 1.0)
        weights = sigmoid(nearness / max(self.tau, self.eps))
        return Weights(clipped(weights, self.clip_low, self.clip_high), nearness), state

    def _nearness(self, states: Any, state: Arrays) -> np.ndarray:
        """The mean cosine of states [B, D] with the target's, centred as asked, float64 [B]."""
        cosines = self._unit(self._centred(states, state)) @ states.new_tensor(state["anchor"])
        return cosines.cpu().numpy() - state.get("cosine", 0.0)

    def _centred(self, states: Any, state: Arrays) -> Any:
        return states - states.new_tensor(state["mean"]) if "mean" in state else states

    def _unit(self, states: Any) -> Any:
        return states / states.norm(dim=1, keepdim=True).clamp(min=self.eps)
