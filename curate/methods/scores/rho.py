from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Rho(Score):
    """Reducible loss: how much higher a sample's loss is under the model than under a reference model.

    Formula, with nll the mean negative log likelihood of the answer's tokens given the prompt:

        score = nll(base) - nll(reference)

    Noise has a high loss under both models, and what is already learned has a low one, so neither scores high. Columns:
    `base`, `reference`. Pass both models: --model base=M --model reference=R; R should be trained on holdout data of
    the target's kind.

    Cost: one forward pass through each model, 2N FLOPs per token; the first is shared with other scores requested
    together. Bottleneck: the device's matrix products.

    Departures: the paper selects inside the training step, with the current model; this is the offline form, with a
    fixed base. Each model splits the answer with its own tokenizer; with two tokenizers the means are not over the same
    tokens, so use models that share one.

    Reference: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
    Learnt", ICML 2022, arXiv:2206.07137, Equation 3.

    >>> import numpy as np
    >>> requests = {"base": {"mean": np.array([2.0, 2.0])}, "reference": {"mean": np.array([0.5, 2.0])}}
    >>> Rho().passes(None)[0].map(requests, None)["score"].tolist()
    [1.5, 0.0]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base", "reference")
    columns: ClassVar = {"base": "float32", "reference": "float32"}

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
        return {"score": base - reference, "base": base, "reference": reference}
