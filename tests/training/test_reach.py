"""How far a first-order prediction holds, against a loss whose decrease is known in closed form; and what is said."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from curate.runs.score_reach import in_words
from curate.training.reach import DISPLACEMENTS, Reach, reach


class Bowl:
    """L(theta) = 1 + |theta - c|^2 k / 2, in place of a model's validation loss."""

    def __init__(self, k: float):
        self.k, self.c = k, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        self.model: Any = SimpleNamespace(parameters={"w": torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))})

    def value(self) -> float:
        return 1.0 + float(((self.model.parameters["w"].detach() - self.c) ** 2).sum()) * self.k / 2


def test_the_ratio_is_that_of_a_quadratic_and_the_parameters_are_put_back() -> None:
    bowl = Bowl(3.0)
    gradient = {"w": -3.0 * bowl.c}
    direction = {"w": gradient["w"].sign()}
    found = reach(bowl, gradient, direction, (1e-3, 0.1, 1.0, 2.0))  # type: ignore[arg-type]
    slope = float((gradient["w"] * direction["w"]).sum())
    wanted = [1 - 3.0 * 3 * t / 2 / slope for t in found.displacements]  # d' H d = 3 k
    assert found.ratio == pytest.approx(wanted, rel=1e-9)
    assert found.within(0.5, 1.5) == 1.0 and found.within(0.99, 1.5) == 1e-3 and found.within(2, 3) == 0.0
    assert (bowl.model.parameters["w"] == 0).all()


def test_what_float32_cannot_see_is_not_a_ratio() -> None:
    bowl = Bowl(1.0)
    found = reach(bowl, {"w": -bowl.c}, {"w": -bowl.c.sign()}, (1e-7, 1e-2))  # type: ignore[arg-type]
    assert np.isnan(found.ratio[0]) and 0.9 < found.ratio[1] < 1 and found.within(0.5, 1.5) == 1e-2


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ([np.nan, 1.1, 0.7, 0.2], "up to a learning rate times steps of 0.0001; at 0.001 it loses 0.2 times as much"),
        ([np.nan, -0.3, 0.7, 1.0], "even a learning rate times steps of 1e-05 of AdamW takes -0.3 times"),
        ([1.0, 1.0, 1.0, 0.9], "up to a learning rate times steps of 0.001$"),
        ([np.nan] * 4, "foretell nothing of the target's loss that could be measured"),
    ],
)
def test_it_is_said_in_a_sentence(ratio: list[float], said: str) -> None:
    sentence = in_words(Reach((1e-6, 1e-5, 1e-4, 1e-3), np.array(ratio)))
    assert re.search(said, sentence), sentence
    assert len(DISPLACEMENTS) == 10 and list(DISPLACEMENTS) == sorted(DISPLACEMENTS)
