from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.kinds.score import Warmup
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each

_ATTENTION, _FEED_FORWARD = "attention", "feed-forward layers"
_NAMES = {
    _ATTENTION: ("attn", "attention"),
    _FEED_FORWARD: ("mlp", "feed_forward", "ffn"),
}  # parts of parameters' names


@dataclass(frozen=True)
class GradientBlock(Mask):
    """Square blocks of the matrices with the largest gradients in the first steps of full training (SMT).

    Formula, for each matrix, with T its gradient summed over the warm-up's steps, in blocks of block x block:

        value of a block:  |mean of T|   (measure=mean_abs, the published default)
                           mean of |T|   (measure=abs_mean)
        chosen: the blocks of greatest value, as many as the budget holds, of all matrices together (scope=global) or
        of each matrix its share by size (scope=tensor)

    With attention_share=a, round(a x blocks) of them are of attention's matrices and the others of feed-forward layers,
    each ranked by themselves; with num_submatrix_attn and num_submatrix_mlp, as published, so many blocks of either,
    and --frac is an upper bound. Matrices of neither are then skipped.

    The warm-up trains all parameters for `steps` steps on samples of the pool; the next mask with the same settings
    reuses it. The ledger has its cost (stage mask, phase warm-up), and `curate compare` adds it to that of every run
    with the mask.

    Cost: the warm-up, 6N FLOPs per token of its steps; memory: one gradient more than full training. Choosing takes one
    matrix in float64.

    Departures: the published code continues from the weights that the warm-up ended with; here a training starts from
    whatever model it is given: the mask records where the warm-up's last checkpoint is (`curate train … --model`);
    starting from the original model is a different method. Its default is no block of either kind; its example for
    Llama-2 7B has 890 of attention (q_proj, k_proj, v_proj) and none of feed-forward layers. A matrix with a side that
    is not a multiple of the block is refused, as in the code, or (edges=pad) padded with zeros, which lower the mean.

    Reference: He et al., "SMT: Fine-Tuning Large Language Models with Sparse Matrices", ICLR 2025, arXiv:2405.15525, as
    its code has it: mean_abs, 256, 100 steps, no_restriction; a baseline of DualSFT, arXiv:2605.06166.

    >>> import numpy as np
    >>> pushed = np.array([[9.0, -9.0, 1.0, 1.0], [-9.0, 9.0, 1.0, 1.0]])
    >>> given = Parameters({"w": np.zeros((2, 4))}, 4, gradients=lambda name: pushed)
    >>> {n: p.tolist() for n, p in GradientBlock(block=2).init(given).items()}
    {'w': [2, 3, 6, 7]}
    >>> {n: p.tolist() for n, p in GradientBlock(block=2, measure="abs_mean").init(given).items()}
    {'w': [0, 1, 4, 5]}
    """

    block: int = 256
    """Side of a block."""
    measure: Literal["mean_abs", "abs_mean"] = "mean_abs"
    """|mean| of a block, or the mean of its |values|."""
    scope: Literal["global", "tensor"] = "global"
    """global: the greatest of all; tensor: each matrix gets its share by size."""
    edges: Literal["refuse", "pad"] = "refuse"
    """What to do with matrices that no whole number of blocks covers."""
    exclude: str = "embed,lm_head,wte,wpe"
    """Parts of names of parameters to skip, separated by commas."""
    steps: int = 100
    """Steps of the warm-up."""
    lr: float = 2e-5
    """Learning rate of the warm-up."""
    batch_size: int = 16
    """Batch size of the warm-up."""
    micro_batch_size: int = 16
    """Rows per forward pass in the warm-up."""
    warmup_seed: int = 42
    """Seed of the order of the warm-up's samples."""
    attention_share: float | None = None
    """Share of the blocks that are of attention, the others being of feed-forward layers; none: all ranked together."""
    num_submatrix_attn: int = 0
    """Number of blocks of attention, as in the published code; with the next it replaces the budget."""
    num_submatrix_mlp: int = 0
    """Number of blocks of feed-forward layers."""

    def __post_init__(self) -> None:
        for name in ("block", "steps"):
            if getattr(self, name) < 1:
                raise CurateError(f"{name}={getattr(self, name)} of gradient_block is at least 1.")
        if min(self.num_submatrix_attn, self.num_submatrix_mlp) < 0 or not 0 <= (self.attention_share or 0.0) <= 1:
            raise CurateError(
                "gradient_block needs num_submatrix_attn and num_submatrix_mlp of 0 or more, and an attention_share of "
                f"0 to 1, not {self.num_submatrix_attn}, {self.num_submatrix_mlp} and {self.attention_share}."
            )
        if self._numbers and self.attention_share is not None:
            raise CurateError(
                "gradient_block: num_submatrix_attn and num_submatrix_mlp are the numbers of blocks, which an "
                "attention_share would decide, too; leave one of them out."
            )

    @property
    def _numbers(self) -> int:
        """Blocks that are asked for by number; 0: the budget decides."""
        return self.num_submatrix_attn + self.num_submatrix_mlp

    def warm_up(self) -> Warmup:
        settings = {name: getattr(self, name) for name in ("steps", "lr", "batch_size", "micro_batch_size")}
        return Warmup(1.0, self.warmup_seed, {**settings, "sum_gradients": True})

    def check(self, given: Parameters) -> None:
        side = self.block
        for name, shape in self._shapes(given).items():
            if self.edges == "refuse" and (shape[0] % side or shape[1] % side):
                raise CurateError(
                    f"{name} is {shape[0]} x {shape[1]}, which blocks of {side} do not cover; take another --set "
                    "block=…, or edges=pad."
                )
        if given.budget < side**2:
            raise CurateError(
                f"a block of {side} x {side} has {side**2:,} elements, and the budget is {given.budget:,}; take a "
                "larger --frac or a smaller --set block=…."
            )
        if self._numbers * side**2 > given.budget:
            raise CurateError(
                f"{self._numbers:,} blocks of {side} x {side} have {self._numbers * side**2:,} elements, and --frac "
                f"allows {given.budget:,}; take a larger --frac, or fewer blocks."
            )
        grids = self._grids(given)
        for kind, count in self._wanted(given.budget).items():
            there = sum(rows * columns for name, (rows, columns) in grids.items() if _kind(name) == kind)
            if kind and count > there:
                raise CurateError(
                    f"gradient_block is to choose {count:,} blocks of {kind}, and this model has {there:,}, by its "
                    "parameters' names; take fewer, or leave them to the budget."
                )

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        self.check(given)
        assert given.gradients is not None
        gradient, side, shapes = given.gradients, self.block, self._shapes(given)
        grids = self._grids(given)

        def values(name: str) -> np.ndarray:
            return self._values(np.asarray(gradient(name), np.float64))

        blocks = dict[str, np.ndarray]()
        for kind, count in self._wanted(given.budget).items():
            sizes = {n: rows * columns for n, (rows, columns) in grids.items() if not kind or _kind(n) == kind}
            if self.scope == "global":
                blocks |= largest(values, sizes, count)
            else:
                blocks |= largest_of_each(values, sizes, apportion(sizes, count))
        return {name: _places(shapes[name], side, blocks[name], grids[name][1]) for name in shapes if name in blocks}

    def _wanted(self, budget: int) -> dict[str, int]:
        """How many blocks of each kind of matrix are chosen; '': of all together."""
        if self._numbers:
            return {_ATTENTION: self.num_submatrix_attn, _FEED_FORWARD: self.num_submatrix_mlp}
        count = budget // self.block**2
        if self.attention_share is None:
            return {"": count}
        attention = round(self.attention_share * count)
        return {_ATTENTION: attention, _FEED_FORWARD: count - attention}

    def _grids(self, given: Parameters) -> dict[str, tuple[int, int]]:
        """How many blocks there are of each matrix, down and across."""
        side = self.block
        return {name: (-(-shape[0] // side), -(-shape[1] // side)) for name, shape in self._shapes(given).items()}

    def _shapes(self, parameters: Parameters) -> dict[str, tuple[int, ...]]:
        """The matrices to choose from."""
        excluded = [part.strip() for part in self.exclude.split(",") if part.strip()]
        return {
            name: tuple(weight.shape)
            for name, weight in parameters.weights.items()
            if weight.ndim == 2 and not any(part in name for part in excluded)
        }

    def _values(self, gradient: np.ndarray) -> np.ndarray:
        """The value of each block, float64 [rows / block, columns / block]; incomplete blocks are padded with zeros."""
        side = self.block
        padding = [(0, -length % side) for length in gradient.shape]
        padded = np.pad(gradient, padding)
        tiles = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
        if self.measure == "mean_abs":
            return np.abs(tiles.mean((1, 3)))
        return np.abs(tiles).mean((1, 3))


def _kind(name: str) -> str:
    """What a matrix belongs to, by the usual naming conventions; '': neither."""
    return next((kind for kind, parts in _NAMES.items() if any(part in name for part in parts)), "")


def _places(shape: tuple[int, ...], side: int, blocks: np.ndarray, per_row: int) -> np.ndarray:
    """Flat indices of the elements of these blocks, ascending."""
    indices = [np.zeros(0, np.int64)]
    for block in blocks:
        top, left = side * (block // per_row), side * (block % per_row)
        rows = np.arange(top, min(top + side, shape[0]))
        columns = np.arange(left, min(left + side, shape[1]))
        indices.append((rows[:, None] * shape[1] + columns).ravel())
    return np.sort(np.concatenate(indices))
