"""Non-negative coefficients of a choice: against SciPy, planted, refitted, singular."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from curate.errors import CurateError
from curate.kinds.signals import Products, Step
from curate.methods.weightings._nnls import nonnegative
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.tracin_online import TracinOnline
from tests.oracles import choosing as slow
from tests.support.choosing import STEP, trainer_of


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_coefficients_are_scipy_s_and_satisfy_the_conditions(ridge: float) -> None:
    rng = np.random.default_rng(1)
    for trial in range(300):
        n, d = int(rng.integers(1, 12)), int(rng.integers(1, 14))
        a, y = rng.normal(size=(d, n)) * 10.0 ** rng.integers(-3, 5), rng.normal(size=d) * 10.0 ** rng.integers(-3, 5)
        if trial % 3 == 0 and n > 2:
            a[:, 1] = a[:, 0]  # singular
        more = ridge * np.trace(a.T @ a) / n
        gram, b = a.T @ a + more * np.eye(n), a.T @ y
        w = nonnegative(gram, b)
        slope, size = gram @ w - b, np.abs(b).max() + np.abs(gram).max() * w.sum()
        assert (
            (w >= 0).all()
            and (slope >= -1e-9 * size).all()
            and np.abs(w * slope).sum() <= 1e-9 * size * w.sum() + 1e-300
        )
        other, _ = nnls(np.vstack([a, np.sqrt(more) * np.eye(n)]), np.concatenate([y, np.zeros(n)]))
        least, his = (float(v @ gram @ v - 2 * b @ v) for v in (w, other))
        assert least <= his + 1e-9 * abs(his)
        if ridge:
            assert w == pytest.approx(other, rel=1e-6, abs=1e-9 * max(float(other.max()), 1e-300))


@pytest.mark.parametrize("search", ["residual", "exhaustive"])
def test_three_planted_samples_are_found_with_their_weights(search: Any) -> None:
    rng = np.random.default_rng(2)
    atoms = np.linalg.qr(rng.normal(size=(30, 12)))[0].T
    planted = {2: 3.0, 5: 0.5, 11: 1.25}
    c = sum(weight * atoms[i] for i, weight in planted.items())
    step = Step(1, products=Products(atoms @ atoms.T, atoms @ c, float(c @ c)), room=8)  # type: ignore[operator]
    found = GradMatch(ridge=0.0, scale="none", search=search).update(step, {})[0].values
    assert {i: found[i] for i in np.flatnonzero(found)} == pytest.approx(planted, rel=1e-10)


def test_trying_all_adds_what_leaves_the_least() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        g, c = np.abs(rng.normal(size=(9, 30))) * (rng.random((9, 30)) < 0.3), np.abs(rng.normal(size=30))
        step = Step(1, products=Products(g @ g.T, g @ c, float(c @ c)), room=3)
        ridge = 0.05 * float(np.diagonal(g @ g.T).mean())
        found = GradMatch(search="exhaustive", ridge=0.05, scale="none").update(step, {})[0].values
        assert sorted(slow.pursued_by_trial(g, c, ridge, 3)) == np.flatnonzero(found).tolist()


def test_what_all_candidates_teach_is_matched_without_a_target() -> None:
    trainer = trainer_of(GradMatch(match="candidates"), replace(STEP, steps=2, batch_size=4), target=None)
    for done in trainer.run():
        assert 1 <= done.metrics["chosen"] <= 4 and "target" not in done.usage and not done.metrics["fallback"]


def test_pursuit_refits_and_drops_what_turns_negative() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        a, c = rng.normal(size=(6, 10)) + 0.5, rng.normal(size=6)
        step = Step(1, products=Products(a.T @ a, a.T @ c, float(c @ c)), room=4)
        given, _ = GradMatch(ridge=0.0, scale="none").update(step, {})
        w, some = given.values, np.flatnonzero(given.values)
        if given.fallback:
            continue
        assert len(some) <= 4 and (w >= 0).all()
        assert w[some] == pytest.approx(np.linalg.lstsq(a[:, some], c, rcond=None)[0], rel=1e-8)
        assert np.linalg.norm(a @ w - c) >= nnls(a, c)[1] - 1e-12


def test_near_duplicates_are_not_all_chosen_whatever_the_scale_of_d() -> None:
    rng = np.random.default_rng(4)
    base, others = rng.normal(size=50), rng.normal(size=(8, 50))
    g = np.concatenate([base + 1e-3 * rng.normal(size=(8, 50)), others])
    for scale in (1.0, 1e4, 1e-4):
        q = scale * (3 * base + others.sum(0) / 2)
        step = Step(1, products=Products(g @ g.T, g @ q, float(q @ q)), room=6)
        given, _ = FilterThenWeight(rescale="match_norm").update(step, {})
        assert np.isfinite(given.values).all() and 0 < np.count_nonzero(given.values[:8]) < 6
        assert given.values[8:].any() and given.values.max() < 100
        plain, _ = FilterThenWeight(filter="top", rescale="match_norm").update(step, {})
        assert not plain.values[8:].any()  # where hard top-k takes duplicates alone


def test_where_nothing_goes_the_target_s_way_the_filter_s_choice_is_learnt_and_counted() -> None:
    products = Products(np.eye(4) + 0.1, -np.arange(1.0, 5.0), 30.0)
    given, _ = FilterThenWeight().update(Step(1, products=products, room=2), {})
    assert given.fallback and given.values.tolist() == [1, 1, 0, 0]
    for weighting in (Greats(eta=0.1), TracinOnline(), LessOnline(), FilterThenWeight(weigh="signed")):
        assert weighting.update(Step(1, products=products, room=2), {})[0].fallback
    with pytest.raises(CurateError, match="weights of both signs may sum to 0"):
        FilterThenWeight(weigh="signed", rescale="sum_to_batch")
    given, _ = GradMatch().update(Step(1, products=products, room=2), {})
    assert given.fallback and given.values.tolist() == [1, 1, 0, 0]


def test_a_singular_gram_gives_finite_weights() -> None:
    products = Products(np.ones((4, 4)), np.ones(4), 1.0)
    for weighting in (FilterThenWeight(ridge=0.0), FilterThenWeight(ridge=0.0, weigh="signed"), GradMatch(ridge=0.0)):
        given, _ = weighting.update(Step(1, products=products, room=3), {})
        assert np.isfinite(given.values).all() and given.values.any()
