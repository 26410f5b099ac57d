"""Directional derivatives of each sample's loss along a fixed direction q: <q, gradient of l_i>.

Three ways to the same value. `ghost`: one backward pass, and inner products with all directions computed from the
factors of each parameter's gradient. `forward_mode`: one forward pass per direction that propagates the derivative
(`torch.func.jvp`), storing nothing for a backward pass. `differences`: of the losses a short step to either side, two
plain forward passes. Also products of curvatures with q: `hessian_products`, `gauss_newton_products`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.errors import CurateError
from curate.gradients.backward import Backward, Loss
from curate.gradients.per_sample import PerSample


def ghost(parameters: Iterable[PerSample], directions: Mapping[str, Tensor]) -> Tensor:
    """Inner products of B per-sample gradients with K directions (name -> [K, *shape]), float64 [B, K]."""
    return torch.stack([g.dot(directions[g.name]).double() for g in parameters]).sum(0)


def forward_mode(model: Backward, ids: Tensor, supervised: Tensor, directions: Mapping[str, Tensor]) -> Tensor:
    """The same by forward-mode differentiation, float64 [B, K]; ids, supervised: [B, T]. Raises CurateError for weights
    in half precision."""
    _refuse_half(model, "jvp", products=False)
    losses, derivatives = _Losses(model), []
    uses = _uses(losses, model)
    values = {place: parameter.detach() for place, (parameter, _, _) in uses.items()}
    for k in range(count_of(directions)):
        along = {}
        for place, (parameter, name, padding) in uses.items():
            along[place] = directions[name][k].to(parameter)
            if padding is not None:  # the padding row of an embedding is never trained
                along[place] = along[place].index_fill(0, torch.tensor([padding], device=parameter.device), 0)
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # fused kernels lack forward mode
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own use of torch.jit.script
            derivatives.append(jvp(lambda at: _called(losses, at, ids, supervised), (values,), (along,))[1])
    return torch.stack(derivatives, dim=1).double()


def differences(model: Backward, ids: Tensor, supervised: Tensor, directions: Mapping[str, Tensor]) -> Tensor:
    """Approximately the same by finite differences of the losses, float64 [B, K], in K + 1 forward passes.

    The first direction is to be the gradient that matters, and the steps are so long that the loss it is the gradient
    of changes by the cube root of the rounding unit, where rounding and curvature disturb a central difference about
    equally (Press et al., Numerical Recipes, Section 5.7). It has a central difference, whose error falls with the
    square of the step's length; every other direction one from the mean of those two, whose error falls with the
    length. Raises CurateError for weights, or products, in half precision."""
    _refuse_half(model, "difference")
    beginning = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    lengths = torch.stack([_lengths(q) for q in directions.values()]).square().sum(0).sqrt()
    unit = torch.finfo(torch.float32).eps  # of wider weights, too: norms compute in float32
    derivatives = torch.zeros(len(ids), len(lengths), dtype=torch.float64, device=ids.device)
    if not lengths[0]:
        return derivatives
    steps = [unit ** (1 / 3) / float(lengths[0] * length) if length else 0.0 for length in lengths]

    def losses(k: int, distance: float) -> Tensor:
        for name, parameter in model.parameters.items():
            torch.add(beginning[name], directions[name][k].to(parameter), alpha=distance, out=parameter)
        return model.losses(ids, supervised).double()

    with torch.no_grad():
        try:
            there, back = losses(0, steps[0]), losses(0, -steps[0])
            derivatives[:, 0] = (there - back) / (2 * steps[0])
            for k in range(1, len(steps)):
                if steps[k]:
                    derivatives[:, k] = (losses(k, steps[k]) - (there + back) / 2) / steps[k]
        finally:
            for name, parameter in model.parameters.items():
                parameter.copy_(beginning[name])
    return derivatives


def hessian_products(
    model: Backward,
    ids: Tensor,
    supervised: Tensor,
    direction: Mapping[str, Tensor],
    loss: Loss | None = None,
    beside: str = "",
) -> dict[str, Tensor]:
    """The Hessian of the summed sample losses times a direction (name -> [1, *shape]), name -> [1, *shape], as the
    gradient of the gradient's inner product with it. Keeps the graph of a backward pass, so it suits small models."""
    with _differentiable(model):
        total = model.losses(ids, supervised, loss, beside).sum()
        first_derivatives = torch.autograd.grad(
            total, list(model.parameters.values()), create_graph=True, allow_unused=True
        )
        gradients = {name: g for name, g in zip(model.parameters, first_derivatives, strict=True) if g is not None}
        along = torch.stack([(g * direction[name][0].to(g)).sum() for name, g in gradients.items()]).sum()
        of = [model.parameters[name] for name in gradients]
        second_derivatives = torch.autograd.grad(along, of, allow_unused=True)
    products = {name: h for name, h in zip(gradients, second_derivatives, strict=True) if h is not None}
    return {name: products.get(name, torch.zeros_like(p))[None] for name, p in model.parameters.items()}


