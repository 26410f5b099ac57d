from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class MagnitudeSmall(Mask):
    """The smallest weights, chosen anew as they learn, without a gradient (NanoAdam).

    Formula:

        chosen: the budget's smallest |w_j|, of all matrices together (scope=global) or of each (scope=tensor)

    and again after every `interval` steps, of the weights as they are then; 0: once. Norms and biases are left alone,
    and so is what `exclude` names.

    Cost: no FLOPs of matrix products; two looks at every weight. It holds one matrix in float64, and 8 bytes for each
    number that is chosen.

    Departures: whether the ranking is of all or of each tensor, and what becomes of moments when the mask changes, is
    not known; the moments of what stays are kept, those of the rest start from zero.

    Reference: NanoAdam, as a baseline of DualSFT, arXiv:2605.06166 (mask by weights, smallest first).

    >>> import numpy as np
    >>> weights = {"a": np.array([[3.0, -1.0], [0.5, 2.0]]), "norm": np.array([0.0, 0.0])}
    >>> {n: p.tolist() for n, p in MagnitudeSmall().init(Parameters(weights, 2)).items()}
    {'a': [1, 2]}
    """

    interval: int = 0
    """Steps after which it is chosen anew; 0: never."""
    scope: Literal["global", "tensor"] = "global"
    """global: the smallest of all; tensor: each matrix has its share by size."""
    exclude: str = ""
    """Parts of names that are left alone, separated by commas: embed_tokens,lm_head."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        left_alone = [part.strip() for part in self.exclude.split(",") if part.strip()]
        sizes = {
            name: int(np.prod(weight.shape))
            for name, weight in given.weights.items()
            if weight.ndim >= 2 and not any(part in name for part in left_alone)
        }

        def smallness(name: str) -> np.ndarray:
            return -np.abs(np.asarray(given.weights[name]))

        if self.scope == "global":
            return largest(smallness, sizes, given.budget)
        return largest_of_each(smallness, sizes, apportion(sizes, given.budget))
