"""Records the factors of per-sample gradients with hooks during one forward and one backward pass.

Parameters get no gradients of their own: all are frozen, and the autograd graph begins at the output of the first layer
of interest. So with LoRA the backward pass consists only of the products that propagate the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from curate.errors import CurateError
from curate.gradients.per_sample import Outer, PerSample, RowGradient, Scale, Several, Thin
from curate.models.forward import wide

_Given: TypeAlias = "Tensor | None"


@dataclass
class _Use:
    """One call of a layer: its input and, after the backward pass, the gradient of its output."""

    module: nn.Module
    x: Tensor
    e: _Given = None
    made: Thin | None = None  # replaces both


class Tape:
    """Records the factors of the gradients of `parameters` (name -> parameter of the model).

    Raises CurateError for a parameter whose per-sample gradient cannot be computed from hooks.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._wanted: dict[nn.Module, dict[str, str]] = {}  # module -> its own name of a parameter -> ours
        for module in model.modules():
            if own_names := {own: names[id(p)] for own, p in module._parameters.items() if id(p) in names}:
                _refuse_unknown(module, own_names)
                self._wanted[module] = own_names
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self._order = {name: place for place, name in enumerate(parameters)}
        self._uses: list[_Use] = []
        self._thin, self._made = False, 0.0
        self._looked: set[nn.Module] = set()

    @contextmanager
    def recording(self, thin: bool = False) -> Iterator[None]:
        """Record the enclosed forward and backward pass, discarding what was recorded before.

        thin: for thin matrices (`Thin`) form the per-sample gradients during the backward pass and drop their factors:
        the gradients are smaller, and reusing memory is faster than allocating it.
        """
        self._uses, self._thin, self._made = [], thin, 0.0
        hooks = [module.register_forward_hook(self._remember) for module in self._wanted]
        try:
            with torch.enable_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        use = _Use(module, inputs[0].detach())
        if not output.requires_grad:  # the first layer of interest: the graph begins here
            output = output.detach().requires_grad_()

        def came_back(e: Tensor) -> None:
            use.e = e
            if self._thin:
                self._make(use)

        output.register_hook(came_back)
        self._uses.append(use)
        return output

    def _make(self, use: _Use) -> None:
        own_names = self._wanted[use.module]
        if use.e is None or own_names.keys() != {"weight"} or not isinstance(use.module, nn.Linear | Conv1D):
            return
        name = own_names["weight"]
        outer = Outer(name, self.shapes[name], use.x, use.e.detach(), isinstance(use.module, Conv1D))
        if outer.thin():
            self._made += outer.flops()
            use.made, use.x, use.e = Thin.made(outer), use.x.new_empty(0), None

    @property
    def flops(self) -> float:
        """FLOPs of the gradients that were formed while recording."""
        return self._made

    def gradients(self) -> Iterator[PerSample]:
        """The per-sample gradients of every parameter that was used, in their given order; clears the record."""
        by_name: dict[str, list[PerSample]] = {}
        uses, self._uses = self._uses, []
        for use in uses:
            if use.e is not None or use.made is not None:
                for own, name in self._wanted[use.module].items():
                    by_name.setdefault(name, []).append(self._factors(use, own, name))
        for name in sorted(by_name, key=self._order.__getitem__):
            parts = by_name.pop(name)
            yield parts[0] if len(parts) == 1 else Several(name, self.shapes[name], parts)

    def _factors(self, use: _Use, own: str, name: str) -> PerSample:
        if use.made is not None:
            return use.made
        module, x, shape = use.module, use.x, self.shapes[name]
        assert use.e is not None
        if isinstance(module, nn.Embedding):
            e = use.e if module.padding_idx is None else use.e.masked_fill((x == module.padding_idx)[..., None], 0)
            return RowGradient(name, shape, x, e)
        if isinstance(module, nn.Linear | Conv1D):
            if own == "weight":
                return Outer(name, shape, x, use.e, isinstance(module, Conv1D))
            return Scale(name, shape, use.e)
        return self._stretched(use, own, name)

    def _stretched(self, use: _Use, own: str, name: str) -> PerSample:
        """Gradient of a norm's weight or bias w: the output is  c + w u,  with u = f(w=1) - f(w=0)."""
        module, x = use.module, wide(use.x)
        assert use.e is not None
        with torch.no_grad():
            values = {own: wide(value) for own, value in module.named_parameters(recurse=False)}
            at_zero = functional_call(module, {**values, own: torch.zeros_like(values[own])}, (x,))
            at_one = functional_call(module, {**values, own: torch.ones_like(values[own])}, (x,))
            u = wide(at_one - at_zero)
            if module not in self._looked:
                _refuse_other_form(module, name, x, values, at_zero + values[own] * u)
                self._looked.add(module)
        return Scale(name, self.shapes[name], use.e, u)


def _refuse_unknown(module: nn.Module, own_names: Mapping[str, str]) -> None:
    supported = type(module) in (nn.Embedding, nn.Linear, Conv1D)  # subclasses may compute something else
    for own, name in own_names.items():
        subclass = isinstance(module, nn.Embedding | nn.Linear | Conv1D)
        if not supported and (subclass or module._parameters[own].ndim != 1):  # type: ignore[union-attr]
            raise CurateError(
                f"the parameter {name} is of a {type(module).__name__}, whose per-sample gradients are not supported "
                "(those of linear and embedding layers and norms are); train LoRA instead, and use its parameters."
            )


def _refuse_other_form(module: nn.Module, name: str, x: Tensor, values: Mapping[str, Tensor], expected: Tensor) -> None:
    """Raises CurateError if a layer's output is not of the form  c + w u  in its parameter w."""
    output = functional_call(module, dict(values), (x,))
    matches = output.shape == expected.shape
    if matches:
        finite = output.isfinite() & expected.isfinite()
        output, expected = output[finite], expected[finite]
        matches = not len(output) or torch.allclose(output, expected, rtol=1e-3, atol=1e-4 * float(output.abs().max()))
    if not matches:
        raise CurateError(
            f"the parameter {name} of a {type(module).__name__} does not scale or shift its output, so its "
            "per-sample gradient is not supported; train LoRA instead, and use its parameters."
        )
