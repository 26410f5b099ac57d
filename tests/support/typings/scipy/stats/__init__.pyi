"""What is used of scipy.stats. scipy has no types: to work them out takes a type checker a third of its whole time."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

class ConstantInputWarning(RuntimeWarning): ...

class _Result:
    statistic: np.float64
    pvalue: np.float64

class _Distribution:
    def ppf(self, q: float, *args: float, **kwds: float) -> np.float64: ...

t: _Distribution

def spearmanr(
    a: ArrayLike,
    b: ArrayLike | None = None,
    axis: int | None = 0,
    nan_policy: Literal["propagate", "raise", "omit"] = "propagate",
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
) -> _Result: ...
def rankdata(
    a: ArrayLike,
    method: Literal["average", "min", "max", "dense", "ordinal"] = "average",
    *,
    axis: int | None = None,
    nan_policy: Literal["propagate", "raise", "omit"] = "propagate",
) -> np.ndarray[Any, np.dtype[np.float64]]: ...
def mannwhitneyu(
    x: ArrayLike,
    y: ArrayLike,
    use_continuity: bool = True,
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
) -> _Result: ...