def gauss_newton_products(
    model: Backward,
    ids: Tensor,
    supervised: Tensor,
    direction: Mapping[str, Tensor],
    loss: Loss | None = None,
    beside: str = "",
) -> dict[str, Tensor]:
    """The Gauss-Newton matrix of the summed sample losses (without the curvature of the logits) times a direction, for
    the parameters that this has; else as `hessian_products`. With J the logits' derivative and p the predictions, it is
    J^T (diag(p) - p p^T) J, exactly: nothing is drawn. `loss` is to be None.

    Source: Schraudolph, "Fast Curvature Matrix-Vector Products", Neural Computation 14 (2002); J times the direction is
    found by differentiating the product with J^T, which is linear in what it multiplies."""
    assert loss is None and not beside
    names = list(direction)
    with _differentiable(model):
        of = [model.parameters[name] for name in names]
        logits, scale = model.logits_of(ids, supervised)
        dual = torch.zeros_like(logits, requires_grad=True)
        transposed = torch.autograd.grad(logits, of, dual, create_graph=True, allow_unused=True)
        used = [(g, direction[name][0].to(g)) for name, g in zip(names, transposed, strict=True) if g is not None]
        (moved,) = torch.autograd.grad([g for g, _ in used], dual, [q for _, q in used], retain_graph=True)
        p = logits.detach().softmax(-1)
        curved = p * (moved - (p * moved).sum(-1, keepdim=True)) * scale[:, None]
        products = torch.autograd.grad(logits, of, curved, allow_unused=True)
    zeros = {name: torch.zeros_like(model.parameters[name]) for name in names}
    return {name: (zeros[name] if g is None else g)[None] for name, g in zip(names, products, strict=True)}


@contextmanager
def _differentiable(model: Backward) -> Iterator[None]:
    """The parameters differentiable, by operations that have second derivatives, which fused attention has not."""
    for parameter in model.parameters.values():
        parameter.requires_grad_(True)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            yield
    finally:
        for parameter in model.parameters.values():
            parameter.requires_grad_(False)


def _refuse_half(model: Backward, by: str, products: bool = True) -> None:
    if products and model.half or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters.values()):
        raise CurateError(f"{model.lm.choice.name}: by={by} needs weights in float32: --set model.dtype=float32.")


def _lengths(q: Tensor) -> Tensor:
    """The length of each of K directions, float64 [K]."""
    return torch.linalg.vector_norm(q.flatten(1), dim=1, dtype=torch.float64)


def _uses(losses: nn.Module, model: Backward) -> dict[str, tuple[nn.Parameter, str, int | None]]:
    """Every module attribute that holds a parameter (several if tied) -> the parameter, our name for it, and an
    embedding's padding index."""
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    uses = {}
    for path, module in losses.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in names:
                padding = module.padding_idx if isinstance(module, nn.Embedding) else None
                uses[f"{path}.{own}"] = (parameter, names[id(parameter)], padding)
    return uses


def _called(losses: nn.Module, at: Mapping[str, Tensor], ids: Tensor, supervised: Tensor) -> Tensor:
    return functional_call(losses, dict(at), (ids, supervised), tie_weights=False)


WAYS = {"jvp": forward_mode, "difference": differences}
CURVATURES = {"hessian": hessian_products, "gauss_newton": gauss_newton_products}


def forwards(by: str, k: int) -> float:
    """How many forward passes derivatives along K directions cost: forward mode for each direction the pass itself and
    the product rule's two terms, differences one for each and one more."""
    return 3.0 * k if by == "jvp" else k + 1.0


def count_of(directions: Mapping[str, Tensor]) -> int:
    """K, the number of directions (name -> [K, *shape])."""
    return len(next(iter(directions.values())))


class _Losses(nn.Module):
    """The samples' losses as a function of the model's parameters."""

    def __init__(self, model: Backward):
        super().__init__()
        self.model, self._losses = model.lm.model, model.losses

    def forward(self, ids: Tensor, supervised: Tensor) -> Tensor:
        return self._losses(ids, supervised)
