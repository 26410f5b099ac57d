from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.kinds.passes import Arrays, Columns, GradientCollector, GradientRequest, Pass
from curate.kinds.score import Score, Target

if TYPE_CHECKING:
    from curate.gradients.backward import CheckpointView


@dataclass(frozen=True)
class Gradnorm(Score):
    """Norm of the sample's gradient: how much the model would have to change for it (GraNd).

    Formula, with l the mean loss of the sample's supervised tokens:

        score = | gradient of l by the parameters |_2

    with respect to all parameters of --model, or to those trained in the last of --checkpoints (for an adapter, LoRA's
    matrices). It is high for what the model has yet to learn, and for noise; the paper keeps the highest.

    Cost: 2N forward and 2N backward for each token, and about 2N more for the norms of the matrices' gradients, which
    are never all in memory at once. Bottleneck: the device's matrix products.

    Departures: the paper averages over several models early in training; this is one model: average the scores of
    several --checkpoints in SQL. For language models the loss is averaged over tokens, where the paper has one label.

    Reference: Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training", NeurIPS 2021,
    arXiv:2107.07075, Definition 2.1; LHAS (arXiv:2605.30537), Appendix A, where it is a selector.

    >>> requests = {"gradient": {"length": np.array([3.0, 0.5])}}
    >>> Gradnorm().passes(None)[0].map(requests, None)["score"].tolist()
    [3.0, 0.5]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "last"
    ranks_in_bfloat16: ClassVar = True

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("gradients", self._score, requests={"gradient": GradientRequest(self._watch)}),)

    def _watch(self, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Lengths

        return Lengths()

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return {"score": requests["gradient"]["length"]}
