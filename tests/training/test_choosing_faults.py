"""What a choice within a step is refused for, and what it goes on after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from curate.errors import CurateError, CurateFailure
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.rho_online import RhoOnline
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from tests.support.choosing import CANDIDATES, GPT2, STEP, TARGET, Given, told, trainer_of
from tests.support.gradients import CONFIGS, model_of


def test_a_target_of_which_nothing_is_supervised_is_refused() -> None:
    none = [Encoded(one.ids, np.zeros(len(one.ids), bool)) for one in TARGET]
    with pytest.raises(CurateError, match="no sample of the target has a supervised token within the context"):
        trainer_of(FilterThenWeight(), target=none)
    trainer = trainer_of(FilterThenWeight(), target=[*none, TARGET[0]])
    assert len(trainer.chooser._target) == 1  # type: ignore[union-attr]


def test_fewer_candidates_than_a_batch_are_refused() -> None:
    with pytest.raises(CurateError, match="'max_loss' chooses 20 samples a step .batch_size. among .* there are 12"):
        trainer_of(MaxLoss(), replace(STEP, batch_size=20))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"packing": True}, "chooses single samples of a step, which packing does not leave"),
        ({"shuffle_weights": True}, "chooses single samples of a step, which shuffle_weights does not leave"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing forgets"),
    ],
)
def test_what_choosing_cannot_be_done_with_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        trainer_of(
            FilterThenWeight(), replace(STEP, **settings), config=LlamaConfig(**dict(CONFIGS["llama"].to_dict()))
        )


def test_a_candidate_whose_gradient_overflows_is_not_chosen_and_is_counted() -> None:
    trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=2, batch_size=4, padding_per_pass=10**6))
    take, bad = trainer.chooser.backward.gradients, []  # type: ignore[union-attr]

    def overflowing(encoded: Any, *rest: Any) -> Any:
        found = take(encoded, *rest)
        if len(encoded) > len(TARGET):  # of the candidates the first
            bad.append(tuple(encoded[0].ids))
            found = replace(found, parameters=[g.of(torch.arange(1, len(encoded))) for g in found.parameters],
                            good=found.good[1:])  # fmt: skip
        return found

    trainer.chooser.backward.gradients = overflowing  # type: ignore[union-attr, method-assign]
    for done, its in zip(trainer.run(), bad, strict=False):
        assert done.metrics["unfit"] == 1 and done.metrics["samples"] == 12
        (place,) = [i for i, d in enumerate(done.documents) if tuple(CANDIDATES[d].ids) == its]
        assert done.weight[place] == 0 and np.isnan(done.measure[place])


def test_a_real_overflow_of_half_precision_is_one_of_them() -> None:
    with pytest.raises(CurateError, match="in float16 small gradients vanish"):
        lm = model_of(GPT2, True, torch.float16)
        Trainer(lm, Data.of(Examples.of(CANDIDATES), anchors=Examples.of(TARGET)), STEP, FilterThenWeight(), Alone())


def test_a_choice_of_none_or_too_many_is_a_failure() -> None:
    for by_document in ({}, {d: 1.0 for d in range(12)}):
        weighting = Given(by_document)
        trainer = trainer_of(weighting, replace(STEP, steps=1))
        told(trainer, weighting)
        with pytest.raises(CurateFailure, match="it is to choose at least 1 and at most 2"):
            list(trainer.run())


def test_losses_alone_choose_too() -> None:
    for weighting, column in ((MaxLoss(), None), (RhoOnline(), np.arange(12.0)[::-1].copy())):
        trainer = trainer_of(weighting, replace(STEP, steps=2, batch_size=4), target=None, column=column)
        for done in trainer.run():
            value = done.loss - (0 if column is None else column[done.documents])
            assert set(np.flatnonzero(done.weight)) == set(np.argsort(-value, kind="stable")[:4])
            assert done.metrics["chosen"] == 4 and done.metrics["samples"] == 12 and "losses" in done.usage


def test_a_step_that_memory_ran_out_on_is_tried_again_as_it_was() -> None:
    """First at the target, then at the candidates: both times with fewer rows at once, and the model still training."""
    trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=2, batch_size=4), dropout=0.1)
    chooser, calls = trainer.chooser, []
    assert chooser is not None
    take = chooser.backward.gradients

    def scarce(encoded: Any, *rest: Any) -> Any:
        calls.append((len(encoded), trainer.model.model.training))
        if len(calls) in (1, 3):
            raise torch.OutOfMemoryError
        return take(encoded, *rest)

    chooser.backward.gradients = scarce  # type: ignore[method-assign]
    done = list(trainer.run())
    assert trainer.micro_batch_size == 3 and len(done) == 2 and all(d.metrics["chosen"] for d in done)
    step = [(3, False), *[(3, True)] * 4]  # the target without dropout, then twelve candidates
    assert calls == [(3, False), (3, False), (6, True), *step, *step]
