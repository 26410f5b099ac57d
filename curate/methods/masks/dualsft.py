from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.selection_profile import place_of
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class Dualsft(Mask):
    """The parameters that matter most in a training step, by the gradients that score the data (DualSFT).

    Formula, with q and G as in the score `dualsft` (--score names one that was computed):

        score_j = q_j G_j,    the budget's largest, signed: what hurts the validation loss ranks low

    sign=absolute ranks by |score_j| instead. quota=global ranks all parameters together; quota=module gives each
    parameter tensor (a matrix, a norm) its share of the budget by size; quota=floors gives every layer an equal part of
    `floor` of the budget, then every kind of module an equal part of another `floor`, and the rest to the best of all.

    Cost: only reading what the score has stored; no sample goes through the model. Memory: the score's state, about 12
    bytes per parameter, and 8 bytes per chosen parameter.

    Departures: none from the paper, which ranks signed scores of all parameters together. The published script is
    sign=absolute with quota=floors; what is outside the layers (embeddings, the last norm, the head) counts as a layer
    of its own there, and which of the two quotas goes first is ours.

    Reference: DualSFT, arXiv:2605.06166, Equation 7 and Section 5.1.

    >>> import numpy as np
    >>> values = {"a": np.array([[3.0, -9.0], [1.0, 0.0]]), "b": np.array([2.0, 2.0])}
    >>> chosen = Dualsft().init(Parameters(values, 2, values.__getitem__))
    >>> {name: places.tolist() for name, places in chosen.items()}
    {'a': [0], 'b': [0]}
    >>> chosen = Dualsft(end="smallest").init(Parameters(values, 2, values.__getitem__))
    >>> {name: places.tolist() for name, places in chosen.items()}
    {'a': [1, 3], 'b': []}
    """

    uses_score: ClassVar = True

    quota: Literal["global", "module", "floors"] = "global"
    """Whether all parameters are ranked together, or those of each tensor by themselves; or with floors by layer and
    kind of module."""
    sign: Literal["signed", "absolute"] = "signed"
    """absolute: what hurts the validation loss most ranks as high as what helps it most."""
    floor: float = 0.2
    """With quota=floors: the share of the budget that is spread over layers, and over kinds of modules."""
    end: Literal["largest", "smallest"] = "largest"
    """smallest: the reverse, which should do worse than random; a check that the ranking means something."""

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 0.5:
            raise CurateError(f"floor={self.floor:g} of the mask dualsft is taken twice: a share from 0 to 0.5.")

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        sizes = {name: int(np.prod(weight.shape)) for name, weight in given.weights.items()}
        values = self._values(given)
        if self.quota == "global":
            return largest(values, sizes, given.budget)
        if self.quota == "floors":
            return self._with_floors(values, sizes, given.budget)
        return largest_of_each(values, sizes, apportion(sizes, given.budget))

    def _values(self, given: Parameters) -> Callable[[str], np.ndarray]:
        scores = given.scores
        assert scores is not None
        direction = 1.0 if self.end == "largest" else -1.0
        return lambda name: direction * (np.abs(scores(name)) if self.sign == "absolute" else scores(name))

    def _with_floors(
        self, values: Callable[[str], np.ndarray], sizes: Mapping[str, int], budget: int
    ) -> dict[str, np.ndarray]:
        chosen = {name: np.zeros(0, np.int64) for name in sizes}

        def left(name: str) -> np.ndarray:
            worth = np.array(values(name), np.float64).ravel()
            worth[chosen[name]] = -np.inf
            return worth

        def take(names: Sequence[str], count: int) -> None:
            its = {name: sizes[name] for name in names}
            room = sum(its.values()) - sum(len(chosen[name]) for name in names)
            for name, places in largest(left, its, min(count, room)).items():
                chosen[name] = np.union1d(chosen[name], places)

        for side in (0, 1):  # by layer, then by kind of module
            groups: dict[object, list[str]] = {}
            for name in sizes:
                groups.setdefault(place_of(name)[side], []).append(name)
            for names in groups.values():
                take(names, int(self.floor * budget / len(groups)))
        take(list(sizes), budget - sum(map(len, chosen.values())))
        return chosen
