"""What is used of scipy.optimize; see ../stats."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

def nnls(
    A: ArrayLike, b: ArrayLike, *, maxiter: int | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]: ...
