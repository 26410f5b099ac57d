from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Davir(Score):
    """Share of a sample's loss that training on the whole pool removes (DavIR).

    Formula, with nll the mean negative log likelihood of the answer's tokens given the prompt:

        score = (nll(base) - nll(reference)) / nll(base)

    The reference is the base after training on the whole pool: --model base=M --model reference=FOLDER, the folder that
    `curate train` names at the end. Unlike `rho`, which is a difference, it does not favour samples whose losses are
    high to begin with. Columns: `base`, `reference`.

    Cost: one forward pass through each model, 2N FLOPs per token; training the reference is a run of its own and costs
    more. Bottleneck: the device's matrix products.

    Departures: descriptions of the method differ in which loss is the denominator (`over`); both give the same ranking,
    as each is a monotone function of nll(reference) / nll(base). A sample whose denominator is 0 has no score.

    Reference: Zhou et al., "DavIR: Data Selection via Implicit Reward for Large Language Models", 2023,
    arXiv:2310.13008.

    >>> requests = {"base": {"mean": np.array([2.0, 0.5])}, "reference": {"mean": np.array([1.0, 0.4])}}
    >>> Davir().passes(None)[0].map(requests, None)["score"].round(3).tolist()
    [0.5, 0.2]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base", "reference")
    columns: ClassVar = {"base": "float32", "reference": "float32"}

    over: Literal["base", "reference"] = "base"
    """Which model's loss is the denominator."""

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (
            Pass(
                "forward", self._score, requests={role: ForwardRequest(self._token, model=role) for role in self.models}
            ),
        )

    def _token(self, at: Logits) -> Any:
        return -at.label_log_p

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        base, reference = requests["base"]["mean"], requests["reference"]["mean"]
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (base - reference) / requests[self.over]["mean"]
        return {"score": score, "base": base, "reference": reference}
