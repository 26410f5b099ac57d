from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest_of_each


@dataclass(frozen=True)
class Principal(Mask):
    """The largest weights of each matrix's low-rank approximation (LIFT).

    Formula, for each matrix W [m, n]:

        W_r = sum over the rank largest singular values of  s u v^T
        chosen: the largest |W_r|, of each matrix in proportion to m + n

    and again after every `interval` steps, from the weights at that time; 0: once. Embeddings and the head (`exclude`)
    are skipped, and so is everything that is not a matrix.

    Cost: a singular value decomposition of every matrix, about 14 m n min(m, n) FLOPs each, on the CPU. Memory: one
    matrix and its decomposition.

    Departures: the published code takes (m + n) lora_rank weights of each matrix; here the budget (--frac) sets the
    total, split in the same proportion, and no matrix gives more than it has. When the mask changes, the moments of
    weights that stay chosen are kept, as in the code.

    Reference: LIFT (low-rank-informed sparse fine-tuning), its code's sparse Adam; a baseline of DualSFT,
    arXiv:2605.06166.

    >>> import numpy as np
    >>> w = np.outer([3.0, 0.1, 0.1], [2.0, 0.0, 1.0])
    >>> {n: p.tolist() for n, p in Principal(rank=1).init(Parameters({"w": w}, 2)).items()}
    {'w': [0, 2]}
    """

    rank: int = 128
    """How many singular values are kept."""
    interval: int = 0
    """Steps after which the choice is repeated; 0: never."""
    exclude: str = "embed,lm_head,wte,wpe"
    """Parts of names of parameters to skip, separated by commas."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        excluded = [part.strip() for part in self.exclude.split(",") if part.strip()]
        matrices = {
            name: weight
            for name, weight in given.weights.items()
            if weight.ndim == 2 and not any(part in name for part in excluded)
        }
        counts = apportion({name: sum(weight.shape) for name, weight in matrices.items()}, given.budget)
        selected = {}
        for name, weight in matrices.items():  # one decomposition at a time, and each once
            magnitudes = {name: np.abs(self._cut(np.asarray(weight, np.float64)))}
            selected |= largest_of_each(magnitudes.__getitem__, {name: weight.size}, counts)
        return selected

    def _cut(self, weight: np.ndarray) -> np.ndarray:
        """The closest matrix of that rank."""
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        return (u[:, : self.rank] * s[: self.rank]) @ v[: self.rank]
