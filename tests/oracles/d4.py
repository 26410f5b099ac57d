"""D4 of given clusters, slowly: every pair of a cluster, one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deduplicated(unit: np.ndarray, cluster: Sequence[int], cosine: Sequence[float], left: int) -> list[int]:
    """The `left` samples that resemble least what lies farther out in their cluster. unit: float64 [N, D]."""
    likeness = []
    for j in range(len(unit)):
        before = [i for i in range(len(unit)) if cluster[i] == cluster[j] and (cosine[i], i) < (cosine[j], j)]
        likeness.append(max((float(unit[i] @ unit[j]) for i in before), default=-1.0))
    return sorted(sorted(range(len(unit)), key=lambda j: (likeness[j], j))[:left])


def diversified(rows: Sequence[int], cosine: Sequence[float], k: int) -> list[int]:
    """Those farthest from their new centres. cosine: of each of the rows."""
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (cosine[i], i))[:k]]
