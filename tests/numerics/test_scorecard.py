"""The scorecard of an audit by hand, and what is read from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curate.numerics.long_horizon.scorecard import scorecard
from curate.pages.audit import page, pictures, reading
from curate.runs.audit_spec import Measures


def cell(selector: str, seed: int, t: int, values: list[float | None], **more: Any) -> dict[str, Any]:
    performance = dict(zip(("a", "b", "c", "far"), values, strict=True))
    its = {"tokens": 100.0, "seconds": 1.0, "flops": 2.0, "clusters": {"x": 3, "y": 1}, "error": ""}
    return {"selector": selector, "seed": seed, "stage": t, "performance": performance, **its, **more}


def curve(tokens: list[int], values: list[float]) -> dict[str, Any]:
    return {"tokens": tokens, "steps": list(range(len(tokens))), "values": values}


STAGES = [("first", "a"), ("second", "b"), ("third", "c")]
HAND = [
    cell("base", 0, 0, [0.1, 0.2, 0.3, 0.5]),
    cell("greedy", 0, 1, [0.9, 0.1, 0.1, 0.4], curve=curve([0, 10, 20], [0.1, 0.2, 0.3])),
    cell("greedy", 0, 2, [0.4, 0.9, 0.1, 0.3], drift=0.2, curve=curve([0, 10], [0.1, 0.1])),
    cell("greedy", 0, 3, [0.2, 0.3, 0.9, 0.2], drift=0.4),
    cell("steady", 0, 1, [0.6, 0.4, 0.4, 0.5], curve=curve([0, 10, 20], [0.4, 0.5, 0.6])),
    cell("steady", 0, 2, [0.6, 0.7, 0.5, 0.5], drift=0.5, curve=curve([0, 10], [0.5, 0.7])),
    cell("steady", 0, 3, [0.6, 0.7, 0.8, 0.5], drift=0.7),
]


def card_of(found: list[dict[str, Any]], names: list[str] | None = None, **measures: Any) -> Any:
    return scorecard(found, names or ["greedy", "steady"], STAGES, ["far"], 1, Measures(**measures))


def test_the_scorecard_of_two_selectors_by_hand() -> None:
    card = card_of(HAND, alpha=0.5, beta=2.0, gamma=3.0)
    its = {name: values[:, 0] for name, values in card.measures.items()}
    assert its["gain"] == pytest.approx([(0.8 + 0.8 + 0.8) / 3, (0.5 + 0.3 + 0.3) / 3])
    assert its["score"] == pytest.approx([(0.9 + 0.9 + 0.9) / 3, (0.6 + 0.7 + 0.8) / 3])
    assert its["adaptation"] == pytest.approx([(0.2 + 0.1) / 2, (0.5 + 0.6) / 2])
    assert its["forgetting"] == pytest.approx([((0.9 - 0.2) + (0.9 - 0.3)) / 2, 0.0])
    assert its["transfer"] == pytest.approx([((0.1 - 0.2) + (0.1 - 0.3)) / 2, ((0.4 - 0.2) + (0.5 - 0.3)) / 2])
    greedy = (0.2 + 0.3 + 0.9) + 0.5 * 0.3 - 2 * (0.5 + 0.65) + 3 * 0.2
    steady = (0.6 + 0.7 + 0.8) + 0.5 * 1.1 - 2 * 0.0 + 3 * 0.5
    assert its["utility"] == pytest.approx([greedy, steady])
    assert its["worst"] == pytest.approx([0.2, 0.6]) and its["out_of_domain"] == pytest.approx([0.2, 0.5])
    assert its["imbalance"] == pytest.approx([np.std([0, 0, 1]), np.std([1, 1, 0])])
    assert its["tokens"] == pytest.approx([300, 300]) and its["drift"] == pytest.approx([0.3, 0.6])
    assert its["entropy"] == pytest.approx([-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))] * 2)
    # the early threshold: half of what the first gains in its branch, .2 after stage 1 and .1 after stage 2
    # and nothing where the first gains nothing, as after stage 2
    assert np.isnan(its["early"]).all()
    assert card.myopia.gap == 1.0 and card.myopia.p == 0.5 and card.myopia.interval is None
    said = reading(card)
    assert "Myopia gap 1.00, by one seed; random rankings have 0.50 on average" in said[0]
    assert "2 selectors are too few to tell, as even a full reversal is 50% of all rankings" in said[0]
    assert "Now: greedy, steady. In the end: steady, greedy. Moving most: greedy from 1 to 2" in said[1]


def test_normalized_utilities_weigh_a_target_of_a_hundredth_of_the_scale_as_any_other() -> None:
    """As raw values one target's hundredths count for nothing; normalized, the card is that of the same scale."""
    small = [{**one, "performance": {**one["performance"], "b": one["performance"]["b"] / 100}} for one in HAND]
    plain, raw, scaled = (card_of(found, utilities=how).measures for found, how in (
        (HAND, "normalized"), (small, "raw"), (small, "normalized")))  # fmt: skip
    for name in ("gain", "utility"):
        assert scaled[name] == pytest.approx(plain[name]) and raw[name] != pytest.approx(card_of(HAND).measures[name])
    lowest, highest = (np.array([f([0.1, 0.9, 0.4, 0.2, 0.6]), f([0.2, 0.1, 0.9, 0.3, 0.4, 0.7]),
                                 f([0.3, 0.1, 0.9, 0.4, 0.5, 0.8])]) for f in (min, max))  # fmt: skip
    gains = np.array([0.8, 0.8, 0.8]) / (highest - lowest)
    assert plain["gain"][0, 0] == pytest.approx(gains.mean())
    # of one's own final values: a 0.2, b 0.3, c 0.9; branches: greedy has the lowest of both; far: the lowest
    final = (np.array([0.2, 0.3, 0.9]) - lowest) / (highest - lowest)
    drops = (0.9 - 0.4) / 0.8 + ((0.9 - 0.2) / 0.8 + (0.9 - 0.3) / 0.8) / 2
    assert plain["utility"][0, 0] == pytest.approx(final.sum() + 0.0 - drops + 0.0)
    assert plain["score"] == pytest.approx(card_of(HAND).measures["score"])  # as it is


