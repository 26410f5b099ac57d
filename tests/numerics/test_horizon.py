"""Long-horizon measures on matrices, curves and gradients whose answers are known."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from curate.numerics.long_horizon.curves import area, reached
from curate.numerics.long_horizon.matrix import (
    forgetting,
    forward_transfer,
    imbalance,
    immediate_gains,
    long_utility,
    normalized,
    scaled,
    worst_task,
)
from curate.numerics.long_horizon.myopia import ahead_and_behind, gap_of, myopia, ranks
from curate.numerics.long_horizon.updates import concentration, drift, entropy, stability
from curate.numerics.statistics import adjusted
from curate.runs.model_updates import update_products

# Rows: before, and after stages 1, 2, 3. Columns: the targets of stages 1, 2, 3.
A = np.array([[0.1, 0.2, 0.3], [0.7, 0.3, 0.2], [0.5, 0.8, 0.4], [0.6, 0.5, 0.9]])


# --- the matrix --------------------------------------------------------------------------------------------


def test_immediate_gains_are_of_each_stage_on_its_own_target() -> None:
    assert np.allclose(immediate_gains(A), [0.6, 0.5, 0.5])


def test_forgetting_is_the_drop_from_the_best_before() -> None:
    assert forgetting(A, 1) == 0.0
    assert forgetting(A, 2) == pytest.approx(0.7 - 0.5)
    assert forgetting(A) == pytest.approx(((0.7 - 0.6) + (0.8 - 0.5)) / 2)


def test_forgetting_otherwise_defined() -> None:
    rose = np.array([[0.9, 0.0], [0.5, 0.1], [0.6, 0.7]])  # stage 1's target fell before, and rose after
    assert forgetting(rose, window="own") == pytest.approx(0.5 - 0.6)
    assert forgetting(rose, window="own", clip=True) == 0.0
    assert forgetting(rose, window="own", with_last=True) == 0.0
    assert forgetting(rose) == forgetting(rose, window="start") == pytest.approx(0.9 - 0.6)


def test_transfer_worst_task_and_imbalance() -> None:
    assert forward_transfer(A) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert np.isnan(forward_transfer(A[:2, :1]))
    assert forward_transfer(A, ["x", "y", "x"]) == pytest.approx(0.3 - 0.2)  # of x the first stage has learnt
    assert worst_task(A) == 0.5
    assert imbalance(A[-1]) == pytest.approx(np.sqrt(np.mean((A[-1] - 2 / 3) ** 2)))
    assert imbalance(np.array([1.0, 2.0]), ddof=1) == pytest.approx(np.sqrt(0.5))
    assert np.allclose(normalized(np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])), [[0, 0], [1, 0], [0.5, 0]])


def test_long_utility_is_its_equation() -> None:
    adaptation, weights = np.array([0.3, 0.4]), (0.5, 2.0, 3.0)
    by_hand = (0.6 + 0.5 + 0.9) + 0.5 * 0.7 - 2.0 * (0.0 + 0.2 + 0.2) + 3.0 * 0.25
    assert long_utility(A, adaptation, 0.25, weights) == pytest.approx(by_hand, abs=1e-12)


def test_forgetting_in_the_utility_is_of_the_earlier_stages_after_each_or_of_each_stage_in_the_end() -> None:
    """The first target was best before its own stage, and the second fell after the third: all three differ."""
    a = np.array([[0.9, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.8, 0.2], [0.7, 0.4, 0.6]])
    by_stage = 0 + (0.9 - 0.5) + ((0.9 - 0.7) + (0.8 - 0.4)) / 2
    own = 0 + (0.6 - 0.5) + ((0.6 - 0.7) + (0.8 - 0.4)) / 2
    by_task = (0.9 - 0.7) + (0.8 - 0.4)
    end = 0.7 + 0.4 + 0.6
    assert long_utility(a, np.zeros(0), 0.0) == pytest.approx(end - by_stage)
    assert long_utility(a, np.zeros(0), 0.0, window="own") == pytest.approx(end - own)
    assert long_utility(a, np.zeros(0), 0.0, of="tasks") == pytest.approx(end - by_task)
    assert long_utility(a, np.zeros(0), 0.0, window="own", clip=True, of="tasks") == pytest.approx(end - 0.4)
    assert len({round(x, 9) for x in (by_stage, own, by_task)}) == 3


def test_scaled_values_go_from_0_to_1_over_the_given_axes_and_what_is_unknown_stays() -> None:
    values = np.array([[1.0, 7.0], [np.nan, 7.0], [3.0, 7.0]])
    found = scaled(values, (0,))
    assert found[:, 1].tolist() == [0, 0, 0] and found[[0, 2], 0].tolist() == [0, 1] and np.isnan(found[1, 0])
    assert scaled(values, (0, 1))[2].tolist() == pytest.approx([1 / 3, 1.0])
    assert np.isnan(scaled(np.full((2, 1), np.nan), (0,))).all()


def test_what_is_not_known_is_not_a_number_and_the_rest_stands() -> None:
    holed = A.copy()
    holed[3, 2] = np.nan
    assert np.isnan(immediate_gains(holed)).tolist() == [False, False, True]
    assert forgetting(holed) == pytest.approx(forgetting(A)) and np.isnan(worst_task(holed))


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[T \+ 1, T\], not \[3, 3\]"):
        immediate_gains(A[1:])


# --- curves ------------------------------------------------------------------------------------------------


def test_the_area_of_a_constant_curve_is_the_constant() -> None:
    assert area(np.array([0, 3, 10]), np.full(3, 0.37)) == pytest.approx(0.37)
    assert area(np.array([0, 1, 3]), np.array([0.0, 1.0, 1.0])) == pytest.approx((0.5 + 2) / 3)
    with pytest.raises(ValueError, match="ascending"):
        area(np.array([0, 0]), np.zeros(2))


def test_tokens_to_a_threshold() -> None:
    x, y = np.array([0, 100, 300]), np.array([0.2, 0.4, 0.8])
    assert reached(x, y, 0.6) == pytest.approx(200)
    assert reached(x, y, 0.1) == 0.0
    assert np.isnan(reached(x, y, 0.9)) and np.isnan(reached(x, np.full(3, np.nan), 0.1))


# --- ranks -------------------------------------------------------------------------------------------------


def test_reversed_ranks_of_two_give_a_gap_of_one_and_of_many_tend_to_a_half() -> None:
    assert myopia(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])).gap == 1.0
    for k in (2, 3, 7, 20):
        up = np.arange(k, dtype=float)
        assert gap_of(ranks(up), ranks(-up)).mean() == pytest.approx((k * k // 2) / (k * (k - 1)))


def test_ties_share_their_mean_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.5, 3.0, 1.5]


def test_the_null_of_seven_selectors_has_a_mean_of_38_hundredths() -> None:
    rng = np.random.default_rng(0)
    found = myopia(rng.normal(size=(7, 3)), rng.normal(size=(7, 3)))
    assert found.null == pytest.approx((7 - 1 / 7) / 18)  # (K - 1/K) / 3 / (K - 1)
    assert found.null == pytest.approx(0.38, abs=0.005)


def test_the_share_of_random_rankings_with_as_large_a_gap() -> None:
    values = np.arange(4.0)[:, None]
    same = myopia(values, values)
    assert (same.gap, same.p, same.interval) == (0.0, 1.0, None)
    turned = myopia(values, -values)  # of 24 rankings, those with the largest sum of differences, 8: four
    assert turned.gap == pytest.approx(8 / 12) and turned.p == turned.least == pytest.approx(4 / 24)
    assert same.agree == pytest.approx(1 / 24) and turned.agree == 1.0


def test_rankings_by_lot_agree_with_all_rankings() -> None:
    rng = np.random.default_rng(1)
    nine = myopia(rng.normal(size=(9, 1)), rng.normal(size=(9, 1)))
    assert nine.null == pytest.approx((9 - 1 / 9) / 3 / 8, abs=0.005)
    up = np.arange(12.0)[:, None]
    assert 0 < myopia(up, up).agree < 0.001  # the ranking at hand is one of them


def test_the_interval_over_seeds_holds_the_gap_of_clear_ranks() -> None:
    rng = np.random.default_rng(2)
    base = np.array([0.0, 10.0, 20.0])[:, None]
    found = myopia(base + rng.normal(size=(3, 5)), -base + rng.normal(size=(3, 5)))
    assert found.interval == (found.gap, found.gap) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    holed = np.array([[1.0, np.nan], [2.0, 2.0]])
    assert myopia(holed, holed).gap == 0.0


def test_one_selector_is_myopic_if_its_ranks_say_so_in_every_seed() -> None:
    """Against all sums of ranks, one by one, with ties."""
    now = np.array([[5.0, 4.0, 9.0], [1.0, 4.0, 2.0], [0.0, 3.0, 1.0], [-1.0, 2.0, 3.0]])
    later = np.array([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0], [3.0, 3.0, 3.0], [2.0, 5.0, 4.0]])
    by_seed = [[sorted(rankdata(-v[:, s])) for s in range(3)] for v in (now, later)]
    wanted = []
    for k in range(4):
        sums = [sum(rankdata(-v[:, s])[k] for s in range(3)) for v in (now, later)]
        every = [[sum(drawn) for drawn in product(*rows)] for rows in by_seed]
        ahead = np.mean([total <= sums[0] for total in every[0]])
        behind = np.mean([total >= sums[1] for total in every[1]])
        wanted.append(max(ahead, behind))
    assert ahead_and_behind(now, later) == pytest.approx(wanted, abs=1e-12)
    assert wanted[0] == 2 / 64 and min(wanted[1:]) > 0.3
    holed = now.copy()
    holed[1, 2] = np.nan
    assert (ahead_and_behind(holed, later) == ahead_and_behind(now[:, :2], later[:, :2])).all()
    assert adjusted(np.array([0.04, 0.01, 0.03, 0.5])).tolist() == pytest.approx([0.09, 0.04, 0.09, 0.5])
    found = myopia(np.repeat(now[:, :1], 5, 1), np.repeat(later[:, :1], 5, 1))
    assert found.myopic[0] == pytest.approx(4.0**-5) and found.myopic[1:].min() > 0.2


def test_one_selector_has_no_rank() -> None:
    with pytest.raises(ValueError, match="two selectors"):
        myopia(np.ones((1, 3)), np.ones((1, 3)))


# --- updates -----------------------------------------------------------------------------------------------


def test_concentration_is_one_for_one_direction_and_1_over_n_for_n() -> None:
    rng = np.random.default_rng(0)
    g = rng.normal(size=50)
    one = np.outer(rng.normal(size=6), g)
    assert concentration(one @ one.T) == pytest.approx(1.0)
    many, _ = np.linalg.qr(rng.normal(size=(50, 6)))
    assert concentration(many.T @ many) == pytest.approx(1 / 6)


def test_concentration_by_gram_is_that_of_the_matrix_itself() -> None:
    g = np.random.default_rng(3).normal(size=(8, 5)) + 1.0
    m = g.T @ g / 8
    assert concentration(g @ g.T) == pytest.approx(np.linalg.eigvalsh(m)[-1] / np.trace(m), abs=1e-10)


def test_entropy_of_uniform_clusters_is_log_c() -> None:
    assert entropy([5, 5, 5, 5]) == pytest.approx(np.log(4))
    assert entropy([5, 5, 5, 5], base=2) == pytest.approx(2.0)
    assert entropy([5, 5, 0, 0], normalize=True) == pytest.approx(0.5)
    assert entropy([7]) == 0.0 == entropy([7], normalize=True)


def saved(folder: Path, *parameters: np.ndarray) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file({f"w{i}": p.astype(np.float32) for i, p in enumerate(parameters)}, folder / "model.safetensors")
    return folder


def test_drift_is_0_for_a_repeated_update_1_for_an_orthogonal_one_2_for_one_taken_back(tmp_path: Path) -> None:
    step = np.array([[1.0, 2.0], [0.0, -1.0]])
    across = np.array([[2.0, -1.0], [5.0, 0.0]])
    first, before = saved(tmp_path / "0", step * 0, step * 0), saved(tmp_path / "1", step, step * 0)
    for name, more, wanted in (("same", step, 0.0), ("across", across, 1.0), ("back", -step, 2.0)):
        after = saved(tmp_path / name, step + more, step * 0)
        assert drift(update_products(first, before, after)) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(drift(update_products(first, first, before)))


def test_stability_tells_a_spike() -> None:
    rng = np.random.default_rng(0)
    calm = 1.0 + 0.01 * rng.normal(size=100)
    wild = calm.copy()
    wild[50] = 5.0
    assert stability(calm, np.ones(100)).spikes <= 0.02
    assert stability(wild, np.ones(100)).spikes == pytest.approx(1 / 99)
    assert stability(wild, np.ones(100)).spread > 10 * stability(calm, np.ones(100)).spread
    assert stability(calm, [1.0] * 99 + [7.0]).norm_range == 7.0
    assert np.isnan(stability([1.0], [1.0]).spread)


# --- the paper's toy ---------------------------------------------------------------------------------------


def test_two_selections_of_equal_immediate_gain_differ_in_the_next_stage() -> None:
    """Proposition 1 on quadratics L_t(w) = (w - c_t)' H_t (w - c_t) / 2, one gradient step of each selection: the gains
    now are equal, and the next stage's losses differ by what second order says exactly."""
    eta, w = 0.1, np.zeros(2)
    h_now, h_next = np.diag([1.0, 1.0]), np.array([[2.0, 0.3], [0.3, 1.0]])
    c_now, c_next = np.array([1.0, 0.0]), np.array([0.5, 1.0])

    def loss(x: np.ndarray, c: np.ndarray, h: np.ndarray) -> float:
        return float((x - c) @ h @ (x - c)) / 2

    one, other = np.array([-1.0, 0.6]), np.array([-1.0, -0.6])  # mean gradients of two selections, mirrored
    matrices = []
    for g in (one, other):
        after = w - eta * g
        a = [[-loss(x, c_now, h_now), -loss(x, c_next, h_next)] for x in (w, after, after)]
        matrices.append(np.array(a))
    gains = [immediate_gains(a)[0] for a in matrices]
    assert gains[0] == pytest.approx(gains[1], abs=1e-10)
    slope = h_next @ (w - c_next)
    closed = [-loss(w, c_next, h_next) + eta * slope @ g - eta**2 / 2 * g @ h_next @ g for g in (one, other)]
    for a, value in zip(matrices, closed, strict=True):
        assert a[1, 1] == pytest.approx(value, abs=1e-10)
    transfers = [forward_transfer(a) for a in matrices]
    assert transfers[0] - transfers[1] == pytest.approx(closed[0] - closed[1], abs=1e-10)
    assert abs(transfers[0] - transfers[1]) > 0.1  # one opens the next stage's way, the other blocks it
