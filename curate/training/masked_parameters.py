"""Training of some numbers of a model: they are gathered, stepped and put back; the others stay bit for bit.

The optimizer knows the gathered numbers alone, so its moments, the decay and the norm by which a step is clipped are
theirs, and its state is as large as the budget, whatever the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Selected = Mapping[str, np.ndarray]  # a parameter's name -> places in it, flat, ascending


@dataclass(frozen=True)
class Refreshed:
    """Which numbers of a model are trained. selected: from the beginning, a parameter's name -> flat places. update: of
    the model's parameters by name, which from then on; asked every `interval` steps; null for a mask that stays."""

    selected: Selected
    interval: int = 0
    update: Callable[[Mapping[str, Tensor]], Selected] | None = None

    def due(self, number: int) -> bool:
        return bool(self.interval) and number > 1 and (number - 1) % self.interval == 0


class MaskedParameters:
    """The selected numbers of a model's parameters.

    whole: all parameters that may be trained. parameters: what an optimizer is given: of each name a vector of the
    selected numbers, which is empty but between `gather` and `scatter`.
    """

    def __init__(self, whole: Mapping[str, nn.Parameter], selected: Selected):
        self._every = dict(whole)
        self.select(selected)

    def select(self, selected: Selected) -> None:
        """Select others; a parameter of which nothing is selected has no gradient."""
        self.index: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.whole: dict[str, nn.Parameter] = {}
        for name, parameter in self._every.items():
            places = selected.get(name)
            parameter.requires_grad_(places is not None and len(places) > 0)
            if places is not None and len(places):
                self.whole[name] = parameter
                self.index[name] = torch.from_numpy(places.astype(np.int32)).to(parameter.device)
                self.parameters[name] = nn.Parameter(parameter.data.new_empty(0))

    def selected(self) -> dict[str, np.ndarray]:
        return {name: index.cpu().numpy() for name, index in self.index.items()}

    def gather(self) -> None:
        """The selected numbers, and the gradients of these, into `parameters`; whole gradients are let go."""
        for name, whole in self.whole.items():
            some, index = self.parameters[name], self.index[name]
            some.data = whole.data.view(-1).index_select(0, index)
            assert whole.grad is not None
            some.grad = whole.grad.reshape(-1).index_select(0, index)
            whole.grad = None

    def scatter(self) -> None:
        """The numbers back into the model."""
        for name, whole in self.whole.items():
            some = self.parameters[name]
            whole.data.view(-1).index_copy_(0, self.index[name].long(), some.data)
            some.grad, some.data = None, some.data.new_empty(0)

    def reselect(self, selected: Selected, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """Select others, and return the optimizer's states for them by name: the moments of what stays are kept, those
        of the rest start from zero (LIFT's way)."""
        before, had = self.selected(), {n: optimizer.state.get(p, {}) for n, p in self.parameters.items()}
        self.select(selected)
        found = {}
        for name, index in self.index.items():
            old = had.get(name)
            if not old:
                continue
            _, was, now = np.intersect1d(before[name], index.cpu().numpy(), assume_unique=True, return_indices=True)
            found[name] = {"step": old["step"]}
            for what in ("exp_avg", "exp_avg_sq"):
                moments = old[what].new_zeros(len(index))
                moments[torch.from_numpy(now)] = old[what][torch.from_numpy(was)]
                found[name][what] = moments
        return found
