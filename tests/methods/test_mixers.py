"""Mixers by hand and with planted optima, and the draws that follow a mixture."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.kinds.mixer import Domains, Proxies
from curate.kinds.signals import Drawn, Step
from curate.methods.mixers.doremi import Reweighting
from curate.methods.mixers.given import Given
from curate.methods.mixers.proportional import Proportional
from curate.methods.mixers.regmix import Regmix
from curate.methods.mixers.softmax import Softmax
from curate.methods.mixers.temperature import Temperature
from curate.methods.mixers.uniform import Uniform
from curate.numerics.apportion import largest_remainders
from curate.training.mixture_sampler import Draws
from tests.oracles.doremi import step as doremi_step

THREE = Domains(["a", "b", "c"], np.array([50.0, 30.0, 20.0]), np.array([1.0, 2.0, 4.0]))


# --- weights ---------------------------------------------------------------------------------------------


def test_pure_mixers_by_hand() -> None:
    assert Uniform().mix(THREE).weights.tolist() == pytest.approx([1 / 3] * 3)
    assert Proportional().mix(THREE).weights.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert Temperature(1.0).mix(THREE).weights.tolist() == pytest.approx([0.5, 0.3, 0.2])
    roots = [math.sqrt(x) for x in (0.5, 0.3, 0.2)]
    assert Temperature(2.0).mix(THREE).weights.tolist() == pytest.approx([r / sum(roots) for r in roots])
    powers = [math.exp(x / 2) for x in (1, 2, 4)]
    assert Softmax(2.0).mix(THREE).weights.tolist() == pytest.approx([p / sum(powers) for p in powers])
    sd = float(np.std([1, 2, 4]))
    powers = [math.exp(x / sd) for x in (1, 2, 4)]
    found = Softmax(standardize=True).mix(THREE).weights.tolist()
    assert found == pytest.approx([p / sum(powers) for p in powers])
    assert Softmax(1e-3).mix(THREE).weights.tolist() == pytest.approx([0, 0, 1])  # no overflow
    assert Given("c=3, a=1").mix(THREE).weights.tolist() == [0.25, 0, 0.75]
    for wrong in ("", "d=1", "a=-1", "a=x", "a=0", "a"):
        with pytest.raises(CurateError):
            Given(wrong).mix(THREE)


def test_doremi_s_update_on_three_domains_by_hand() -> None:
    """Two steps; the second has no token of the third domain, whose excess stays."""
    share = np.array([0.5, 0.3, 0.2])
    tokens = [
        [(0, 2.0, 1.5), (0, 1.0, 2.0), (1, 3.0, 1.0), (2, 1.0, 0.5), (2, 0.5, 0.5)],
        [(1, 1.0, 1.0), (0, 4.0, 1.0), (0, 2.0, 1.0)],
    ]
    samples = [([0, 1, 2], [2, 1, 2]), ([1, 0], [1, 2])]
    weighting, state = Reweighting(tuple(share.tolist()), 1.0, 1e-2), {}
    weights, excess, total = share.tolist(), [math.log(99)] * 3, [0.0] * 3
    for number, (its, (of, counts)) in enumerate(zip(tokens, samples, strict=True), 1):
        proxy, reference = np.array([t[1] for t in its]), np.array([t[2] for t in its])
        step = Step(
            number,
            counts=np.array(counts),
            token_loss=proxy,
            base_token_loss=reference,
            domains=Drawn(np.array(of), 99),
        )
        given_, state = weighting.update(step, state)
        weights, excess = doremi_step(weights, excess, its, 1.0, 1e-2)
        total = [t + w for t, w in zip(total, weights, strict=True)]
        assert given_.values == pytest.approx([weights[d] / share[d] for d in of], rel=1e-12)
        assert state["excess"] == pytest.approx(excess) and state["total"] == pytest.approx(total, rel=1e-12)
    # the first step by hand: excesses (0.5 + 0) / 2, 2 and (0.5 + 0) / 2
    raised = [0.5 * math.exp(0.25), 0.3 * math.exp(2), 0.2 * math.exp(0.25)]
    first = [0.99 * r / sum(raised) + 0.01 / 3 for r in raised]
    assert doremi_step(share.tolist(), [0, 0, 0], tokens[0], 1.0, 1e-2)[0] == pytest.approx(first)


class Planted(Proxies):
    """Proxies whose loss is a known function of the mixture, with some noise."""

    def __init__(self, loss: Any, noise: float = 0.0):
        self.loss, self.noise = loss, noise

    def train(self, label: str, weights: np.ndarray, weighting: Any = None, reference: str = "") -> Any:
        raise AssertionError

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        lot = np.random.default_rng(0)
        found = self.loss(mixtures)
        return np.stack([found + self.noise * lot.normal(size=len(found)) for _ in range(2)], 1)


FIVE = Domains(list("abcde"), np.array([30.0, 25.0, 20.0, 15.0, 10.0]))


def test_regmix_finds_a_planted_optimum() -> None:
    """A response like a scaling law: each domain helps less, the more there is of it."""
    gains = np.array([0.05, 0.3, 0.1, 0.6, 0.2])

    def loss(x: np.ndarray) -> np.ndarray:
        return 3 - (gains * np.sqrt(x)).sum(1)

    best = gains**2 / (gains**2).sum()  # of sum of g sqrt(x) on the simplex
    found = Regmix(trials=256).mix(FIVE, Planted(loss, noise=0.003))
    at, least = loss(found.weights[None])[0], loss(best[None])[0]
    worst = loss(np.eye(5)).max()
    assert (at - least) / least <= 0.02 and (at - least) / (worst - least) < 0.1
    assert found.info["cross_validated_lightgbm"] > 0.9
    assert loss(FIVE.share[None])[0] > at  # better than the pool as it is


def test_regmix_takes_the_plane_where_a_plane_is_planted_or_trials_are_few() -> None:
    slope = np.array([1.0, 0.5, 2.0, 0.1, 1.5])
    found = Regmix(trials=24).mix(FIVE, Planted(lambda x: x @ slope))
    assert found.info["cross_validated_linear"] == pytest.approx(1) and found.info["cross_validated_lightgbm"] < 0.9
    assert found.weights.argmax() == 3 and found.weights[3] > 0.8
    assert Regmix(trials=24).mix(FIVE, Planted(lambda x: x @ slope)).weights.tolist() == found.weights.tolist()
    forced = Regmix(trials=24, regressor="linear").mix(FIVE, Planted(lambda x: x @ slope))
    assert "cross_validated_lightgbm" not in forced.info


def test_regmix_s_trials_are_mixtures_within_15_times_the_pool_s_share() -> None:
    small = Domains(["a", "b"], np.array([99.0, 1.0]))
    mixtures = Regmix(trials=40).draw(small)
    assert mixtures.sum(1) == pytest.approx(np.ones(40)) and mixtures[:, 1].max() <= 0.15 + 1e-9
    assert not ((mixtures > 0) & (mixtures < 1e-4)).any() and len(np.unique(mixtures, axis=0)) == 40
    many = Domains([f"d{i}" for i in range(60)], np.ones(60))
    assert Regmix(trials=12).draw(many).shape == (12, 60)  # narrow strengths are refused, wide ones are not
    with pytest.raises(CurateError, match="could not be drawn"):
        Regmix(trials=3, folds=2).draw(Domains(["a"], np.array([5.0])))


# --- draws -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=8).filter(any), st.integers(0, 1000))
def test_quotas_add_up_and_are_within_one_of_the_share(share: list[float], size: int) -> None:
    weights = np.array(share)
    found = largest_remainders(weights, size)
    assert found.sum() == size and (np.abs(found - weights / weights.sum() * size) < 1 + 1e-9).all()
    assert (found[weights == 0] == 0).all()


def drawn(exact: bool, seed: int = 0, order: Any = None) -> Draws:
    domain = np.repeat([0, 1, 2], [10, 40, 50])
    keys = np.arange(100, dtype=np.uint64) * 977
    order = np.arange(100) if order is None else order
    return Draws(domain[order], keys[order], np.array([0.5, 0.25, 0.25]), 60, exact, seed)


def test_quota_draws_match_the_mixture_exactly_and_go_through_a_domain_before_they_repeat() -> None:
    draws = drawn(exact=True)
    seen = [draws.samples(e) for e in range(4)]
    for samples in seen:
        assert Counter(draws.domain[samples].tolist()) == {0: 30, 1: 15, 2: 15}
        assert set(Counter(samples[draws.domain[samples] == 0].tolist()).values()) == {3}
    of_1 = np.concatenate([s[draws.domain[s] == 1] for s in seen])[:40]
    assert len(set(of_1.tolist())) == 40  # 2 2/3 epochs, and no sample twice
    shuffled = np.random.default_rng(1).permutation(100)
    other = drawn(exact=True, order=shuffled)
    for e in (0, 3):  # neither the pool's order nor what came before matters
        assert other.keys[other.samples(e)].tolist() == draws.keys[draws.samples(e)].tolist()
    assert drawn(True, seed=1).samples(0).tolist() != seen[0].tolist()


def test_draws_by_lot_match_the_mixture_in_expectation() -> None:
    draws = drawn(exact=False)
    counts = sum(draws.counts(e) for e in range(200))
    from scipy.stats import chisquare

    assert chisquare(counts, draws.share * 60 * 200).pvalue > 1e-3
    each = np.stack([draws.counts(e) for e in range(200)])
    variance = each.var(0) / (60 * draws.share * (1 - draws.share))
    assert (variance > 0.7).all() and (variance < 1.4).all()  # a multinomial's
    ofs = np.concatenate([draws.samples(e) for e in range(200)])
    for d, n in enumerate((10, 40, 50)):  # within a domain all alike, to one round
        found = np.bincount(ofs[draws.domain[ofs] == d], minlength=100)[draws.domain == d]
        assert len(found) == n and np.ptp(found) <= 1
