"""The weights of a training's checkpoints: loaded once, then exchanged; refused if they are not of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.errors import CurateError
from curate.gradients.optimizer_state import plain
from curate.models.adapters import with_adapter
from curate.models.choice import ADAPTER, ModelChoice, base_of, read_settings
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tensor_files import read_tensors


def load_checkpoint(choice: ModelChoice, folder: Path) -> LanguageModel:
    """A whole model; or an adapter's base model with the adapter attached, not merged, and its matrices trainable."""
    if not (folder / ADAPTER).exists():
        return LanguageModel(choice)
    config = _config(folder)
    if not (folder / "adapter_model.safetensors").exists():
        raise CurateError(f"{folder} has no adapter_model.safetensors; save the adapter as safetensors.")
    if unsupported := [option for option in ("use_dora", "modules_to_save") if config.get(option)]:
        raise CurateError(
            f"{folder}: gradients of an adapter with {unsupported[0]} are not supported; train plain LoRA."
        )
    model, tokenizer = load(replace(choice, name=base_of(folder)))
    adapter = with_adapter(model, folder, trainable=True)
    return LanguageModel(choice, (adapter.get_base_model(), tokenizer))


def _config(folder: Path) -> dict[str, Any]:
    return read_settings(folder / ADAPTER)


def refuse_other_adapter(first: Path, second: Path) -> None:
    """Raises CurateError if two adapters are not from the same training run."""
    a, b = _config(first), _config(second)
    for key in ("base_model_name_or_path", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora"):
        old, new = (sorted(c[key]) if isinstance(c.get(key), list) else c.get(key) for c in (a, b))
        if old != new:
            raise CurateError(
                f"{first} and {second} are not checkpoints of one training: {key} is {old} in the one and {new} in the "
                "other; name checkpoints of one run."
            )


def refuse_other_shapes(first: Path, second: Path, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    """Raises CurateError if the trained parameters or their shapes differ between checkpoints."""
    if old is not None and dict(old) != dict(new):
        name = next(iter(dict(old).items() ^ dict(new).items()))[0]
        raise CurateError(
            f"{first} and {second} are not checkpoints of one training: {name} is {list(old.get(name, ()))} in the one "
            f"and {list(new.get(name, ()))} in the other; name checkpoints of one run."
        )


def copy_adapter(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put an adapter's matrices into the parameters of those names. Raises CurateError for other names."""
    path = folder / "adapter_model.safetensors"
    tensors = {plain(name): value for name, value in read_tensors(path).items()}
    if tensors.keys() != parameters.keys():
        raise CurateError(f"{path} has other matrices than the adapters of the other checkpoints.")
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)
