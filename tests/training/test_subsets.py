"""Trainings on subsets, one after another in one model, against each by itself in a model of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.subsets import SubsetTrainer
from curate.training.trainable import redraw, trainable
from tests.support.narrow import NARROW

CHOICE = ModelChoice(str(NARROW), device="cpu")
PLAIN = TrainSettings(epochs=2, batch_size=4, lr=1e-2, weight_decay=0.1, reduction="sample")
LORA = replace(PLAIN, lora_r=4, lora_targets="all-linear", lora_dropout=0.1)


def alone(data: Data, settings: TrainSettings, weighting: Any, rows: list[int], seed: int) -> list[float]:
    """A training of its own: the mean loss of each target example after it, one at a time."""
    model = trainable(CHOICE, settings)
    if model.adapter is not None:
        redraw(model.adapter, seed)
    documents = np.array([d for d in data.documents if data.examples.sample[d] in rows])
    for _ in Trainer(model.model, replace(data, documents=documents), settings, weighting, Alone(), seed).run():
        pass
    model.model.model.eval()
    found = []
    for place in range(len(ASKED)):
        ids, supervised = ASKED.tokens_of(place)
        with torch.no_grad():
            logits = model.model.model(input_ids=torch.tensor(ids[None]).long()).logits[0].double()
        losses = [-float(logits[t - 1].log_softmax(-1)[int(ids[t])]) for t in np.flatnonzero(supervised)]
        found.append(float(np.mean(losses)))
    return found


def made_up(n: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(3, 60, k).astype(np.int32), np.arange(k) > 1) for k in rng.integers(4, 12, n)]


ASKED = Examples.of(made_up(3, 1))


@pytest.mark.parametrize(
    ("settings", "weighting"), [(PLAIN, Uniform()), (LORA, Uniform()), (PLAIN, Adapt())], ids=["all", "lora", "adapt"]
)
def test_each_is_what_it_is_by_itself_whatever_was_trained_before(settings: TrainSettings, weighting: Any) -> None:
    repeats = np.array([0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9])  # one sample occurs twice
    data = Data.of(Examples.of(made_up(10, 0)), documents=repeats, anchors=Examples.of(made_up(4, 2)))
    one = SubsetTrainer(trainable(CHOICE, settings), data, settings, weighting, ASKED)
    before, _ = one.base()
    for rows, seed in (([0, 2, 3, 7], 5), ([1, 2, 4, 8, 9], 6), ([0, 2, 3, 7], 5)):
        members = np.isin(np.arange(10), rows)
        found = one.train(members, seed)
        assert found.loss == pytest.approx(alone(data, settings, weighting, rows, seed), rel=1e-5)
        assert found.samples == len(rows) and found.steps == 2 * -(-np.isin(repeats, rows).sum() // 4)
        assert found.usage["train"].flops > found.usage["evaluate"].flops > 0
    assert one.base()[0].tolist() == before.tolist() and np.abs(found.loss - before).max() > 0.1


def test_an_example_without_supervised_tokens_has_no_loss() -> None:
    asked = Examples.of([*made_up(2, 1), Encoded(np.arange(3, 8, dtype=np.int32), np.zeros(5, bool))])
    one = SubsetTrainer(trainable(CHOICE, PLAIN), Data.of(Examples.of(made_up(4, 0))), PLAIN, Uniform(), asked)
    assert np.isnan(one.base()[0]).tolist() == [False, False, True]
