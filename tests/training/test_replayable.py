"""Which trainings are not replayed backwards, and that each says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.linear import Linear
from curate.training.distributed import Alone
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.replay import metagradients
from curate.training.replayable import require_replayable, require_replayable_settings
from tests.support.replays import ADAMW, ASKED, Case

MASK = Refreshed({"model.norm.weight": np.arange(4)})


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (Case(replace(ADAMW, precision="bfloat16")), "products are in bfloat16"),
        (Case(replace(ADAMW, lora_dropout=0.1)), "lora_dropout=0.1"),
        (Case(replace(ADAMW, gradient_checkpointing=True)), "gradient_checkpointing=true"),
        (Case(replace(ADAMW, compile=True)), "compile=true"),
        (Case(replace(ADAMW, shuffle_weights=True)), "shuffle_weights=true"),
        (Case(replace(ADAMW, sum_gradients=True)), "sum_gradients=true"),
        (Case(weighting=Linear()), "'linear' computes weights from the model or the step"),
        (Case(weighting=AdaptStatic(normalize="mean1")), "'adapt_static' computes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_replayed_are_refused(case: Case, says: str) -> None:
    with pytest.raises(CurateError, match=says):
        require_replayable_settings(case.settings, case.weighting, "cpu")


def test_a_refused_training_has_not_begun() -> None:
    trainer = Case(replace(ADAMW, sum_gradients=True)).trainer()
    with pytest.raises(CurateError, match="sum_gradients"):
        metagradients(trainer, ASKED)
    assert trainer.step == 0


class Two(Alone):
    num_processes = 2


def trained_once(trainer: Trainer) -> None:
    next(iter(trainer.run()))


def in_bfloat16(trainer: Trainer) -> None:
    trainer.model.model.model.norm.to(torch.bfloat16)


def with_dropout(trainer: Trainer) -> None:
    trainer.model.model.model.layers[1].self_attn.attention_dropout = 0.2


def by_flash(trainer: Trainer) -> None:
    trainer.model.model.config._attn_implementation = "flash_attention_2"


def with_mask(trainer: Trainer) -> None:
    trainer.mask = MASK


def of_two(trainer: Trainer) -> None:
    trainer.processes = Two()


def from_a_stream(trainer: Trainer) -> None:
    trainer.weigher.data = replace(trainer.data, stream=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("become", "says"),
    [
        (trained_once, "has taken 1 steps"),
        (in_bfloat16, "has weights in torch.bfloat16"),
        (with_dropout, "has a dropout of 0.2"),
        (by_flash, "attention by flash_attention_2"),
        (with_mask, "by a mask"),
        (of_two, "several processes"),
        (from_a_stream, "from a stream"),
    ],
)
def test_trainings_that_cannot_be_replayed_are_refused(become: Any, says: str) -> None:
    trainer = Case().trainer()
    require_replayable(trainer)
    become(trainer)
    with pytest.raises(CurateError, match=says):
        require_replayable(trainer)
