"""d4: against every pair of a cluster, and on planted duplicates and prototypes."""

from __future__ import annotations

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates
from curate.methods.selectors.d4 import D4
from curate.numerics.faiss_index import clusters
from tests.oracles import d4 as slow
from tests.support.candidates import pool, unit


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dedup", [0.5, 0.75, 1.0])
def test_it_leaves_out_what_is_alike_and_then_what_is_typical(dedup: float, seed: int) -> None:
    given = pool(n=100, seed=seed, repeats=15)
    vectors = given.require_vectors("test")
    cluster, cosine, _ = clusters(vectors, given.ids, 10, seed, 20)
    stay = slow.deduplicated(unit(given), cluster.tolist(), cosine.tolist(), round(dedup * 100))
    _, again, _ = clusters(vectors[stay], given.ids[stay], round(len(stay) ** 0.5), seed + 1, 20)
    want = slow.diversified(stay, again.tolist(), 30)
    assert D4(dedup).select(given, Budget("rows", 30), seed).tolist() == want


def test_duplicates_go_first_and_prototypes_next() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4) * 5
    spread = [centres[i % 4] + rng.normal(size=4) * (0.02 if i < 20 else 1.5) for i in range(60)]  # 20 near a centre
    given = Candidates.of(vectors=[*spread, *spread[20:40]])  # 20 stand twice
    chosen = D4(clusters=4).select(given, Budget("rows", 40), 0)
    assert np.sum(chosen < 20) <= 4  # hardly a prototype
    twice = [i for i in range(20, 40) if i in chosen and i + 40 in chosen]
    assert not twice


def test_a_budget_over_the_share_is_filled_and_settings_are_checked() -> None:
    given = pool(n=50)
    assert len(D4().select(given, Budget("rows", 45), 0)) == 45
    assert len(D4().select(given, Budget("rows", 500), 0)) == 50
    alone = Candidates.of(vectors=[[1, 0]], sizes=[5])
    assert D4(dedup=0.5).select(alone, Budget("tokens", 3), 0).tolist() == []
    with pytest.raises(CurateError, match="d4 needs dedup above 0"):
        D4(dedup=0.0)
