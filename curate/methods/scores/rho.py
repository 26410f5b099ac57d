from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Rho(Score):
    """Reducible loss: what the model has yet to learn of a sample that a reference model already knows.

    Formula, with nll the mean negative log likelihood of the answer's tokens given the prompt:

        score = nll(base) - nll(reference)

    Noise has a high loss under both, and what is learnt already a low one under both, so neither scores high. Columns:
    `base`, `reference`. Give both models: --model base=M --model reference=R; R was trained on what is wanted (holdout
    data of the target's kind).

    Cost: one forward pass through each model, 2N FLOPs a token; the first is shared with the other scores asked for
    beside it. Limit: the device's matrix products.

    Departures: the paper chooses inside the training step, with the model as it is then; this is the offline form, with
    the base as it is now. Each model cuts the answer by its own tokenizer; with two tokenizers the means are not of the
    same tokens, so take models that share one.

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
