"""A model that has learnt nothing: of a configuration, with weights drawn at random by a seed (`config:FILE#SEED`).

It is made once for each seed and kept in the user's cache as a folder that transformers reads, so that all that
follows, the base of a pruned run, a reference, an adapter's base, finds the very weights that training began with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.machine import free_memory
from curate.models.cache import cache_folder, file_digest, kept
from curate.models.quiet import quiet

_BYTES = 4  # of a weight, in float32


def random_start(config: Path, seed: int, beside: tuple[str, ...]) -> Path:
    """The folder of the model. config: a JSON file as transformers' config.json. beside: names of files in its folder
    that belong to the model (its tokenizer), and are copied.

    Raises CurateError for a file that is no configuration of a causal language model, or one of more than fits into
    memory, and if the cache cannot be written.
    """
    files = [path for name in beside if (path := config.parent / name).is_file()]
    drawn = f"{seed} {version('torch')} {version('transformers')}"
    digest = hashlib.sha256(digest_of(config, beside).encode() + drawn.encode())

    def fill(folder: Path) -> None:
        with quiet():
            _drawn(config, seed).save_pretrained(folder)
        for file in files:
            shutil.copy(file, folder / file.name)

    try:
        return kept(cache_folder() / "random" / digest.hexdigest()[:16], fill)
    except OSError as error:
        raise CurateError(
            f"the weights drawn for {config} cannot be kept ({error}); point $CURATE_CACHE at a folder with room."
        ) from None


def digest_of(config: Path, beside: tuple[str, ...]) -> str:
    """The digest of a configuration and of the named files beside it."""
    digest = hashlib.sha256(file_digest(config))
    for name in beside:
        if (file := config.parent / name).is_file():
            digest.update(file.name.encode() + file_digest(file))
    return digest.hexdigest()


def _drawn(config: Path, seed: int) -> Any:
    """The model as transformers initialises it, in float32 on the CPU, whatever was drawn before."""
    import torch
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        described = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(described).parameters())
    except Exception as error:  # transformers raises many types; all mean that it is none  # noqa: BLE001
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CurateError(
            f"{config} describes no causal language model of transformers ({type(error).__name__}: {first}); it is "
            'a config.json, with "model_type".'
        ) from None
    if (needed := _BYTES * size) > free_memory():
        raise CurateError(f"{config} describes {size:,} weights, {needed / 2**30:,.0f} GiB, more than is free.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return AutoModelForCausalLM.from_config(described, dtype=torch.float32)
