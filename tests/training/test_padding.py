"""Micro-batches that go through the model in parts of similar length: less padding, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.extremes import Extremes
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.talr import Talr
from curate.methods.weightings.uds_online import UdsOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.distributed import Alone
from curate.training.examples import Examples, by_length
from curate.training.settings import TrainSettings
from tests.support.choosing import CANDIDATES, STEP, trainer_of
from tests.support.training import gradient_of


class Normalised(Uniform):
    normalize = "mean1"


WHOLE, PARTS = 10**6, 3
ONE = TrainSettings(batch_size=99, lr=1e-3, warmup=0.0, schedule="constant", clip=0.0)


def documents(lengths: list[int]) -> list[Encoded]:
    rng = np.random.default_rng(0)
    return [Encoded(rng.integers(5, 200, n).astype(np.int32), np.arange(n) > n // 3) for n in lengths]


def passed(lengths: list[int], cuts: tuple[int, ...], worth: int) -> int:
    """Tokens that go through the model, and what the passes are worth, if the rows are cut there."""
    bounds = [0, *cuts, len(lengths)]
    return sum((b - a) * lengths[a] + worth for a, b in zip(bounds[:-1], bounds[1:], strict=True))


@pytest.mark.parametrize("worth", [1, 5, 20, 200])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_parts_pass_fewer_tokens(worth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = sorted(rng.integers(2, 40, 9).tolist(), reverse=True)
    examples = Examples.of(documents(lengths))
    rows = [np.array([i]) for i in range(9)]
    parts = by_length(examples, rows, worth)
    assert [int(row[0]) for part in parts for row in part] == list(range(9))
    cuts = tuple(np.cumsum([len(part) for part in parts])[:-1].tolist())
    best = min(passed(lengths, some, worth) for n in range(9) for some in combinations(range(1, 9), n))
    assert passed(lengths, cuts, worth) == best


def test_one_part_where_none_is_worth_it() -> None:
    examples = Examples.of(documents([9, 9, 9, 2]))
    rows = [np.array([i]) for i in range(4)]
    assert [len(part) for part in by_length(examples, rows, 6)] == [3, 1]  # saves 7 tokens
    assert [len(part) for part in by_length(examples, rows, 8)] == [4]
    assert [len(part) for part in by_length(examples, rows, 0)] == [4] and by_length(examples, rows[:1], 5) == [
        rows[:1]
    ]
    assert TrainSettings().worth_a_pass("cuda") == 0 < TrainSettings().worth_a_pass("cpu")
    assert TrainSettings(padding_per_pass=7).worth_a_pass("cuda") == 7


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize(
    "weighting", [Uniform(), Linupper(), Extremes(), Talr(), Normalised()], ids=lambda one: one.name
)
def test_the_gradient_is_that_of_one_batch(weighting: Weighting, reduction: Any) -> None:
    encoded = documents([3, 17, 5, 9, 30, 4, 4, 12])
    settings = replace(ONE, reduction=reduction)
    parts, whole = (
        gradient_of(Alone(), encoded, weighting, replace(settings, padding_per_pass=n)) for n in (PARTS, WHOLE)
    )
    assert max(float((parts[0][name] - whole[0][name]).abs().max()) for name in whole[0]) < 1e-12
    for kind in ("documents", "weight", "loss"):
        a, b = (getattr(one[1], kind) for one in (parts, whole))
        assert np.allclose(a, b, rtol=1e-12)
    assert "losses" not in parts[1].usage  # no second pass: what is in memory is less than one batch's
    a, b = (one[1].usage["train"] for one in (parts, whole))
    assert a.tokens == b.tokens and a.padded_tokens < 1.2 * a.tokens < 2 * a.tokens < b.padded_tokens
    assert a.flops < 0.7 * b.flops


@pytest.mark.parametrize(
    "weighting",
    [
        FilterThenWeight(),
        FilterThenWeight(positions="same", precondition="projected"),
        FilterThenWeight(unit="token", filter="top", weigh="none"),
        Greats(),
        MaxLoss(),
        UdsOnline(),
    ],
    ids=lambda one: one.name,
)
def test_the_choice_is_that_of_one_batch(weighting: Weighting) -> None:
    assert len({len(one.ids) for one in CANDIDATES}) > 2
    runs = []
    for worth in (PARTS, WHOLE):
        trainer = trainer_of(weighting, replace(STEP, padding_per_pass=worth))
        steps = list(trainer.run())
        runs.append((steps, torch.cat([p.detach().flatten() for p in trainer.parameters.values()])))
    (parts, a), (whole, b) = runs
    assert torch.allclose(a, b, rtol=0, atol=1e-10)
    for one, other in zip(parts, whole, strict=True):
        assert one.documents.tolist() == other.documents.tolist() and np.allclose(one.weight, other.weight, atol=1e-9)
    padded = [sum(u.padded_tokens for s in steps for u in s.usage.values()) for steps in (parts, whole)]
    assert padded[0] < padded[1]


def test_looks_at_a_target_are_as_they_were() -> None:
    """Adapt's hidden states are read in the training's own passes, part by part."""
    encoded = documents([3, 17, 5, 9])
    anchors = Examples.of(documents([6, 8]))
    runs = [
        gradient_of(Alone(), encoded, Adapt(tau=0.1), replace(ONE, padding_per_pass=n), anchors=anchors)
        for n in (PARTS, WHOLE)
    ]
    assert np.allclose(runs[0][1].weight, runs[1][1].weight, rtol=1e-9) and np.ptp(runs[0][1].weight) > 0
