"""Looks at the target during training: its samples' hidden states under the current model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from curate.kinds.weighting import Weighting
from curate.models.usage import Usage
from curate.training.dataset import Data
from curate.training.examples import Examples
from curate.training.inference import in_order, look_flops, times, unlearnt
from curate.training.objective import Objective


class Looks:
    """The looks of a training: every `refresh` steps or epochs, at the target's samples and, for a weighting that
    compares with them, at some of the samples that are trained on. Every process computes them."""

    def __init__(self, weighting: Weighting, objective: Objective, processes: Any, seed: int, count_flops: bool):
        self.weighting, self.objective, self.processes = weighting, objective, processes
        self.seed, self.count_flops = seed, count_flops

    def due(self, number: int, begins: int | None) -> bool:
        """Whether there is one before step `number`. begins: the epoch (from 0) that begins with it, if one does."""
        if "states" not in self.weighting.needs or not self.weighting.uses_target:
            return False
        if self.weighting.refresh_unit == "epochs":
            return begins is not None and begins % self.weighting.refresh == 0
        return (number - 1) % self.weighting.refresh == 0

    def samples(self, data: Data) -> int:
        """How many samples one is over."""
        return len(data.anchors or ()) + min(self.weighting.background, len(data.examples))

    def foreseen(self, number: int, begins: int | None, data: Data) -> float:
        """FLOPs of the look before step `number`, over all processes; 0 if there is none. begins: as in `due`."""
        if not self.due(number, begins):
            return 0.0
        some = self._background(number, data)
        sets = [examples for examples in (data.anchors, some) if examples]
        return self.processes.num_processes * sum(look_flops(self.objective.model, examples) for examples in sets)

    def take(self, number: int, data: Data, state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Usage]:
        """The weighting's state after the look before step `number`, and the cost."""
        assert data.anchors is not None
        usage, began = self.objective.model.usage(), time.perf_counter()
        some = self._background(number, data)
        background = self._states(some, usage) if some else None
        state = self.weighting.refreshed(self._states(data.anchors, usage), state, background)
        return state, times(usage, self.processes.num_processes, time.perf_counter() - began)

    def _background(self, number: int, data: Data) -> Examples | None:
        """Samples that are trained on, drawn by seed and step; None for a weighting that does not compare with them."""
        if not self.weighting.background:
            return None
        rng, n = np.random.default_rng([self.seed % 2**63, number, 2]), len(data.examples)
        drawn = np.sort(rng.choice(n, min(self.weighting.background, n), replace=False))
        return Examples.of([data.examples.encoded(int(i)) for i in drawn])

    def _states(self, examples: Examples, usage: Usage) -> Any:
        found = []
        for batch, losses in unlearnt(self.objective, examples, usage, self.count_flops, losses=False):
            assert losses.states is not None
            found.append((batch.documents, losses.states))
        return in_order(found)