def test_a_branch_that_never_reaches_the_threshold_counts_with_all_its_tokens() -> None:
    found = [dict(one) for one in HAND]
    found[2]["curve"] = curve([0, 10], [0.1, 0.3])
    found[5]["curve"] = curve([0, 40], [0.0, 0.1])
    its = card_of(found).measures["early"][:, 0]
    assert its == pytest.approx([(10 + 5) / 2, (0 + 40) / 2])


@pytest.mark.parametrize(("turned", "said"), [(True, "here today's order misleads"), (False, "wins in the end")])
def test_of_eight_selectors_a_full_reversal_is_told_from_chance_and_so_is_agreement(turned: bool, said: str) -> None:
    found, names = [HAND[0]], [f"s{k}" for k in range(8)]
    for k, name in enumerate(names):
        far = -k if turned else k
        found += [cell(name, 0, t, [0.1 * k, 0.1 * k, 0.1 * k, far]) for t in (1, 2, 3)]
    card = scorecard(found, names, STAGES, ["far"], 1, Measures(gamma=10.0))
    assert said in reading(card)[0]
    assert ("No selector gains" in " ".join(reading(card))) == (card.measures["gain"].max() < 0.0)
    below = [cell("base", 0, 0, [0.9, 0.9, 0.9, 0.5]), *found[1:]]
    worse = scorecard(below, names[:2], STAGES, ["far"], 1, Measures())
    assert "No selector gains on its own stages here" in reading(worse)[2]


def test_a_hole_in_one_cell_leaves_the_rest() -> None:
    holed = [dict(one) for one in HAND]
    holed[3] = cell("greedy", 0, 3, [0.2, None, 0.9, 0.2])
    card = card_of(holed)
    assert np.isnan(card.measures["utility"][0, 0]) and np.isfinite(card.measures["gain"]).all()
    assert np.isfinite(card.measures["utility"][1, 0]) and card.myopia is None and card.ranked == ["steady"]
    assert card.missing == ["greedy, seed 0, stage 3 (third): nothing could be evaluated on b"]
    before = card_of([cell("base", 0, 0, [None, 0.2, 0.3, 0.5]), *HAND[1:]])
    assert before.missing == ["before the first stage nothing could be evaluated on a"] and before.myopia is None
    assert reading(card) == [
        "Fewer than two selectors have both a gain and a utility, so there are no ranks to compare."
    ]
    assert set(pictures(card)) >= {"learning on the next stage", "tasks after every stage"}


def test_one_selector_has_a_scorecard_without_ranks() -> None:
    card = card_of([one for one in HAND if one["selector"] != "greedy"], ["steady"])
    assert card.myopia is None and np.isfinite(card.measures["utility"]).all() and "<h2>Later</h2>" in page(card, "one")
