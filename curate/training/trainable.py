"""A model as it is trained, with all its parameters or LoRA's beside them; saved so that any tool reads it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.models.choice import ModelChoice, base_name
from curate.models.language_model import LanguageModel
from curate.models.load import load, quiet
from curate.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainableModel:
    """model: whose parameters are frozen, or not. adapter: peft's view of it, where LoRA is trained, else null."""

    model: LanguageModel
    adapter: Any = None

    def save(self, folder: Path) -> None:
        """The model and its tokenizer; of LoRA the adapter alone, in peft's layout, which names its base."""
        with quiet():
            if self.adapter is None:
                self.model.model.save_pretrained(folder)
            else:  # which would look on the hub whether the base's embeddings have grown
                self.adapter.save_pretrained(folder, save_embedding_layers=False)
        self.model.tokenizer.save_pretrained(folder)


def trainable(choice: ModelChoice, settings: TrainSettings, saved: Path | None = None) -> TrainableModel:
    """A model to be trained. saved: a folder that `TrainableModel.save` wrote, from which it goes on.

    The weights that are trained are float32, unless the choice says otherwise; of LoRA's the frozen ones are as they
    would be loaded for a score. Raises CurateError as `load` does, and where LoRA finds none of its modules.
    """
    if settings.lora_r:
        return _with_lora(choice, settings, saved)
    chosen = replace(choice, dtype="float32") if choice.dtype == "auto" else choice
    model = LanguageModel(choice, load(replace(chosen, name=str(saved or chosen.name))))
    model.model.requires_grad_(True)
    _checkpointing(model, settings)
    return TrainableModel(model)


def _with_lora(choice: ModelChoice, settings: TrainSettings, saved: Path | None) -> TrainableModel:
    import peft
    import torch

    model, tokenizer = load(choice)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)  # the same beginning for every seed: LoRA's update starts from zero either way
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are to go
        if saved:
            adapter: Any = peft.PeftModel.from_pretrained(model, str(saved), is_trainable=True)
        else:
            adapter = _new_adapter(model, choice, settings)
    adapter.peft_config["default"].base_model_name_or_path = base_name(choice.name)
    made = LanguageModel(choice, (adapter.get_base_model(), tokenizer))
    _checkpointing(made, settings)
    return TrainableModel(made, adapter)


def _new_adapter(model: Any, choice: ModelChoice, settings: TrainSettings) -> Any:
    import peft

    named = settings.lora_targets
    config = peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a float serves as well
        lora_dropout=settings.lora_dropout,
        target_modules=named if named == "all-linear" else [name.strip() for name in named.split(",")],
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise CurateError(f"lora_targets={named} of {choice.name}: {str(error).splitlines()[0].rstrip('.')}.") from None


def _checkpointing(model: LanguageModel, settings: TrainSettings) -> None:
    if settings.gradient_checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
