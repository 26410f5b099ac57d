"""How often a batch would wait for a GPU: as often for many layers or scores as for few, counted on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curate.gradients.backward import Backward
from curate.gradients.collectors import Dots, Lengths, Totals
from curate.gradients.sketches import gram
from curate.methods.scores.el2n import El2n
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from tests.support.gradients import CONFIGS, backward_of, samples
from tests.support.models import chat, raw
from tests.support.narrow import NARROW
from tests.support.syncs import Syncs

TEXTS = [raw("the mill by the river is red " * n) for n in (1, 2, 5, 7)] + [chat("who?", "a miller")]


def scores(lm: LanguageModel, *methods: Any) -> dict[str, Any]:
    return score_samples({"base": lm}, TEXTS, {m.name: m.passes(None)[0] for m in methods})[0]


def test_a_batch_of_scores_is_read_once() -> None:
    lm = LanguageModel(ModelChoice(NARROW, device="cpu"))
    for masked, most in ((True, 6), (False, 4)):  # a mask is looked at by transformers
        lm._masked = masked
        with Syncs() as one:
            scores(lm, Nll())
        with Syncs() as three:
            scores(lm, Nll(), Entropy(), El2n())
        assert three.total == one.total <= most, three.where()


def test_without_a_mask_for_the_padding_scores_are_the_same() -> None:
    """As a GPU is given none."""
    lm = LanguageModel(ModelChoice("tiny", device="cpu"))
    found = scores(lm, Nll(), Entropy())
    lm._masked = False
    for name, columns in scores(lm, Nll(), Entropy()).items():
        assert np.abs(columns["score"] - found[name]["score"]).max() < 1e-5


@pytest.mark.parametrize("lora", [True, False])
def test_a_batch_of_gradients_is_waited_for_as_often_in_deep_models(lora: bool) -> None:
    model, encoded = backward_of(CONFIGS["llama"], lora), samples()
    layers = len(model.parameters)
    usage = {phase: model.lm.usage() for phase in ("forward", "backward")}
    model.gradients(encoded, usage)
    with Syncs() as waited:
        model.gradients(encoded, usage)
    assert waited.total <= 11 < layers, waited.where()
    with Syncs() as waited:
        gram(model, encoded, 4)
    assert waited.total <= 12, waited.where()


def test_what_is_kept_of_gradients_is_read_once() -> None:
    model = backward_of(CONFIGS["llama"], True)
    q = {name: p.detach()[None].repeat(2, 1, 1) for name, p in model.parameters.items()}
    gradients = _gradients(model)
    for collector, most in ((Dots(q), 1), (Lengths(), 1), (Totals(np.arange(7) % 3, 3, "", "count"), 0)):
        with Syncs() as waited:
            for gradient in gradients:
                collector.take(gradient)
            collector.columns()
        assert waited.total <= most, waited.where()


def _gradients(model: Backward) -> list[Any]:
    return model.gradients(samples(), {phase: model.lm.usage() for phase in ("forward", "backward")}).parameters
