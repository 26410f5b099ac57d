"""Upper triangular matrices as flat rows: d x d of them in d (d + 1) / 2 numbers, row after row."""

from __future__ import annotations

from math import isqrt

import numpy as np


def packed(matrices: np.ndarray) -> np.ndarray:
    """The upper triangles of matrices [..., d, d] as [..., d (d + 1) / 2]."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def unpacked(flat: np.ndarray) -> np.ndarray:
    """The upper triangular matrices, [..., d, d], of `packed`."""
    d = side(flat.shape[-1])
    assert d
    matrices = np.zeros((*flat.shape[:-1], d, d), flat.dtype)
    rows, columns = np.triu_indices(d)
    matrices[..., rows, columns] = flat
    return matrices


def side(width: int) -> int:
    """d for which d (d + 1) / 2 is this width; 0 if there is none."""
    d = (isqrt(8 * width + 1) - 1) // 2
    return d if d * (d + 1) // 2 == width else 0
