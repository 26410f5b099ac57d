"""An adapter and its optimizer's state, carried from one training into the next."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import CurateError
from curate.models.cache import file_digest
from curate.models.choice import ADAPTER, OPTIMIZERS, read_settings
from curate.models.tensor_files import header

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.loop import Snapshot
    from curate.training.settings import TrainSettings

FILES = (ADAPTER, "adapter_model.safetensors", OPTIMIZERS[0])  # of a checkpoint, what is carried


def carry(checkpoint: Path, folder: Path) -> None:
    """Copy what the next training goes on with from a checkpoint of a LoRA run into a new folder."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(checkpoint / name, folder / name)


def carried_fingerprint(folder: str) -> str:
    """16 hex digits over the adapter's matrices and the optimizer's state."""
    return hashlib.sha256(b"".join(file_digest(Path(folder) / name) for name in FILES[1:])).hexdigest()[:16]


def refuse_unlike_adapter(folder: str, settings: TrainSettings) -> None:
    """Raises CurateError unless the folder has an adapter of the training's rank, and its optimizer's state."""
    if not settings.lora_r:
        raise CurateError(f"carried={folder} is an adapter, and lora_r=0 trains all parameters; set lora_r.")
    if missing := [name for name in FILES if not (Path(folder) / name).is_file()]:
        raise CurateError(f"carried={folder} has no {missing[0]}; name a checkpoint of a run with LoRA.")
    matrices, moments = (header(Path(folder) / name) for name in FILES[1:])
    if (known := sum(name.startswith("exp_avg.") for name in moments)) < len(matrices):
        raise CurateError(
            f"carried={folder} has AdamW's moments of {known} of its {len(matrices)} matrices; train it anew."
        )
    its = read_settings(Path(folder) / ADAPTER)
    for key, wanted in (("r", settings.lora_r), ("lora_alpha", settings.lora_alpha)):
        if its.get(key) != wanted:
            name = f"lora_{key.removeprefix('lora_')}"
            raise CurateError(
                f"carried={folder} is an adapter with {name}={its.get(key)}, and the training has {name}={wanted:g}; "
                "go on with the same."
            )


def carried_snapshot(folder: Path) -> Snapshot:
    """What a new training takes over besides the adapter: AdamW's moments and its count of steps."""
    from curate.gradients.optimizer_state import STATE
    from curate.models.tensor_files import read_tensors
    from curate.training.loop import Snapshot

    tensors = read_tensors(folder / OPTIMIZERS[0])
    return Snapshot(0, {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in STATE}, {})
