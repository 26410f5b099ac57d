"""A step is divided so that what its micro-batches keep for the backward pass fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.training.distributed import Alone
from curate.training.examples import Examples, batch_of, micro_batches
from curate.training.footprint import Footprint, footprint
from curate.training.objective import Objective
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.support.narrow import NARROW
from tests.support.training import PLAIN, closest, gradient_of, narrow, trained

LORA = replace(PLAIN, lora_r=4)


def kept(model: LanguageModel, run: Callable[[], Any]) -> int:
    """Bytes of the different memories that a forward pass keeps, but for the parameters."""
    found = {p.untyped_storage().data_ptr(): 0 for p in model.model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        alive = run()
    del alive
    return sum(found.values())


@pytest.mark.parametrize("settings", [PLAIN, LORA], ids=["all parameters", "lora"])
def test_what_is_foreseen_is_what_is_kept(encoded: list[Encoded], settings: TrainSettings) -> None:
    model = trainable(ModelChoice(NARROW, device="cpu"), settings).model
    objective = Objective(model)
    room = footprint(objective, settings)
    assert room is not None and room.limit == 1.5 * (1 << 30)
    batch = batch_of(Examples.of(encoded), [np.array([i]) for i in range(9)], model.device)
    found, (rows, longest) = kept(model, lambda: objective.states(batch)), batch.ids.shape
    assert found == pytest.approx(rows * longest * room.token, rel=0.1)
    whole = kept(model, lambda: objective.losses(batch))
    n = int(batch.supervised.sum())
    assert found < whole < room.of(rows, longest, n)
    assert room.supervised == 3 * 4 * model.model.config.vocab_size


def test_a_gpu_has_no_limit_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(narrow())
    monkeypatch.setattr(objective.model, "device", torch.device("meta"))
    assert footprint(objective, PLAIN) is None


def test_rows_that_fit_go_together(encoded: list[Encoded]) -> None:
    examples = Examples.of(encoded)
    rows = [np.array([i]) for i in range(len(encoded))]
    lengths = examples.lengths
    room = Footprint(10.0, 1.0, 10.0 * float(np.sort(lengths)[-3]) * 4)
    for size, world in ((0, 1), (3, 1), (0, 2)):
        groups = micro_batches(examples, rows, size, world, room)
        assert sorted(int(r[0]) for group in groups for r in group) == list(range(len(rows)))
        for group in groups:
            longest, n = max(lengths[r[0]] for r in group), sum(examples.counts[r[0]] for r in group)
            assert len(group) == 1 or room.fits(len(group), int(longest), int(n))
            assert not size or len(group) <= size
        longest = [int(lengths[group[0][0]]) for group in groups]
        assert longest == sorted(longest, reverse=True)
    every = Footprint(10.0, 1.0, 1.0)
    assert all(len(group) == 1 for group in micro_batches(examples, rows, 0, 1, every))
    assert len(micro_batches(examples, rows, 0, 2, None)) == 2


@pytest.mark.parametrize("weighting", [Uniform(), Linupper()], ids=["uniform", "of the whole step"])
def test_the_gradient_does_not_depend_on_the_limit(encoded: list[Encoded], weighting: Any) -> None:
    """Also where single rows exceed it, whose activations are computed again."""
    settings, some = replace(PLAIN, batch_size=1000, clip=0.0), encoded[:12]
    whole, first = gradient_of(Alone(), some, weighting, settings)
    longest = max(len(one.ids) for one in some)
    room = footprint(Objective(narrow("float64")), settings)
    assert room is not None
    flops = []
    for share in (3.0, 0.7, 0.01):  # of what the longest row needs
        limit = share * room.of(1, longest, longest) / (1 << 30)
        found, done = gradient_of(Alone(), some, weighting, replace(settings, activation_gib=limit))
        closest(found, whole)
        assert done.metrics["loss"] == pytest.approx(first.metrics["loss"])
        assert ("losses" in done.usage) == (weighting.scope == "batch")  # which goes through the model twice
        flops.append(done.usage["train"].flops)
    assert flops[0] < first.usage["train"].flops and flops[1] < flops[2]  # less padding; and activations twice


def test_memory_is_bounded(encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass keeps more than the limit, but for rows that are computed again."""
    model, most = narrow(), 0
    room = footprint(Objective(model), PLAIN)
    assert room is not None
    limit = 1.5 * room.of(1, max(len(one.ids) for one in encoded), 60)
    losses = Objective.losses

    def watched(self: Objective, *args: Any) -> Any:
        nonlocal most
        found: list[Any] = []
        most = max(most, kept(self.model, lambda: found.append(losses(self, *args)) or found))
        return found[0]

    monkeypatch.setattr(Objective, "losses", watched)
    trained(Alone(), encoded, Uniform(), replace(PLAIN, activation_gib=limit / (1 << 30)), model)
    assert 0.3 * limit < most < limit
