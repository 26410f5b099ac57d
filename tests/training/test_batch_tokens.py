"""Steps of so many tokens: the rows of an epoch in their order, none twice, and each step as full as it can be."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples, epoch_rows, step_bounds
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings, from_hugging_face
from tests.support.training import PLAIN, narrow, trained

BY_TOKENS = replace(PLAIN, batch_size=32, batch_tokens=150)


def examples_of(lengths: list[int]) -> Examples:
    return Examples.of([Encoded(np.zeros(n, np.int32), np.arange(n) > 0) for n in lengths])


def slow(lengths: list[int], tokens: int) -> list[list[int]]:
    """Steps as lists of rows, one row after another."""
    steps: list[list[int]] = []
    for i, length in enumerate(lengths):
        if not steps or sum(lengths[j] for j in steps[-1]) + length > tokens:
            steps.append([])
        steps[-1].append(i)
    return steps


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_steps_are_filled_one_row_after_another(seed: int, packing: bool) -> None:
    rng = np.random.default_rng(seed)
    lengths, tokens = rng.integers(1, 31, 2 * seed).tolist(), int(rng.integers(1, 81))
    examples = examples_of(lengths)
    rows = epoch_rows(examples, np.arange(len(lengths)), 0, 0, False, 40 if packing else 0)
    bounds = step_bounds(examples, rows, 7, tokens)
    own = [sum(lengths[i] for i in row) for row in rows]
    assert [list(range(a, b)) for a, b in pairwise(bounds)] == slow(own, tokens)
    by_rows = step_bounds(examples, rows, 7)
    assert [b - a for a, b in pairwise(by_rows)] == [len(own[i : i + 7]) for i in range(0, len(own), 7)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("weighting", [Uniform(), Linupper()])
def test_a_training_takes_all_its_samples_in_such_steps(encoded: list[Encoded], packing: bool, weighting: Any) -> None:
    settings = replace(BY_TOKENS, epochs=2.0, packing=packing)
    _, steps = trained(Alone(), encoded, weighting, settings)
    lengths = np.array([len(one.ids) for one in encoded])
    for epoch in (0, 1):
        own = [done for done in steps if done.epoch == epoch]
        assert sorted(np.concatenate([done.documents for done in own]).tolist()) == list(range(len(encoded)))
        tokens = [int(lengths[done.documents].sum()) for done in own]
        assert [done.metrics["tokens"] for done in own] == tokens and len(own) > 2
        assert all(n <= 150 or packing or len(done.documents) == 1 for n, done in zip(tokens, own, strict=True))
        assert [done.last_of_epoch for done in own] == [False] * (len(own) - 1) + [True]
    model = narrow()
    counted = Trainer(model, Data.of(Examples.of(encoded)), settings, weighting, Alone()).steps
    assert counted == len(steps)


def test_a_step_is_what_it_is_with_as_many_rows(encoded: list[Encoded]) -> None:
    """With rows of equal length, tokens and rows say the same: the weights agree bit for bit."""
    same = [replace(one, ids=one.ids[:20], supervised=one.supervised[:20]) for one in encoded if len(one.ids) > 20]
    same = [one for one in same if one.supervised.any()]
    by_tokens, first = trained(Alone(), same, Linupper(), replace(BY_TOKENS, batch_tokens=119))
    by_rows, second = trained(Alone(), same, Linupper(), replace(PLAIN, batch_size=5))
    assert len(first) == len(second)
    for one, other in zip(by_tokens.model.parameters(), by_rows.model.parameters(), strict=True):
        assert one.equal(other)


def test_both_are_refused(encoded: list[Encoded]) -> None:
    both = "batch_size and batch_tokens both say how large a step is"
    with pytest.raises(CurateError, match=both):
        TrainSettings(batch_size=8, batch_tokens=100)
    for given_so in ({"batch_size": "32"}, {"per_device_train_batch_size": "4"}):
        with pytest.raises(CurateError, match=both):
            from_hugging_face({"batch_tokens": "100", **given_so})
    assert from_hugging_face({"batch_tokens": "0", "batch_size": "4"}) == {"batch_tokens": "0", "batch_size": "4"}
    with pytest.raises(CurateError, match="batch_tokens of the training is 0 or more"):
        TrainSettings(batch_tokens=-1)
    with pytest.raises(CurateError, match="which batch_tokens does not say; set batch_size"):
        trained(Alone(), encoded, FilterThenWeight(), BY_TOKENS)
