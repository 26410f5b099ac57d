"""Random candidates with vectors, for selectors on vectors."""

from __future__ import annotations

import numpy as np

from curate.kinds.selector import Candidates


def pool(n: int = 80, d: int = 6, seed: int = 0, repeats: int = 0) -> Candidates:
    """Random candidates, the first `repeats` of which stand there twice, and nine examples of three sub-tasks."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d))
    vectors[n - repeats :] = vectors[:repeats]
    values = rng.normal(size=n).tolist()
    return Candidates.of(values, vectors=vectors, target=rng.normal(size=(9, d)), subtasks=[*"abcabcabc"])


def unit(candidates: Candidates) -> np.ndarray:
    return candidates.require_vectors("test").astype(np.float64)
