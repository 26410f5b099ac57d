from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class MagnitudeSmall(Mask):
    """The smallest weights, chosen anew during training, without gradients (NanoAdam).

    Formula:

        chosen: the budget's smallest |w_j|, of all matrices together (scope=global) or of each (scope=tensor)

    and again after every `interval` steps, from the weights at that time; 0: once. With density_interval=d and
    densities=s1,s2,… the number of weights changes during training (NanoAdam's dynamic density): after d steps s1 times
    what the mask began with are chosen, after 2 d steps s2 times, and so on; the last one stays. Norms and biases are
    skipped, and so is what `exclude` names.

    Cost: no matrix products; two passes over the weights, each time. Memory: one matrix in float64, and 8 bytes per
    chosen weight.

    Departures: the paper's algorithm has an initial density (here --frac), a mask interval, a density interval, and a
    schedule that gives the next density from the last, the step and the number of steps; what that schedule is is not
    known, so its values are yours to give, and there is no default. Nor is it known whether the ranking is global or
    per tensor, what happens to the moments when the mask changes (here those of weights that stay chosen are kept,
    those of newly chosen ones start from zero), or which layers its exclude_layers names. DualSFT's comparison has no
    dynamic density.

    Reference: Zhou et al., "Pay Attention to Small Weights" (NanoAdam), NeurIPS 2025, arXiv:2506.21374, Algorithm 1;
    the names of its code's settings; a baseline of DualSFT, arXiv:2605.06166 (mask by weights, smallest first).

    >>> import numpy as np
    >>> weights = {"a": np.array([[3.0, -1.0], [0.5, 2.0]]), "norm": np.array([0.0, 0.0])}
    >>> {n: p.tolist() for n, p in MagnitudeSmall().init(Parameters(weights, 2)).items()}
    {'a': [1, 2]}
    >>> fewer = MagnitudeSmall(density_interval=10, densities="0.5")
    >>> [fewer.update(Parameters(weights, 2, taken=n))["a"].tolist() for n in (5, 10, 25)]
    [[1, 2], [2], [2]]
    """

    interval: int = 0
    """Steps after which the choice is repeated (NanoAdam's mask_interval); 0: never."""
    scope: Literal["global", "tensor"] = "global"
    """global: the smallest of all; tensor: each matrix gets its share by size."""
    exclude: str = ""
    """Parts of names of parameters to skip, separated by commas: embed_tokens,lm_head."""
    density_interval: int = 0
    """Steps after which the number of chosen weights changes, to the next of `densities`; 0: never."""
    densities: str = ""
    """Shares of the number that the mask begins with, above 0 and at most 1, separated by commas: 0.8,0.6,0.4."""

    def __post_init__(self) -> None:
        if min(self.interval, self.density_interval) < 0:
            raise CurateError("magnitude_small: interval and density_interval are numbers of steps, 0 or more.")
        if bool(self.density_interval) != bool(self._shares()):
            raise CurateError(
                "magnitude_small: density_interval and densities go together: after how many steps the number of "
                "weights changes, and to which shares of what it began with, as in density_interval=100, "
                "densities=0.8,0.6."
            )

    def _shares(self) -> list[float]:
        """`densities` as numbers."""
        try:
            shares = [float(part) for part in self.densities.split(",") if part.strip()]
        except ValueError:
            shares = [0.0]
        if not all(0 < share <= 1 for share in shares):
            raise CurateError(
                f"densities={self.densities} of magnitude_small are shares above 0 and at most 1, separated by commas, "
                "as in 0.8,0.6,0.4; --frac is the largest density."
            )
        return shares

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        return self._smallest(given, given.budget)

    def update(self, given: Parameters) -> dict[str, np.ndarray]:
        periods = given.taken // self.density_interval if self.density_interval else 0
        share = [1.0, *self._shares()][min(periods, len(self._shares()))]
        return self._smallest(given, max(1, round(share * given.budget)))

    def _smallest(self, given: Parameters, count: int) -> dict[str, np.ndarray]:
        excluded = [part.strip() for part in self.exclude.split(",") if part.strip()]
        sizes = {
            name: int(np.prod(weight.shape))
            for name, weight in given.weights.items()
            if weight.ndim >= 2 and not any(part in name for part in excluded)
        }

        def smallness(name: str) -> np.ndarray:
            return -np.abs(np.asarray(given.weights[name]))

        if self.scope == "global":
            return largest(smallness, sizes, count)
        return largest_of_each(smallness, sizes, apportion(sizes, count))
