"""LoRA adapters in peft's layout, attached to their base model: all of their matrices, or none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.models.loading_report import listed
from curate.models.tensor_files import header

_FILE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"


def with_adapter(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The peft model of a base model and an adapter's folder; the base is changed in place.

    Raises CurateError if the adapter has no weights, lacks matrices, has others, or was made for another base.
    """
    import peft

    stored = _names(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft uses deprecated names, and only warns of what is refused below
            adapted: Any = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
            needed = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except Exception as error:  # peft raises many types; all mean that it does not fit  # noqa: BLE001
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise CurateError(
            f"the adapter {folder} cannot be attached to its base model ({reason}); name the base that it was trained "
            "on in adapter_config.json."
        ) from None
    if missing := needed - stored:
        raise CurateError(
            f"the adapter {folder} lacks {len(missing):,} of its matrices ({listed(missing)}), which would be random "
            "numbers or none; save the whole adapter again."
        )
    if unused := {name for name in stored - needed if not _is_base_s(name, adapted)}:
        raise CurateError(
            f"the adapter {folder} has {len(unused):,} tensors that its base model has no place for "
            f"({listed(unused)}); name the base that it was trained on in adapter_config.json."
        )
    return adapted


def _is_base_s(name: str, adapted: Any) -> bool:
    """Whether a tensor is a layer of the base that was stored with the adapter, as resized embeddings are."""
    return "lora_" not in name and name in adapted.state_dict()


def _names(folder: Path) -> set[str]:
    """The tensors that an adapter's file has; a pickled one is read without running what is in it."""
    import torch

    if (folder / _FILE).is_file():
        return set(header(folder / _FILE))
    if not (folder / _PICKLED).is_file():
        raise CurateError(f"the adapter {folder} has no {_FILE}; save the adapter again.")
    try:
        return set(torch.load(folder / _PICKLED, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # unpickling raises many types  # noqa: BLE001
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CurateError(
            f"{folder / _PICKLED} cannot be read as an adapter's weights ({reason}); save them as safetensors."
        ) from None
