"""De-duplication by weights, slowly: what a cluster weighs in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def inverse_copies(clusters: Sequence[str], power: float) -> list[float]:
    """The weight of each sample, by the cluster that it is in."""
    size = Counter(clusters)
    return [1 / size[c] ** power for c in clusters]
