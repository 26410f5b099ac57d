"""A weighted sampler for torch's DataLoader: torch's own WeightedRandomSampler is limited to 2^24 rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from curate.errors import CurateError

_AT_ONCE = 1 << 16


class WeightedSampler(Sampler[int]):
    """Row positions drawn at random in proportion to their weights, with or without replacement.

    weights: one per row, non-negative, such as an export's column `loss_weight`. draws: positions per epoch; by default
    the number of rows (without replacement: of rows with a positive weight). The draws depend only on `seed` and
    `set_epoch`. Memory: 8 bytes per row, and 8 more without replacement. Raises CurateError for unusable weights.

    Reference for drawing without replacement: Efraimidis and Spirakis, "Weighted random sampling with a reservoir"
    (2006): the rows with the largest log(u) / w.

    >>> list(WeightedSampler([0.0, 1.0], draws=3))
    [1, 1, 1]
    """

    def __init__(
        self, weights: Sequence[float] | np.ndarray, draws: int | None = None, replacement: bool = True, seed: int = 0
    ):
        self.weights = np.asarray(weights, np.float64)
        if not (np.isfinite(self.weights) & (self.weights >= 0)).all() or not self.weights.any():
            raise CurateError("weights to draw by are numbers of 0 or more, and not all of them 0.")
        n_positive = int((self.weights > 0).sum())
        self.draws = (len(self.weights) if replacement else n_positive) if draws is None else draws
        if not replacement and self.draws > n_positive:
            raise CurateError(
                f"without replacement {self.draws} draws need as many rows with a weight; {n_positive} have one."
            )
        self.replacement, self.seed, self.epoch = replacement, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, each of which has other draws, as in DistributedSampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if not self.replacement:
            with np.errstate(divide="ignore"):
                keys = np.log(rng.random(len(self.weights))) / self.weights
            keys[self.weights == 0] = -np.inf
            best = np.argpartition(-keys, self.draws - 1)[: self.draws] if self.draws else np.zeros(0, np.int64)
            yield from best[np.argsort(-keys[best], kind="stable")].tolist()
            return
        ends = np.cumsum(self.weights)
        for start in range(0, self.draws, _AT_ONCE):
            points = rng.random(min(_AT_ONCE, self.draws - start)) * ends[-1]
            yield from np.searchsorted(ends, points, side="right").tolist()
