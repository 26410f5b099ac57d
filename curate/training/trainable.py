"""A model to be trained, with all its parameters or with LoRA; saved so that other tools can read it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.models.adapters import with_adapter
from curate.models.choice import ModelChoice, base_name, has_gpu
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.mixed_precision import round_frozen
from curate.models.quiet import quiet
from curate.training.recomputing import recompute
from curate.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainableModel:
    """model: with `requires_grad` set on its parameters. adapter: the peft model if LoRA is trained, else None."""

    model: LanguageModel
    adapter: Any = None

    def save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        """Save the model and its tokenizer; for LoRA only the adapter, in peft's layout, which names its base model.
        state: the parameters by name, if the model has only parts of them."""
        given: dict[str, Any] = {} if state is None else {"state_dict": state}
        with quiet():
            if self.adapter is None:
                self.model.model.save_pretrained(folder, **given)
            else:  # the default ("auto") would query the hub to see whether the base's embeddings were resized
                self.adapter.save_pretrained(folder, save_embedding_layers=False, **given)
        self.model.tokenizer.save_pretrained(folder)


def trainable(choice: ModelChoice, settings: TrainSettings, saved: Path | None = None, seed: int = 0) -> TrainableModel:
    """Load a model for training. saved: a folder written by `TrainableModel.save` to resume from. seed: by which LoRA's
    matrices are drawn, so that what differs between seeds contains their part.

    Trained weights are float32 unless the choice sets another dtype; with LoRA the frozen weights have the dtype they
    are loaded in for scoring. Raises CurateError as `load` does, and if LoRA finds none of its target modules.
    """
    _require_attention(settings)
    if settings.lora_r:
        return _with_lora(choice, settings, saved, seed)
    chosen = replace(choice, dtype="float32") if choice.dtype == "auto" else choice
    loaded = load(replace(chosen, name=str(saved or chosen.name)), settings.attn_implementation)
    model = LanguageModel(choice, loaded)
    model.model.requires_grad_(True)
    _checkpointing(model, settings)
    return TrainableModel(model)


def _with_lora(choice: ModelChoice, settings: TrainSettings, saved: Path | None, seed: int) -> TrainableModel:
    import torch

    model, tokenizer = load(choice, settings.attn_implementation)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed % 2**63)
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        if saved:
            adapter: Any = with_adapter(model, saved, trainable=True)
        else:
            adapter = _new_adapter(model, choice, settings)
    adapter.peft_config["default"].base_model_name_or_path = base_name(choice.name)
    language_model = LanguageModel(choice, (adapter.get_base_model(), tokenizer))
    _checkpointing(language_model, settings)
    if settings.in_bfloat16(language_model.device.type):
        round_frozen(language_model.model, [p for p in language_model.model.parameters() if p.requires_grad])
    return TrainableModel(language_model, adapter)


def redraw(adapter: Any, seed: int) -> None:
    """Give a LoRA adapter new matrices in place, drawn by a seed: of a training's distribution, though not the numbers
    that `trainable` draws by that seed, since a layer that is made anew draws more of them."""
    import torch
    from peft.tuners.lora import LoraLayer

    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        for module in adapter.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters("default", init_lora_weights=True)


def _require_attention(settings: TrainSettings) -> None:
    """Raises CurateError where flash attention cannot be."""
    if settings.attn_implementation != "flash_attention_2":
        return
    if find_spec("flash_attn") is None or not has_gpu():
        raise CurateError(
            "attn_implementation=flash_attention_2 needs a GPU and the package flash-attn (pip install flash-attn); "
            "sdpa needs neither."
        )
    if settings.precision == "float32":
        raise CurateError("attn_implementation=flash_attention_2 computes in bfloat16; leave out precision=float32.")


def _new_adapter(model: Any, choice: ModelChoice, settings: TrainSettings) -> Any:
    import peft

    widest = max((max(p.shape) for p in model.parameters() if p.ndim > 1), default=0)
    if settings.lora_r > widest:
        raise CurateError(
            f"lora_r={settings.lora_r} is more than the {widest:,} rows of the largest matrix of {choice.name}, whose "
            "rank no update has; take a smaller one."
        )
    targets = settings.lora_targets
    config = peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a float works as well
        lora_dropout=settings.lora_dropout,
        target_modules=targets if targets == "all-linear" else [name.strip() for name in targets.split(",")],
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise CurateError(
            f"lora_targets={targets} of {choice.name}: {str(error).splitlines()[0].rstrip('.')}."
        ) from None


def _checkpointing(model: LanguageModel, settings: TrainSettings) -> None:
    if settings.gradient_checkpointing:
        recompute(model.model)
