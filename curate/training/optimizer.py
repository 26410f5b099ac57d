"""AdamW over a model's trained parameters, and its state as tensors by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from curate.gradients.optimizer_state import STATE
from curate.training.settings import TrainSettings
from curate.training.sharded_layers import by_kind, sharded_like
from curate.training.sharded_layers import whole as whole_of


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(
    parameters: Mapping[str, nn.Parameter], settings: TrainSettings, whole: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, not on norms and biases. whole: the full parameters, if `parameters` are
    gathered elements of them (training with a mask)."""
    dims = {name: p.ndim for name, p in (whole or parameters).items()}
    decays = [p for name, p in parameters.items() if dims[name] >= 2]
    undecayed = [p for name, p in parameters.items() if dims[name] < 2]
    groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    kinds = [{**group, "params": kind} for group in groups for kind in by_kind(group["params"])]
    return torch.optim.AdamW(kinds, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


class Scales(Protocol):
    """By what gradients are multiplied before they are projected."""

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """In a parameter's shape; None: by 1."""
        ...


class Preconditioner:
    """Adam's preconditioner D, by which the next step multiplies a gradient, apart from momentum and learning rate:

        D = (1 - beta1) / ((1 - beta1^t) (sqrt(v_hat) + eps))      (Filter-then-Weight, Eq. 9)

    with v_hat from the t - 1 previous steps. Good for one step: the numbers of steps, which lie on the device, are read
    once for all parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        states = {id(parameter): state for parameter, state in optimizer.state.items() if state}
        taken = torch.stack([state["step"] for state in states.values()]).tolist() if states else []
        self._taken = dict(zip(states, taken, strict=True))

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """D of a parameter, in its shape; None before the first step. Raises KeyError if it is not the optimizer's."""
        group = self._groups[id(parameter)]
        if id(parameter) not in self._taken:
            return None
        squares, taken = self._optimizer.state[parameter]["exp_avg_sq"], self._taken[id(parameter)]
        return adams_scale(squares, taken, group["betas"], group["eps"])


def adams_scale(squares: Tensor, taken: float, betas: tuple[float, float], eps: float) -> Tensor:
    """D from the second moment `squares` after `taken` steps."""
    hat = squares / (1 - betas[1] ** taken)
    return (1 - betas[0]) / ((1 - betas[0] ** (taken + 1)) * (hat.sqrt() + eps))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """exp_avg.NAME, exp_avg_sq.NAME and step.NAME of every parameter that has taken a step."""
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = whole_of(value.detach()).cpu().contiguous()
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` gave. Raises KeyError if a parameter has none."""
    for name, parameter in parameters.items():
        step = tensors[f"step.{name}"].to(parameter.device)
        stored = {w: tensors[f"{w}.{name}"].to(parameter.device, parameter.dtype) for w in STATE[:2]}
        moments = {w: sharded_like(value, parameter) for w, value in stored.items()}
        optimizer.state[parameter] = {"step": step, **moments}
