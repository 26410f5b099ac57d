"""What per-sample gradients are made of, remembered by hooks during one forward and one backward pass.

No parameter is given a gradient of its own: all are frozen, and the graph begins where the first layer of interest puts
something out. So of a model with LoRA the backward pass is the products that carry the error back, and no more.
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
    """A layer at work once: what went in, and, after the backward pass, the gradient of what came out."""

    module: nn.Module
    x: Tensor
    e: _Given = None
    made: Thin | None = None  # in the place of both


class Tape:
    """Remembers what the gradients of `parameters` (name -> parameter of the model) are made of.

    Raises CurateError for a parameter whose per-sample gradient cannot be had from hooks.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._wanted: dict[nn.Module, dict[str, str]] = {}  # module -> its own name of a parameter -> ours
        for module in model.modules():
            if its := {own: names[id(p)] for own, p in module._parameters.items() if id(p) in names}:
                _refuse_unknown(module, its)
                self._wanted[module] = its
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self._order = {name: place for place, name in enumerate(parameters)}
        self._uses: list[_Use] = []
        self._thin, self._made = False, 0.0
        self._looked: set[nn.Module] = set()

    @contextmanager
    def recording(self, thin: bool = False) -> Iterator[None]:
        """A forward and a backward pass inside are remembered, in place of what was before.

        thin: of thin matrices (`Thin`) keep the samples' gradients instead of their factors, from the moment that the
        error comes back: they are smaller, and memory that is written again is quicker than new memory.
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
        if not output.requires_grad:  # the first of them: here the graph begins
            output = output.detach().requires_grad_()

        def came_back(e: Tensor) -> None:
            use.e = e
            if self._thin:
                self._make(use)

        output.register_hook(came_back)
        self._uses.append(use)
        return output

    def _make(self, use: _Use) -> None:
        its = self._wanted[use.module]
        if use.e is None or its.keys() != {"weight"} or not isinstance(use.module, nn.Linear | Conv1D):
            return
        name = its["weight"]
        outer = Outer(name, self.shapes[name], use.x, use.e.detach(), isinstance(use.module, Conv1D))
        if outer.thin():
            self._made += outer.flops()
            use.made, use.x, use.e = Thin.made(outer), use.x.new_empty(0), None

    @property
    def flops(self) -> float:
        """FLOPs of the gradients that were made while recording."""
        return self._made

    def gradients(self) -> Iterator[PerSample]:
        """Of every parameter that took part, in the order they were given; what was remembered is forgotten."""
        found: dict[str, list[PerSample]] = {}
        uses, self._uses = self._uses, []
        for use in uses:
            if use.e is not None or use.made is not None:
                for own, name in self._wanted[use.module].items():
                    found.setdefault(name, []).append(self._factors(use, own, name))
        for name in sorted(found, key=self._order.__getitem__):
            parts = found.pop(name)
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
        """Of a norm's weight or bias: what comes out depends on it as  c + w u,  with u = f(w=1) - f(w=0)."""
        module, x = use.module, wide(use.x)
        assert use.e is not None
        with torch.no_grad():
            values = {own: wide(value) for own, value in module.named_parameters(recurse=False)}
            none = functional_call(module, {**values, own: torch.zeros_like(values[own])}, (x,))
            one = functional_call(module, {**values, own: torch.ones_like(values[own])}, (x,))
            u = wide(one - none)
            if module not in self._looked:
                _refuse_other_form(module, name, x, values, none + values[own] * u)
                self._looked.add(module)
        return Scale(name, self.shapes[name], use.e, u)


def _refuse_unknown(module: nn.Module, its: Mapping[str, str]) -> None:
    known = type(module) in (nn.Embedding, nn.Linear, Conv1D)  # what is made of these may do otherwise
    for own, name in its.items():
        another = isinstance(module, nn.Embedding | nn.Linear | Conv1D)
        if not known and (another or module._parameters[own].ndim != 1):  # type: ignore[union-attr]
            raise CurateError(
                f"the parameter {name} is of a {type(module).__name__}, whose per-sample gradients are not known here "
                "(linear and embedding layers, and norms, are); train LoRA, and take its parameters."
            )


def _refuse_other_form(module: nn.Module, name: str, x: Tensor, values: Mapping[str, Tensor], made: Tensor) -> None:
    """Raises CurateError where a layer's output is not  c + w u  in its parameter w."""
    there = functional_call(module, dict(values), (x,))
    same = there.shape == made.shape
    if same:
        some = there.isfinite() & made.isfinite()
        there, made = there[some], made[some]
        same = not len(there) or torch.allclose(there, made, rtol=1e-3, atol=1e-4 * float(there.abs().max()))
    if not same:
        raise CurateError(
            f"the parameter {name} of a {type(module).__name__} does not stretch or shift its output, so its "
            "per-sample gradient is not known here; train LoRA, and take its parameters."
        )
