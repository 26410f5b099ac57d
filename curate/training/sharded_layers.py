"""A model whose layers are sharded over the processes of a training (FSDP2, torch's fully_shard).

Each process keeps a part of every layer's parameters, gradients and moments, and has a whole layer only while it
computes with it. Embeddings, the last norm and the output head stay whole in every process, as other code reads them
besides the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from curate.errors import CurateError
from curate.kinds.weighting import Weighting
from curate.models.language_model import LanguageModel
from curate.training.settings import TrainSettings


def shard(lm: LanguageModel, processes: Any) -> None:
    """Shard a model's layers, in place. The gradients of a sharded parameter are summed over the processes by its
    backward pass. Raises CurateError for a model without a list of layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    body: Any = lm.body
    layers = _layers(body)
    if layers is None:
        raise CurateError(f"{lm.choice.name} has no list of layers that could be sharded; leave out fsdp.")
    mesh = init_device_mesh(lm.device.type, (processes.num_processes,))
    inside = {id(parameter) for parameter in layers.parameters()}
    whole = {parameter for parameter in body.parameters() if id(parameter) not in inside}
    modules = [fully_shard(layer, mesh=mesh) for layer in layers]
    for module in [*modules, fully_shard(body, mesh=mesh, ignored_params=whole)]:
        if not hasattr(module, "set_force_sum_reduction_for_comms"):
            raise CurateError(
                f"torch {torch.__version__} cannot sum the gradients of shards; take a later one for fsdp."
            )
        module.set_gradient_divide_factor(1.0)  # they are summed, not averaged
        module.set_force_sum_reduction_for_comms(True)


def _layers(body: nn.Module) -> nn.ModuleList | None:
    """The list of modules with the most parameters."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return max(lists, key=lambda one: sum(p.numel() for p in one.parameters()), default=None)


def refuse_sharded(weighting: Weighting, settings: TrainSettings, masked: bool) -> None:
    """Raises CurateError for what cannot be trained in parts."""
    found = {
        f"the weighting '{weighting.name}' compares gradients of whole layers": weighting.chooses,
        "a mask has single elements of whole parameters": masked,
        "sum_gradients sums whole ones": settings.sum_gradients,
        "compile compiles the whole body": settings.compile,
    }
    for what, applies in found.items():
        if applies:
            raise CurateError(f"with fsdp each process has a part of every layer, and {what}; leave one of them out.")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together if it is sharded; all processes must ask for it."""
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor in the parts that another one of its shape is in."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)  # type: ignore[attr-defined]


def whole_state(model: nn.Module, kept: bool) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, on the CPU; all processes must ask. kept: whether this one wants them;
    one that does not gets none."""
    state = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor).cpu()
        if kept:
            state[name] = full
    return state


def by_kind(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters that are whole, and those that are sharded, which no operation takes together."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        kinds[is_sharded(parameter)].append(parameter)
    return [kind for kind in kinds if kind]


def clip_gradients(parameters: Mapping[str, nn.Parameter], limit: float) -> float:
    """Scale the gradients so that their norm, over all of them, is at most `limit`; returns the norm before."""
    kinds = by_kind(parameters.values())
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit, norm)
    return float(norm)
