"""A mask as stored on disk: which elements of each parameter are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curate.errors import CurateError
from curate.store.contents import enter, require_intact, take_out
from curate.store.encoding import digest
from curate.store.files import remove_leftovers, write_atomic
from curate.store.recipes import MaskRecipe, recipe_of
from curate.store.workspace import Workspace


@dataclass(frozen=True)
class StoredMask:
    """A mask read from disk.

    selected: parameter name -> flat indices, int32 ascending; parameters without any are absent. recipe: how the mask
    was made. sha256: of the file.
    """

    name: str
    selected: Mapping[str, np.ndarray]
    recipe: MaskRecipe
    sha256: str


def write_mask(ws: Workspace, name: str, selected: Mapping[str, np.ndarray], recipe: MaskRecipe) -> None:
    """Write a mask as safetensors, with its recipe in the header. selected: parameter name -> flat indices."""
    from safetensors.numpy import save

    path = ws.mask_path(name)
    remove_leftovers(path.parent)
    tensors = {n: positions.astype(np.int32) for n, positions in selected.items() if len(positions)}
    take_out(ws, "mask", name)
    write_atomic(path, save(tensors, {"lineage": json.dumps(recipe.as_json())}))
    enter(ws, "mask", name)


def read_mask(ws: Workspace, name: str) -> StoredMask:
    """The mask of a name. Raises CurateError if there is none, or the file is not a valid mask."""
    from safetensors.numpy import load

    ws.require("mask", name)
    require_intact(ws, "mask", name)
    data = ws.mask_path(name).read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        stored = json.loads(header["__metadata__"]["lineage"])
        selected = load(data)
    except Exception as error:  # errors of many types; all mean the same  # noqa: BLE001
        raise CurateError(
            f"{ws.mask_path(name)} is no mask, or damaged ({type(error).__name__}); make it again by `curate mask`."
        ) from None
    recipe = recipe_of(stored, MaskRecipe, str(ws.mask_path(name)))
    for parameter, positions in selected.items():
        size = int(np.prod(recipe.shapes.get(parameter, [0])))
        if (
            positions.ndim != 1
            or len(positions)
            and (positions[0] < 0 or positions[-1] >= size or (np.diff(positions) <= 0).any())
        ):
            raise CurateError(
                f"{ws.mask_path(name)}: {parameter} has indices that are not ascending within its {size} elements."
            )
    return StoredMask(name, selected, recipe, digest(data))
