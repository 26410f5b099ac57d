"""DoReMi's domain weights, one token at a time."""

from __future__ import annotations

import math


def step(
    weights: list[float],
    last: list[float],
    tokens: list[tuple[int, float, float]],
    step_size: float,
    smoothing: float,
) -> tuple[list[float], list[float]]:
    """New weights and excesses. tokens: domain, the proxy's loss, the reference's."""
    k = len(weights)
    excess = []
    for d in range(k):
        own = [max(proxy - reference, 0.0) for domain, proxy, reference in tokens if domain == d]
        excess.append(sum(own) / len(own) if own else last[d])
    raised = [w * math.exp(step_size * e) for w, e in zip(weights, excess, strict=True)]
    return [(1 - smoothing) * r / sum(raised) + smoothing / k for r in raised], excess
