"""Training a subset of a model's parameters: gathered, updated and scattered back; the others stay bit for bit.

The optimizer sees only the gathered parameters, so moments, weight decay and gradient clipping apply to them alone, and
its state is as large as the budget, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from curate.training.optimizer import Preconditioner

Selected = Mapping[str, np.ndarray]  # parameter name -> flat positions in it, ascending


@dataclass(frozen=True)
class Refreshed:
    """Which parameters of a model are trained.

    selected: at the start, parameter name -> flat positions. update: from the model's current parameters by name, and
    the number of steps taken, the new selection; called every `interval` and every `density_interval` steps (0: never);
    None for a fixed mask.
    """

    selected: Selected
    interval: int = 0
    update: Callable[[Mapping[str, Tensor], int], Selected] | None = None
    density_interval: int = 0

    def due(self, number: int) -> bool:
        """Whether the mask is to be updated before step `number` (from 1)."""
        return number > 1 and any(i and (number - 1) % i == 0 for i in (self.interval, self.density_interval))


class MaskedParameters:
    """The selected elements of a model's parameters.

    whole: the parameters with any selected element. parameters: what the optimizer is given: for each name a vector of
    the selected elements, which is empty except between `gather` and `scatter`.
    """

    def __init__(self, whole: Mapping[str, nn.Parameter], selected: Selected):
        self._every = dict(whole)
        self.select(selected)

    def select(self, selected: Selected) -> None:
        """Set the selection; a parameter without selected elements gets no gradient."""
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
        """The current selection, parameter name -> flat positions, int32."""
        return {name: index.cpu().numpy() for name, index in self.index.items()}

    def gather(self) -> None:
        """Copy the selected elements and their gradients into `parameters`; the full gradients are freed."""
        for name, parameter in self.whole.items():
            gathered, index = self.parameters[name], self.index[name]
            gathered.data = parameter.data.view(-1).index_select(0, index)
            assert parameter.grad is not None
            gathered.grad = parameter.grad.reshape(-1).index_select(0, index)
            parameter.grad = None

    def scatter(self) -> None:
        """Copy the elements back into the model."""
        for name, parameter in self.whole.items():
            gathered = self.parameters[name]
            parameter.data.view(-1).index_copy_(0, self.index[name].long(), gathered.data)
            gathered.grad, gathered.data = None, gathered.data.new_empty(0)

    def spread(self, name: str, values: Tensor) -> Tensor:
        """A value for each selected element of a parameter, in the parameter's shape; 0 elsewhere."""
        whole, index = self.whole[name], self.index[name].long()
        return values.new_zeros(whole.numel()).index_copy_(0, index, values).view_as(whole)

    def gradients(self) -> dict[str, Tensor]:
        """Between `gather` and `scatter`: the gradients of the selected elements, in the parameters' shapes."""
        grads = {name: gathered.grad for name, gathered in self.parameters.items()}
        return {name: self.spread(name, grad) for name, grad in grads.items() if grad is not None}

    def reselect(self, selected: Selected, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """Change the selection, and return the optimizer's states for it by name: elements that stay selected keep
        their moments, new ones start from zero (as in LIFT)."""
        previous, old_states = self.selected(), {n: optimizer.state.get(p, {}) for n, p in self.parameters.items()}
        self.select(selected)
        new_states = {}
        for name, index in self.index.items():
            old_state = old_states.get(name)
            if not old_state:
                continue
            _, old_places, new_places = np.intersect1d(
                previous[name], index.cpu().numpy(), assume_unique=True, return_indices=True
            )
            new_states[name] = {"step": old_state["step"]}
            for key in ("exp_avg", "exp_avg_sq"):
                moments = old_state[key].new_zeros(len(index))
                moments[torch.from_numpy(new_places)] = old_state[key][torch.from_numpy(old_places)]
                new_states[name][key] = moments
        return new_states


class MaskedScales:
    """What a gradient is multiplied by to be that of the selected elements: 1 for these, or Adam's D; 0 for the others.

    adam: D of the gathered parameters, or None.
    """

    def __init__(self, masked: MaskedParameters, adam: Preconditioner | None):
        self._masked, self._adam = masked, adam
        self._names = {id(parameter): name for name, parameter in masked.whole.items()}

    def of(self, parameter: nn.Parameter) -> Tensor:
        """Of a parameter, in its shape."""
        name = self._names[id(parameter)]
        scale = self._adam.of(self._masked.parameters[name]) if self._adam else None
        if scale is None:
            scale = torch.ones(len(self._masked.index[name]), dtype=parameter.dtype, device=parameter.device)
        return self._masked.spread(name, scale)
