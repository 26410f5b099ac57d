from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class MagnitudeSmall(Mask):
    """The smallest weights, chosen anew during training, without gradients (NanoAdam).

    Formula:

        chosen: the budget's smallest |w_j|, of all matrices together (scope=global) or of each (scope=tensor)

    and again after every `interval` steps, from the weights at that time; 0: once. Norms and biases are skipped, and so
    is what `exclude` names.

    Cost: no matrix products; two passes over the weights. Memory: one matrix in float64, and 8 bytes per chosen weight.

    Departures: it is not known whether the ranking is global or per tensor, or what happens to the moments when the
    mask changes; here the moments of weights that stay chosen are kept, those of newly chosen ones start from zero.

    Reference: NanoAdam, as a baseline of DualSFT, arXiv:2605.06166 (mask by weights, smallest first).

    >>> import numpy as np
    >>> weights = {"a": np.array([[3.0, -1.0], [0.5, 2.0]]), "norm": np.array([0.0, 0.0])}
    >>> {n: p.tolist() for n, p in MagnitudeSmall().init(Parameters(weights, 2)).items()}
    {'a': [1, 2]}
    """

    interval: int = 0
    """Steps after which the choice is repeated; 0: never."""
    scope: Literal["global", "tensor"] = "global"
    """global: the smallest of all; tensor: each matrix gets its share by size."""
    exclude: str = ""
    """Parts of names of parameters to skip, separated by commas: embed_tokens,lm_head."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        excluded = [part.strip() for part in self.exclude.split(",") if part.strip()]
        sizes = {
            name: int(np.prod(weight.shape))
            for name, weight in given.weights.items()
            if weight.ndim >= 2 and not any(part in name for part in excluded)
        }

        def smallness(name: str) -> np.ndarray:
            return -np.abs(np.asarray(given.weights[name]))

        if self.scope == "global":
            return largest(smallness, sizes, given.budget)
        return largest_of_each(smallness, sizes, apportion(sizes, given.budget))
