"""What holds for every selector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curate.kinds.registry import find, names
from curate.kinds.selector import Budget, Candidates
from curate.kinds.vectors import Vectors

SELECTORS = names("selector")


def candidates(n: int, seed: int, unit: str) -> Candidates:
    rng = np.random.default_rng(seed)
    return Candidates(
        ids=np.sort(rng.choice(2**62, n, replace=False).astype(np.uint64)),
        values=rng.integers(0, max(n // 3, 1), n).astype(float),  # with ties
        sources=rng.integers(0, 3, n),
        source_names=["a", "b", "c"],
        sizes=np.ones(n) if unit == "rows" else rng.uniform(1, 50, n),
        vectors=Vectors.of(np.repeat(rng.normal(size=(n // 2, 8)), 2, axis=0)),  # each of them twice
        target=Vectors.of(rng.normal(size=(5, 8)), subtasks=["a", "b", "a", "b", "a"]),
    )


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("amount", [1, 7, 40, 10_000])
def test_a_selector_keeps_its_budget_and_repeats_nothing(name: str, unit: Any, amount: int) -> None:
    for seed in range(5):
        pool, selector = candidates(60, seed, unit), find("selector", name)()
        chosen = selector.select(pool, Budget(unit, amount), seed)
        assert len(set(chosen.tolist())) == len(chosen)
        assert pool.sizes[chosen].sum() <= amount
        if unit == "rows" and selector.fills:
            assert len(chosen) == min(amount, 60)
        assert chosen.tolist() == selector.select(pool, Budget(unit, amount), seed).tolist()


@pytest.mark.parametrize("name", [n for n in SELECTORS if n in ("top", "quota")])
def test_ties_break_by_id(name: str) -> None:
    pool = candidates(30, 1, "rows")
    tied = Candidates(pool.ids, np.ones(30), np.zeros(30, dtype=int), ["a"], np.ones(30))
    chosen = find("selector", name)().select(tied, Budget("rows", 10), 0)
    assert chosen.tolist() == list(range(10))
