"""Non-negative least squares from inner products alone. Plain arrays in float64."""

from __future__ import annotations

import numpy as np

_ROUNDS = 30  # of the active set, for each coefficient; it needs some two


def nonnegative(gram: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """The w >= 0, float64 [n], that minimises w^T G w - 2 b^T w.

    gram: G, symmetric and positive semi-definite, float64 [n, n]. aligned: b, float64 [n]. Coefficients that are of no
    use at the solution are exactly 0. If G is singular, one of the solutions is returned.

    With a root A of G (G = A^T A) and A^T y = b this is the non-negative least squares of A w = y, which
    scipy.optimize.nnls solves by the active set of Lawson and Hanson (1974). The root is taken from the eigenvalues
    and not by Cholesky, since gradients that depend on each other make G singular.
    """
    from scipy.optimize import nnls

    n = len(aligned)
    values, vectors = np.linalg.eigh(gram)
    kept = values > n * np.finfo(float).eps * values.max(initial=0.0)  # the others are rounding
    if not kept.any():
        return np.zeros(n)
    root, basis = np.sqrt(values[kept]), vectors[:, kept].T
    return nnls(root[:, None] * basis, basis @ aligned / root, maxiter=_ROUNDS * n)[0]
