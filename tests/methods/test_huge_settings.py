"""Settings of a thousand million are a sentence at once, or do no more than the data asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.embed_logits import EmbedLogits
from curate.methods.scores.less import Less
from curate.methods.scores.near_dup import NearDup
from curate.methods.weightings.uds_online import UdsOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import encode
from curate.numerics.projections import Sjlt
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from tests.support.checkpoints import POOL
from tests.support.narrow import NARROW
from tests.support.training import narrow

HUGE = 10**9


@pytest.mark.parametrize(
    "made",
    [
        lambda: Dsir(buckets=HUGE),
        lambda: NearDup(ngram=HUGE),
        lambda: NearDup(permutations=HUGE),
        lambda: NearDup(permutations=HUGE, band=HUGE),
        lambda: Less(nonzeros=HUGE),
        lambda: Sjlt(64, 0, HUGE),
        lambda: EmbedLogits(d1=HUGE),
        lambda: EmbedLogits(d2=HUGE),
        lambda: UdsOnline(d1=HUGE),
        lambda: UdsOnline(d2=HUGE),
    ],
)
def test_a_huge_setting_is_a_sentence(made: Callable[[], Any]) -> None:
    with pytest.raises(CurateError, match="1000000000") as raised:
        made()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lora_r", [HUGE, 100_000])
def test_an_adapter_wider_than_the_model_is_a_sentence(lora_r: int) -> None:
    from curate.training.trainable import trainable

    with pytest.raises(CurateError, match=f"lora_r={lora_r} is more than the"):
        trainable(ModelChoice(NARROW, device="cpu"), TrainSettings(lora_r=lora_r))


@pytest.mark.parametrize("texts", [["a red apple", "some green pears"], ["", "a"], [""]])
def test_runs_of_more_words_than_there_are_add_nothing(texts: list[str]) -> None:
    batch, target = Text.of(texts), Target.of(["which apple is red?"])
    longest, huge = (run(Dsir(ngrams=n), [batch], target)[0] for n in (8, HUGE))
    assert np.array_equal(longest["score"], huge["score"], equal_nan=True)
    assert longest["error"].tolist() == huge["error"].tolist()


def training(**settings: Any) -> Trainer:
    model = narrow()
    data = Data.of(Examples.of(encode(model.tokenizer, POOL, 512)))
    return Trainer(model, data, TrainSettings(batch_size=4, **settings), Uniform(), Alone())


@pytest.mark.parametrize("settings", [{}, {"order": "pool", "packing": True}])
def test_a_long_training_begins_at_once(settings: dict[str, Any]) -> None:
    steps = training(epochs=3, **settings).steps
    assert steps == 3 * training(epochs=1, **settings).steps
    endless = training(epochs=3 * HUGE, **settings)
    assert endless.steps == HUGE * steps
    assert next(iter(endless.run())).step == 1
    assert next(iter(training(steps=HUGE, **settings).run())).step == 1


def test_epochs_of_varying_length_are_counted_up_to_a_limit() -> None:
    varying = training(epochs=2.5, packing=True)
    of_epochs = [varying._steps_of(epoch) for epoch in range(3)]
    assert varying.steps == sum(of_epochs[:2]) + int(np.ceil(of_epochs[2] / 2))
    with pytest.raises(CurateError, match="epochs=1,000,000,000: .* set max_steps instead"):
        _ = training(epochs=HUGE, packing=True).steps
