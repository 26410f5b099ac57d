from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest_of_each

_GATED = ("gate_proj", "up_proj")  # that DualSFT's comparison leaves out


@dataclass(frozen=True)
class Principal(Mask):
    """The largest weights of each matrix's low-rank approximation (LIFT).

    Formula, for each matrix W [m, n]:

        W_r = sum over the r largest singular values of  s u v^T
        r = rank (LIFT's filter_rank), or with rank=0 at least 1 and about rank_share min(m, n)
        chosen: the largest |W_r|, of each matrix in proportion to m + n, the budget in all (--frac)
                with lora_rank=l, as published: min((m + n) l, m n) of each

    and again after every `interval` steps (LIFT's update_interval), from the weights at that time; 0: once. Moments of
    weights that stay chosen are kept, those of newly chosen ones start from zero. Embeddings and the head (`exclude`)
    are skipped, and so is everything that is not a matrix; modules=dualsft leaves out gate and up projections, too, as
    DualSFT's comparison does.

    A rank near the matrix's own is no filter: of a matrix 160 wide, 128 singular values are nearly all of it. The
    default share, 1/32, is the published 128 of 4,096 (its scripts have 64 of 4,096 and of 3,072, and 32 of 2,048).

    Cost: a singular value decomposition of every matrix, about 14 m n min(m, n) FLOPs each, on the CPU, each time.
    Memory: one matrix and its decomposition.

    Departures: the code has lora_rank=128 and no other budget; with it --frac is an upper bound, and less is refused.
    It refreshes one step earlier (after the steps interval - 1, 2 interval - 1, …), and offers a randomised
    decomposition.

    Reference: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
    Reasoning-Focused Supervised Fine-Tuning", ICML 2025, arXiv:2506.00772; its code, src/sparseAdam.py; a baseline of
    DualSFT, arXiv:2605.06166.

    >>> import numpy as np
    >>> w = np.outer([3.0, 0.1, 0.1], [2.0, 0.0, 1.0])
    >>> {n: p.tolist() for n, p in Principal(rank=1).init(Parameters({"w": w}, 2)).items()}
    {'w': [0, 2]}
    >>> len(Principal(rank=1, lora_rank=1).init(Parameters({"w": w}, 9))["w"])  # of the nine that it may choose
    6
    """

    rank: int = 0
    """How many singular values are kept (LIFT recommends 128 for models 4,096 wide); 0: rank_share decides."""
    interval: int = 0
    """Steps after which the choice is repeated; 0: never."""
    exclude: str = "embed,lm_head,wte,wpe"
    """Parts of names of parameters to skip, separated by commas."""
    rank_share: float = 1 / 32
    """With rank=0: the share of a matrix's singular values that are kept; at least one is."""
    modules: Literal["all", "dualsft"] = "all"
    """all: every matrix but those of `exclude`; dualsft: and without gate_proj and up_proj."""
    lora_rank: int = 0
    """As many weights of each matrix as LoRA matrices of this rank would have; 0: the budget in proportion."""

    def __post_init__(self) -> None:
        if min(self.rank, self.lora_rank, self.interval) < 0 or not 0 < self.rank_share <= 1:
            raise CurateError(
                "principal needs rank, lora_rank and interval of 0 or more, and a rank_share above 0 and at most 1, "
                f"not rank={self.rank}, lora_rank={self.lora_rank}, interval={self.interval}, "
                f"rank_share={self.rank_share:g}."
            )

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        excluded = [part.strip() for part in self.exclude.split(",") if part.strip()]
        excluded += _GATED if self.modules == "dualsft" else ()
        matrices = {
            name: weight
            for name, weight in given.weights.items()
            if weight.ndim == 2 and not any(part in name for part in excluded)
        }
        counts = self._counts({name: tuple(weight.shape) for name, weight in matrices.items()}, given.budget)
        selected = {}
        for name, weight in matrices.items():  # one decomposition at a time, and each once
            magnitudes = {name: np.abs(self._cut(np.asarray(weight, np.float64)))}
            selected |= largest_of_each(magnitudes.__getitem__, {name: weight.size}, counts)
        return selected

    def _counts(self, shapes: dict[str, tuple[int, ...]], budget: int) -> dict[str, int]:
        """How many weights each matrix gives. Raises CurateError for more than the budget."""
        if not self.lora_rank:
            return apportion({name: sum(shape) for name, shape in shapes.items()}, budget)
        counts = {name: min((m + n) * self.lora_rank, m * n) for name, (m, n) in shapes.items()}
        if (total := sum(counts.values())) > budget:
            raise CurateError(
                f"lora_rank={self.lora_rank} of principal takes {total:,} weights, and --frac allows {budget:,}: "
                f"take a --frac {total / max(budget, 1):.3g} times as large, or a smaller lora_rank."
            )
        return counts

    def _cut(self, weight: np.ndarray) -> np.ndarray:
        """The closest matrix of that rank."""
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        rank = self.rank or max(1, round(self.rank_share * min(weight.shape)))
        return (u[:, :rank] * s[:rank]) @ v[:rank]
