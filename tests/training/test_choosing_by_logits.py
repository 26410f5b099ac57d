"""UDS, which chooses within a step by logits alone, against its formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.methods.weightings.uds_online import UdsOnline
from curate.numerics.projections import Rademacher
from tests.support.choosing import CANDIDATES, STEP, trainer_of


class Watched(UdsOnline):
    """UDS, with each step's candidates, and their logits by the model itself, one at a time, kept beside."""

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        trainer: Any = self.__dict__["trainer"]
        logits = []
        with torch.no_grad():
            for d in self.__dict__["documents"]:
                ids = torch.from_numpy(CANDIDATES[d].ids.astype(np.int64))[None]
                logits.append(trainer.model.model(ids).logits[0].double().numpy())
        given, state = super().update(step, state)
        self.__dict__["steps"].append((logits, given, step.room))
        return given, state


@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("lora", [True, False])
def test_uds_is_its_formula_of_the_logits_at_every_step(size: int, lora: bool) -> None:
    """The head learns where all parameters do: what was made of it once is made again."""
    weighting = Watched(alpha=0.01, memory=3, d1=5, d2=4, length=9)
    weighting.__dict__["steps"] = []
    trainer = trainer_of(weighting, replace(STEP, steps=4, micro_batch_size=size), lora=lora, target=None)
    weighting.__dict__["trainer"] = trainer
    shown = trainer.weigher.shown

    def keep(number: int, documents: np.ndarray, *rest: Any) -> Step:
        weighting.__dict__["documents"] = documents
        return shown(number, documents, *rest)

    from scipy.linalg import svdvals

    trainer.weigher.shown = keep  # type: ignore[method-assign]
    list(trainer.run())
    vocabulary = weighting.__dict__["steps"][0][0][0].shape[1]
    c = Rademacher(5, 0).entries("vocabulary", 0, vocabulary, torch.device("cpu")).double().numpy()
    d = Rademacher(4, 0).entries("places", 0, 64, torch.device("cpu")).double().numpy()
    memory: list[np.ndarray] = []
    for logits, given, room in weighting.__dict__["steps"]:
        z = [(d[: len(one)].T @ one @ c).ravel() * np.sqrt(vocabulary * 9) / 2 for one in logits]
        apart = [np.mean([np.linalg.norm(one - m) for m in memory]) if memory else 0.0 for one in z]
        score = np.array([svdvals(one).sum() for one in logits]) + 0.01 * np.array(apart)
        assert given.measure == pytest.approx(score, rel=1e-5)
        chosen = np.argsort(-score, kind="stable")[:room]
        assert set(np.flatnonzero(given.values)) == set(chosen)
        memory = [*memory, *(z[i] for i in chosen)][-3:]


def test_uds_goes_on_with_its_memory() -> None:
    settings = replace(STEP, steps=4)
    whole = trainer_of(UdsOnline(), settings, target=None)
    wanted = [(d.documents.tolist(), d.weight.tolist()) for d in whole.run()]
    first = trainer_of(UdsOnline(), settings, target=None)
    found, run = [], first.run()
    for _ in range(2):
        d = next(run)
        found.append((d.documents.tolist(), d.weight.tolist()))
    state = {n: p.detach().clone() for n, p in first.model.model.state_dict().items()}
    second = trainer_of(UdsOnline(), settings, target=None, start=first.snapshot(), state=state)
    found += [(d.documents.tolist(), d.weight.tolist()) for d in second.run()]
    assert found == wanted
