"""Matrices preconditioned by a curvature that is diagonal in the product of two bases (K-FAC, EK-FAC). Plain arrays."""

from __future__ import annotations

import numpy as np


def eigenbasis(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues, ascending, float64 [n], none below 0, and the eigenvectors as columns, float64 [n, n], of a
    symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    return values.clip(min=0.0), vectors


def damped_inverse(
    values: np.ndarray, eigenvalues: np.ndarray, damping: float, bases: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """(F + lambda)^-1 applied to matrices, values [..., m, n], float64, with F diagonal in the products of the bases'
    columns, [m, m] and [n, n] (None: in the elements), eigenvalues [m, n], and lambda `damping` times their mean; 0
    where all eigenvalues are 0, as nothing moves the loss there.

    Source: George et al., arXiv:1806.03884; the damping as in Grosse et al., arXiv:2308.03296."""
    values, eigenvalues = np.asarray(values, np.float64), np.asarray(eigenvalues, np.float64)
    level = damping * float(eigenvalues.mean())
    if not eigenvalues.any():
        return np.zeros_like(values)
    if bases is None:
        return values / (eigenvalues + level)
    rows, columns = (np.asarray(basis, np.float64) for basis in bases)
    return rows @ ((rows.T @ values @ columns) / (eigenvalues + level)) @ columns.T
