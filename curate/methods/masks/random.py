from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.hashing import fingerprint
from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion


@dataclass(frozen=True)
class Random(Mask):
    """Parameters drawn at random: the baseline every other mask must beat.

    Formula: each parameter tensor gets its share of the budget by size, every set of its elements being equally likely.
    The draw is a pure function of the seed and the parameter's name.

    Cost: no matrix products. Memory: a permutation of one parameter tensor.

    Departures: none; there is no paper.

    Reference: the random masks of DualSFT's comparison, arXiv:2605.06166, Section 5.

    >>> import numpy as np
    >>> chosen = Random().init(Parameters({"a": np.zeros((4, 5)), "b": np.zeros(20)}, 10))
    >>> {name: len(places) for name, places in chosen.items()}
    {'a': 5, 'b': 5}
    """

    seed: int = 0
    """Seed of the draw."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        sizes = {name: int(np.prod(weight.shape)) for name, weight in given.weights.items()}
        selected = {}
        for name, count in apportion(sizes, given.budget).items():
            rng = np.random.default_rng(int(fingerprint("mask", self.seed, name), 16))
            selected[name] = np.sort(rng.choice(sizes[name], count, replace=False))
        return selected
