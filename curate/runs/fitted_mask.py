"""Fitting a stored mask to a model: the flat positions it selects in each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.store.mask_file import StoredMask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from curate.training.masked_parameters import Refreshed


def fitted(mask: StoredMask, model: nn.Module) -> Mapping[str, np.ndarray]:
    """The selection of a mask (name -> flat positions) for a model. Raises CurateError if the model has other
    parameters, or ties two parameters that the mask treats differently."""
    shapes, model_shapes = mask.recipe.shapes, {name: list(p.shape) for name, p in model.named_parameters()}
    identity = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    first = {id(p): name for name, p in model.named_parameters()}  # tied parameters are trained under their first name
    for name, indices in mask.selected.items():
        if name not in identity:
            raise CurateError(f"the mask '{mask.name}' is of another model: this one has no parameter {name}.")
        tied = first[identity[name]]
        if tied != name and not np.array_equal(mask.selected.get(tied, np.zeros(0)), indices):
            raise CurateError(
                f"the mask '{mask.name}' chose {len(indices)} values of {name}, which this model ties to {tied}, where "
                f"it chose {len(mask.selected.get(tied, ()))}: one tensor cannot be trained on one side only; make the "
                "mask from this model."
            )
        if shapes[name] != model_shapes[tied]:
            raise CurateError(
                f"the mask '{mask.name}' is of another model: its {name} is {shapes[name]}, and this one's "
                f"{model_shapes[tied]}."
            )
    return {name: indices for name, indices in mask.selected.items() if name in model_shapes}


def refreshed(mask: StoredMask, method: Mask | None, model: nn.Module) -> Refreshed:
    """A mask for the trainer, updated during training if its method has an interval, of either kind. Raises CurateError
    if it has and the method is not given."""
    from curate.training.masked_parameters import Refreshed

    selected = fitted(mask, model)
    mask_method = mask.recipe.mask
    if method is None:
        if mask_method.settings.get("interval") or mask_method.settings.get("density_interval"):
            raise CurateError(
                f"the mask '{mask.name}' ({mask_method.name}) is updated during training: give its method, too "
                "(Training(…, masking=…))."
            )
        return Refreshed(selected)
    budget = mask.recipe.selected

    def update(weights: Mapping[str, Tensor], taken: int) -> dict[str, np.ndarray]:
        now = {n: w.detach().float().cpu().numpy() for n, w in weights.items()}
        return method.update(Parameters(now, budget, taken=taken))

    changes = method.interval or method.density_interval
    return Refreshed(selected, method.interval, update if changes else None, method.density_interval)
