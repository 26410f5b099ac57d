"""What each selector promises beyond the laws."""

from __future__ import annotations

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates
from curate.methods.selectors.dsir import Dsir
from curate.methods.selectors.quota import Quota
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top

POOL = Candidates.of([5.0, 1.0, 4.0, 3.0, 2.0, 0.0], ["a", "a", "a", "b", "b", "c"])


def test_top_takes_the_highest_and_a_token_budget_cuts_the_ranking() -> None:
    assert Top().select(POOL, Budget("rows", 3), 0).tolist() == [0, 2, 3]
    sized = Candidates.of([3.0, 2.0, 1.0], sizes=[4.0, 5.0, 1.0])
    assert Top().select(sized, Budget("tokens", 9), 0).tolist() == [0, 1]
    assert Top().select(sized, Budget("tokens", 8.5), 0).tolist() == [0]  # a ranking is cut, never skipped through


def test_with_equal_values_the_first_ids_are_taken_whatever_the_budget() -> None:
    values = np.random.default_rng(0).integers(0, 4, 200).astype(float)
    ranking = sorted(range(200), key=lambda i: (-values[i], i))
    for n in range(1, 202):
        assert Top().select(Candidates.of(values.tolist()), Budget("rows", n), 0).tolist() == ranking[:n]


def test_a_selector_that_ranks_says_that_it_needs_a_value() -> None:
    bare = Candidates(POOL.ids, None, POOL.sources, POOL.source_names, POOL.sizes)
    for selector in (Top(), Quota(), Dsir()):
        with pytest.raises(CurateError, match="--by"):
            selector.select(bare, Budget("rows", 1), 0)
    assert len(Random().select(bare, Budget("rows", 2), 0)) == 2


def test_random_is_uniform_and_a_larger_budget_contains_the_smaller() -> None:
    n, draws = 20, 4000
    pool = Candidates.of([0.0] * n)
    counts = np.zeros(n)
    for seed in range(draws):
        counts[Random().select(pool, Budget("rows", 5), seed)] += 1
    expected = draws * 5 / n
    assert ((counts - expected) ** 2 / (expected * 0.75)).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    small, large = (set(Random().select(pool, Budget("rows", k), 7).tolist()) for k in (5, 12))
    assert small < large


def test_random_and_dsir_do_not_move_when_others_leave() -> None:
    pool = Candidates.of(list(np.linspace(0, 3, 50)))
    for selector in (Random(), Dsir(), Top()):
        chosen = pool.ids[selector.select(pool, Budget("rows", 10), 3)]
        keep = np.isin(pool.ids, chosen) | (np.arange(50) % 2 == 0)
        fewer = Candidates(pool.ids[keep], pool.values[keep], pool.sources[keep], [""], pool.sizes[keep])  # type: ignore[index]
        assert fewer.ids[selector.select(fewer, Budget("rows", 10), 3)].tolist() == chosen.tolist()


def test_dsir_draws_in_proportion_to_exp_of_the_value() -> None:
    pool, draws = Candidates.of(np.log([1.0, 2.0, 5.0]).tolist()), 6000
    counts = np.zeros(3)
    for seed in range(draws):
        counts[Dsir().select(pool, Budget("rows", 1), seed)] += 1
    expected = draws * np.array([1, 2, 5]) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-squared, 2 degrees, p = 0.001


def test_dsir_with_a_temperature_draws_in_proportion_to_exp_of_value_over_it() -> None:
    pool, draws, counts = Candidates.of(np.log([1.0, 4.0, 16.0]).tolist()), 6000, np.zeros(3)
    for seed in range(draws):
        counts[Dsir(temperature=2.0).select(pool, Budget("rows", 1), seed)] += 1
    expected = draws * np.array([1, 2, 4]) / 7
    assert ((counts - expected) ** 2 / expected).sum() < 13.8
    with pytest.raises(CurateError, match="temperature"):
        Dsir(temperature=float("nan"))


def test_dsir_goes_to_top_as_the_temperature_falls() -> None:
    chosen = Dsir(temperature=1e-6).select(POOL, Budget("rows", 3), 0)
    assert chosen.tolist() == Top().select(POOL, Budget("rows", 3), 0).tolist()


def test_quota_shares_the_budget_and_hands_on_what_a_source_cannot_fill() -> None:
    assert Quota(shares="a:1,b:1").select(POOL, Budget("rows", 4), 0).tolist() == [0, 2, 3, 4]
    everywhere = Quota(shares="a:1,b:1,c:2")
    assert sorted(everywhere.select(POOL, Budget("rows", 5), 0).tolist()) == [0, 2, 3, 4, 5]  # c has one, not 2.5
    left = Quota(shares="a:1,b:1,c:2", shortfall="leave").select(POOL, Budget("rows", 4), 0)
    assert sorted(left.tolist()) == [0, 3, 5]
    assert sorted(Quota().select(POOL, Budget("rows", 3), 0).tolist()) == [0, 2, 3]  # 3:2:1 of three rows


def test_quota_shares_tokens_without_rounding_them() -> None:
    sized = Candidates.of([3.0, 2.0, 1.0], ["a", "b", "b"], [2.5, 2.4, 0.1])
    assert Quota(shares="a:1,b:1").select(sized, Budget("tokens", 5.0), 0).tolist() == [0, 1, 2]


def test_quota_names_what_is_wrong_with_its_shares() -> None:
    for shares, word in (
        ("a:inf", "0 or more"),
        ("a:1,a:2", "twice"),
        ("a:x", "number"),
        ("d:1", "did you mean|there is"),
        ("a:-1", "0 or more"),
    ):
        with pytest.raises(CurateError, match=word):
            Quota(shares=shares).select(POOL, Budget("rows", 2), 0)
