"""Directional derivatives: how fast each sample's loss changes along a fixed direction q, <q, gradient of l_i>.

Two ways to the same number. `ghost`: one backward pass, and from the factors of each parameter's gradient its inner
products with all directions. `forward_mode`: one pass forward for each direction that carries the derivative along
(`torch.func.jvp`), with nothing kept for a backward pass; it goes through every layer that torch can differentiate,
known to the hooks or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.gradients.backward import Backward
from curate.gradients.per_sample import PerSample


def ghost(parameters: Iterable[PerSample], directions: Mapping[str, Tensor]) -> Tensor:
    """Inner products of per-sample gradients with K directions (name -> [K, *shape]), float64 [B, K]."""
    return torch.stack([g.dot(directions[g.name]).double() for g in parameters]).sum(0)


def forward_mode(model: Backward, ids: Tensor, supervised: Tensor, directions: Mapping[str, Tensor]) -> Tensor:
    """The same without a backward pass, float64 [B, K]; ids, supervised: [B, T]."""
    whole = _Losses(model)
    of = {id(parameter): name for name, parameter in model.parameters.items()}
    names = {own: of[id(p)] for own, p in whole.named_parameters() if id(p) in of}
    values = {own: p.detach() for own, p in whole.named_parameters() if own in names}
    found = []
    for k in range(count_of(directions)):
        along = {own: directions[names[own]][k].to(value) for own, value in values.items()}
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the fused kernels know no forward mode
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of its own torch.jit.script
            found.append(jvp(lambda at: functional_call(whole, at, (ids, supervised)), (values,), (along,))[1])
    return torch.stack(found, dim=1).double()


def count_of(directions: Mapping[str, Tensor]) -> int:
    """How many directions there are."""
    return len(next(iter(directions.values())))


class _Losses(nn.Module):
    """The losses of samples as a function of the model's parameters."""

    def __init__(self, model: Backward):
        super().__init__()
        self.model, self._losses = model.lm.model, model.losses

    def forward(self, ids: Tensor, supervised: Tensor) -> Tensor:
        return self._losses(ids, supervised)
