from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Doremi(Mixer):
    """Up-weights domains where a small model can still approach a reference: group DRO over domains (DoReMi).

    Formula. A reference model is trained with the reference weights; then a proxy model of the same kind, whose samples
    are drawn with the same weights p and reweighted. At every step, with e = l_proxy - l_reference of each supervised
    token:

        lambda_d  = the mean over domain d's tokens of max(e, 0); where the step has none of d, it is kept
                    (initially ln |vocabulary|)
        log a     <- log a + step_size lambda;  a <- a / sum of a;  a <- (1 - smoothing) a + smoothing / D
        loss      = sum of w l / sum of w over the step's tokens,  w = a_d / p_d

    The weights are the mean of a over all steps, not its last value. a and p are shares of what is mixed: of samples,
    or of tokens.

    Cost: two trainings of the proxy model, 6N FLOPs per token each, and a forward pass of the reference over all
    samples, 2N, whether or not they are drawn. Bottleneck: those trainings.

    Departures: the authors sum the losses of packed rows of one domain each; here a row is a sample.

    Reference: Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (2023), Algorithm 1;
    sangmichaelxie/doremi. step_size is the paper's 1; smoothing is the class's default in the authors' code, 1e-4
    (their released script takes 1e-3).

    >>> Doremi().settings()
    {'step_size': 1.0, 'smoothing': 0.0001, 'reference_weights': 'proportional'}
    """

    trains: ClassVar = True

    step_size: float = 1.0
    """How far a step moves the log weights: eta."""
    smoothing: float = 1e-4
    """Share of the weights that is spread evenly at every step: c."""
    reference_weights: Literal["proportional", "uniform"] = "proportional"
    """Weights that the reference is trained with, that the proxy's samples are drawn with, and that a starts from."""

    def __post_init__(self) -> None:
        require(f"doremi.step_size={self.step_size}", self.step_size > 0, "a number above 0")
        require(f"doremi.smoothing={self.smoothing}", 0 <= self.smoothing < 1, "at least 0 and below 1")

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        assert proxies is not None
        n = len(domains.names)
        prior = domains.share if self.reference_weights == "proportional" else np.full(n, 1 / n)
        proxies.train("reference", prior)
        weighting = Reweighting(tuple(prior.tolist()), self.step_size, self.smoothing)
        state = proxies.train("proxy", prior, weighting, reference="reference")
        return Mixed(state["total"] / state["steps"], {"steps": float(state["steps"][0])})


@dataclass(frozen=True)
class Reweighting(Weighting):
    """The proxy's weighting: its state is the log weights, the last excess losses, and the sum of the weights over
    steps."""

    scope: ClassVar = "batch"
    needs: ClassVar = ("token_loss", "base_token_loss", "domains")
    normalize = "mean1"

    prior: tuple[float, ...]
    step_size: float
    smoothing: float

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.domains is not None and step.token_loss is not None and step.base_token_loss is not None
        domains, counts = step.domains, step.counts
        share = np.array(self.prior)
        log_a = state.get("log_weights", np.log(np.maximum(share, np.finfo(float).tiny)))
        excess = state.get("excess", np.full(len(share), np.log(domains.vocabulary))).copy()
        of_token = np.repeat(domains.of, counts)  # type: ignore[arg-type]
        clipped = np.maximum(step.token_loss - step.base_token_loss, 0.0)
        tokens = np.bincount(of_token, minlength=len(share))
        present = tokens > 0
        excess[present] = np.bincount(of_token, clipped, minlength=len(share))[present] / tokens[present]
        log_a = log_a + self.step_size * excess
        a = np.exp(log_a - log_a.max())
        a = (1 - self.smoothing) * a / a.sum() + self.smoothing / len(a)
        total = state.get("total", np.zeros(len(a))) + a
        steps = state.get("steps", np.zeros(1)) + 1
        weights = a[domains.of] / share[domains.of]
        return Weights(weights), {"log_weights": np.log(a), "excess": excess, "total": total, "steps": steps}
