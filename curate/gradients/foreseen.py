"""What per-sample gradients would cost, told from a model's shapes: the FLOPs that the ledger would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from curate.gradients.backward import Backward
from curate.gradients.collectors import Lengths, Moved, Projected
from curate.gradients.curvature import Factors, Rotated
from curate.gradients.directions import forwards
from curate.kinds.passes import GradientRequest
from curate.models.flops import forward_flops
from curate.models.language_model import LanguageModel
from curate.models.skeleton import fakes


class ForeseenGradients:
    """A skeleton whose gradients would be taken. directions: how many a sample's gradient is multiplied with."""

    def __init__(self, lm: LanguageModel):
        with fakes():
            self.backward = Backward.of(lm)
        self.lm, self.directions = lm, 1
        head = {id(p) for p in lm.head.parameters()} if lm.plain_head else set()
        self._learns_head = any(id(p) in head for p in self.backward.parameters.values())
        self._head = lm.head.weight.numel() * self._learns_head
        self._linear = list(self.backward.linear.values())
        self._elements = sum(self.backward.at.sizes.values())

    def groups_of(self, request: GradientRequest) -> int:
        """How many means a counting pass makes, by which the samples are multiplied later; 0 if it makes none."""
        collector = self._collector(request)
        counts = [len(v) for v in (collector.sums() if collector else {}).values() if getattr(v, "ndim", 0) == 1]
        return max(counts, default=0)

    def flops(self, n: int, longest: int, counts: np.ndarray, requests: Sequence[GradientRequest]) -> float:
        """FLOPs of a batch of n samples padded to `longest` tokens, counts [n] of which are supervised."""
        rows = n * max(int(counts.max()), 1) if self._learns_head else int(counts.sum())
        rows = rows if self.lm.plain_head else n * longest
        once = forward_flops(self.lm.model, n, longest, rows)
        with fakes():
            step = self.backward._flops.step(n, longest, rows)
        losses = {(request.loss, request.beside) for request in requests if request.watch}
        total = sum(step + (once if beside else 0.0) for _, beside in losses)
        for request in requests:
            if request.watch:
                total += self._kept(request, n, longest, rows)
            along = forwards(request.by, self.directions) if request.along else 0.0
            total += along * once + (6.0 * once if request.curved else 0.0)
        return total

    def _kept(self, request: GradientRequest, n: int, longest: int, head_rows: int) -> float:
        """FLOPs of forming the gradients and of what is kept of them."""
        collector = self._collector(request)
        if isinstance(collector, Moved):
            return 0.0
        if isinstance(collector, Lengths):
            return sum(_square(n, longest, *shape) for shape in self._linear) + 2.0 * head_rows * self._head
        if isinstance(collector, Factors | Rotated):
            return collector.foreseen(self.backward.at.linear, n * longest)
        formed = 2.0 * n * longest * sum(a * b for a, b in self._linear) + 2.0 * head_rows * self._head
        if isinstance(collector, Projected):
            return formed + n * collector.projector.flops(self._elements)
        products = 2.0 * n * self.directions * self._elements if self.directions > 1 and collector is None else 0.0
        return formed + products

    def _collector(self, request: GradientRequest) -> Any:
        """The collector of no samples; None if it needs the state of an earlier pass."""
        watch: Callable[..., Any] | None = request.watch
        if watch is None:
            return None
        try:
            with fakes():
                return watch(self.backward.at, None, np.zeros(0, np.int64))
        except Exception:  # whatever a method raises without the state that it is meant to have  # noqa: BLE001
            return None


def _square(n: int, longest: int, rows: int, columns: int) -> float:
    """FLOPs of the squared length of a matrix's gradients, over pairs of tokens where that takes fewer."""
    pairs = 2.0 * longest * n * longest * (rows + columns)
    return pairs if longest * (rows + columns) < rows * columns else 2.0 * n * longest * rows * columns
