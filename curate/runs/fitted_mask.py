"""A mask as it lies in a workspace: the flat places that it chose of each parameter, and how it came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.registry import Mask, Parameters
from curate.store.commits import digest
from curate.store.files import put, sweep
from curate.store.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from curate.training.masked_parameters import Refreshed


@dataclass(frozen=True)
class StoredMask:
    """selected: of each parameter that has some, flat places, int32 ascending. lineage: what it was made of, with the
    `shapes` of the model's parameters. sha256: of its bytes."""

    name: str
    selected: Mapping[str, np.ndarray]
    lineage: Mapping[str, Any]
    sha256: str


def write_mask(ws: Workspace, name: str, selected: Mapping[str, np.ndarray], lineage: Mapping[str, Any]) -> None:
    from safetensors.numpy import save

    path = ws.mask_path(name)
    sweep(path.parent)
    tensors = {n: places.astype(np.int32) for n, places in selected.items() if len(places)}
    put(path, save(tensors, {"lineage": json.dumps(lineage)}))


def read_mask(ws: Workspace, name: str) -> StoredMask:
    """Raises CurateError where there is none, or it is no mask."""
    from safetensors.numpy import load

    ws.require("mask", name)
    data = ws.mask_path(name).read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        lineage = json.loads(header["__metadata__"]["lineage"])
        selected = load(data)
        shapes = lineage["shapes"]
    except Exception as error:  # of a file that is cut, or another's, many kinds; all mean the same
        raise CurateError(
            f"{ws.mask_path(name)} is no mask, or damaged ({type(error).__name__}); make it again by `curate mask`."
        ) from None
    for parameter, places in selected.items():
        size = int(np.prod(shapes.get(parameter, [0])))
        if places.ndim != 1 or len(places) and (places[0] < 0 or places[-1] >= size or (np.diff(places) <= 0).any()):
            raise CurateError(
                f"{ws.mask_path(name)}: {parameter} has places that are not ascending within its {size} numbers."
            )
    return StoredMask(name, selected, lineage, digest(data))


def fitted(mask: StoredMask, model: nn.Module) -> Mapping[str, np.ndarray]:
    """What a mask chose, for a model. Raises CurateError where the model has other parameters, or ties some of which
    only one side was chosen."""
    shapes, own = mask.lineage["shapes"], {name: list(p.shape) for name, p in model.named_parameters()}
    every = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    first = {id(p): name for name, p in model.named_parameters()}  # of tied ones the name that is trained
    for name, places in mask.selected.items():
        if name not in every:
            raise CurateError(f"the mask '{mask.name}' is of another model: this one has no parameter {name}.")
        tied = first[every[name]]
        if tied != name and not np.array_equal(mask.selected.get(tied, np.zeros(0)), places):
            raise CurateError(
                f"the mask '{mask.name}' chose {len(places)} numbers of {name}, which this model ties to {tied}, where "
                f"it chose {len(mask.selected.get(tied, ()))}: one tensor cannot be trained on one side only; make the "
                "mask from this model."
            )
        if shapes[name] != own[tied]:
            raise CurateError(
                f"the mask '{mask.name}' is of another model: its {name} is {shapes[name]}, and this one's {own[tied]}."
            )
    return {name: places for name, places in mask.selected.items() if name in own}


def refreshed(mask: StoredMask, method: Mask | None, model: nn.Module) -> Refreshed:
    """A mask as the trainer follows it: chosen anew by its method where that asks for it. Raises CurateError where it
    does, and the method is not given."""
    from curate.training.masked_parameters import Refreshed

    selected = fitted(mask, model)
    its = mask.lineage["mask"]
    if method is None:
        if its["settings"].get("interval"):
            raise CurateError(
                f"the mask '{mask.name}' ({its['name']}) is chosen anew as training goes: give its method, too "
                "(Training(…, masking=…))."
            )
        return Refreshed(selected)
    budget = int(mask.lineage["selected"])

    def update(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return method.update(Parameters({n: w.detach().float().cpu().numpy() for n, w in weights.items()}, budget))

    return Refreshed(selected, method.interval, update if method.interval else None)
