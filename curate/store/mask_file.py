"""A mask as stored on disk: which elements of each parameter are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.store.encoding import digest
from curate.store.files import remove_leftovers, write_atomic
from curate.store.workspace import Workspace


@dataclass(frozen=True)
class StoredMask:
    """A mask read from disk.

    selected: parameter name -> flat indices, int32 ascending; parameters without any are absent. lineage: how the mask
    was made, with the `shapes` of the model's parameters. sha256: of the file.
    """

    name: str
    selected: Mapping[str, np.ndarray]
    lineage: Mapping[str, Any]
    sha256: str


def write_mask(ws: Workspace, name: str, selected: Mapping[str, np.ndarray], lineage: Mapping[str, Any]) -> None:
    """Write a mask as safetensors, with its lineage in the header. selected: parameter name -> flat indices."""
    from safetensors.numpy import save

    path = ws.mask_path(name)
    remove_leftovers(path.parent)
    tensors = {n: places.astype(np.int32) for n, places in selected.items() if len(places)}
    write_atomic(path, save(tensors, {"lineage": json.dumps(lineage)}))


def read_mask(ws: Workspace, name: str) -> StoredMask:
    """The mask of a name. Raises CurateError if there is none, or the file is not a valid mask."""
    from safetensors.numpy import load

    ws.require("mask", name)
    data = ws.mask_path(name).read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        lineage = json.loads(header["__metadata__"]["lineage"])
        selected = load(data)
        shapes = lineage["shapes"]
    except Exception as error:  # errors of many types; all mean the same  # noqa: BLE001
        raise CurateError(
            f"{ws.mask_path(name)} is no mask, or damaged ({type(error).__name__}); make it again by `curate mask`."
        ) from None
    for parameter, places in selected.items():
        size = int(np.prod(shapes.get(parameter, [0])))
        if places.ndim != 1 or len(places) and (places[0] < 0 or places[-1] >= size or (np.diff(places) <= 0).any()):
            raise CurateError(
                f"{ws.mask_path(name)}: {parameter} has indices that are not ascending within its {size} elements."
            )
    return StoredMask(name, selected, lineage, digest(data))
