from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest_of_each


@dataclass(frozen=True)
class Principal(Mask):
    """The weights that stand out once a matrix is cut to its leading singular values (LIFT).

    Formula, of each matrix W [m, n]:

        W_r = sum over the rank largest singular values of  s u v^T
        chosen: the largest |W_r|, of each matrix in proportion to m + n

    and again after every `interval` steps, of the weights as they are then; 0: once. Embeddings and the head
    (`exclude`) are left alone, and what is no matrix is.

    Cost: a singular value decomposition of every matrix, about 14 m n min(m, n) FLOPs each, on the processor. It holds
    one matrix and its decomposition.

    Departures: the published code takes (m + n) lora_rank numbers of each matrix; here the budget (--frac) says how
    many in all, shared in the same proportion, and no matrix gives more than it has. Moments of what stays are kept
    when the mask changes, as in the code.

    Reference: LIFT (low-rank-informed sparse fine-tuning), its code's sparse Adam; a baseline of DualSFT,
    arXiv:2605.06166.

    >>> import numpy as np
    >>> w = np.outer([3.0, 0.1, 0.1], [2.0, 0.0, 1.0])
    >>> {n: p.tolist() for n, p in Principal(rank=1).init(Parameters({"w": w}, 2)).items()}
    {'w': [0, 2]}
    """

    rank: int = 128
    """Singular values that are kept."""
    interval: int = 0
    """Steps after which it is chosen anew; 0: never."""
    exclude: str = "embed,lm_head,wte,wpe"
    """Parts of names that are left alone, separated by commas."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        left_alone = [part.strip() for part in self.exclude.split(",") if part.strip()]
        matrices = {
            name: weight
            for name, weight in given.weights.items()
            if weight.ndim == 2 and not any(part in name for part in left_alone)
        }
        counts = apportion({name: sum(weight.shape) for name, weight in matrices.items()}, given.budget)
        found = {}
        for name, weight in matrices.items():  # one decomposition at a time, and each once
            cut = {name: np.abs(self._cut(np.asarray(weight, np.float64)))}
            found |= largest_of_each(cut.__getitem__, {name: weight.size}, counts)
        return found

    def _cut(self, weight: np.ndarray) -> np.ndarray:
        """The nearest matrix of that rank."""
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        return (u[:, : self.rank] * s[: self.rank]) @ v[: self.rank]
