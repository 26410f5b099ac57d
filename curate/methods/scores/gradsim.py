from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.gradients.mean_gradient import along_mean, mean_gradient, opened
from curate.kinds.passes import Columns, GradientCollector, GradientRequest, Pass
from curate.kinds.score import Score, Target

if TYPE_CHECKING:
    from curate.gradients.backward import CheckpointView
    from curate.gradients.collectors import Directions


@dataclass(frozen=True)
class Gradsim(Score):
    """Similarity of the sample's gradient to the mean gradient of the pool.

    Formula, with g_i the gradient of the mean loss of sample i's supervised tokens with respect to the parameters (all
    of --model, or those trained in the last of --checkpoints), and i over all N samples that have one:

        score_i = cos(g_i, G),    G = mean over i of g_i

    It is high for samples whose gradient agrees with most of the pool's. LHAS's gradient selector can be read as this
    score or as `gradnorm`. Column: `length` |g_i|.

    Cost: two passes, each 2N forward and 2N backward for each token; the first sums the gradients (2N more), the second
    computes their norms and inner products with G (4N more). Bottleneck: the device's matrix products. Memory: about 20
    bytes per parameter. New data changes G, so the score depends on the whole pool.

    Departures: the paper compares with the current batch; offline that is the pool.

    Reference: "The Long-Term Effects of Data Selection in LLM Fine-Tuning" (LHAS), arXiv:2605.30537, Section 4.

    >>> requests = {"gradient": {"dot": np.array([[6.0], [-1.0]])}, "length": {"length": np.array([3.0, 0.5])}}
    >>> mean = opened({"0/w": np.array([[2.0, 0.0]])})  # the state of the first pass
    >>> Gradsim().passes(None)[1].map(requests, mean)["score"].tolist()
    [1.0, -1.0]
    """

    scope: ClassVar = "pool"
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "last"
    ranks_in_bfloat16: ClassVar = True
    columns: ClassVar = {"length": "float32"}

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        requests = {"gradient": along_mean(), "length": GradientRequest(self._length)}
        return mean_gradient(None), Pass("gradients", self._score, open=opened, requests=requests)

    def _length(self, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Lengths

        return Lengths()

    def _score(self, requests: Mapping[str, Columns], mean: Directions) -> Columns:
        length = requests["length"]["length"]
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"score": requests["gradient"]["dot"][:, 0] / (length * mean.length()), "length": length}
