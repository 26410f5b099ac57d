"""Which trainings can be replayed backwards, step by step, and why others cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from curate.errors import CurateError
from curate.kinds.weighting import Weighting
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings

_WIDE = (torch.float32, torch.float64)


def require_replayable(trainer: Trainer) -> None:
    """Raises CurateError for a training whose steps `curate.training.replay` cannot differentiate."""
    settings, model = trainer.settings, trainer.model
    require_replayable_settings(settings, trainer.weighting, model.device.type)
    name = model.choice.name
    _refuse(trainer.step > 0, f"the training has taken {trainer.step} steps", "only a whole one", "begin it anew")
    _refuse(trainer.mask is not None, "some elements are trained by a mask", "whole parameters", "leave out the mask")
    _refuse(trainer.data.stream is not None, "the samples come from a stream", "samples of a pool", "ingest them")
    _refuse(trainer.processes.num_processes > 1, "several processes train", "a single one", "start one")
    narrow = next((p.dtype for p in model.model.parameters() if p.dtype not in _WIDE), None)
    _refuse(narrow is not None, f"{name} has weights in {narrow}", "float32 or float64", "set model.dtype=float32")
    kernel = getattr(model.model.config, "_attn_implementation", None) or "sdpa"
    _refuse(
        kernel not in ("sdpa", "eager"),
        f"{name} computes attention by {kernel}",
        "kernels with second derivatives",
        "set attn_implementation=sdpa",
    )
    dropped = max((_dropout(module) for module in model.model.modules()), default=0.0)
    _refuse(dropped > 0, f"{name} has a dropout of {dropped:g}", "steps without chance", "set it to 0 in its config")


def require_replayable_settings(settings: TrainSettings, weighting: Weighting, device: str) -> None:
    """The part of it that is known before a model is loaded. device: its type, as cpu."""
    _refuse(
        settings.in_bfloat16(device),
        "products are in bfloat16",
        "float32, as derivatives round away",
        "set precision=float32",
    )
    _refuse(settings.lora_dropout > 0, f"lora_dropout={settings.lora_dropout:g}", "steps without chance", "set it to 0")
    for setting in ("gradient_checkpointing", "compile", "shuffle_weights", "sum_gradients"):
        _refuse(bool(getattr(settings, setting)), f"{setting}=true", "plain steps", "leave it out")
    _refuse(
        not _is_fixed(weighting),
        f"the weighting '{weighting.name}' computes weights from the model or the step",
        "weights that are fixed beforehand, whose sum divides nothing",
        "take uniform, or a weighting by a column with normalize=none",
    )


def _is_fixed(weighting: Weighting) -> bool:
    """Whether a sample's weight is a function of its column alone."""
    if weighting.chooses or weighting.uses_target or weighting.scope != "sample" or weighting.normalize != "none":
        return False
    return weighting.name == "uniform" or set(weighting.needs) <= {"column"}


def _dropout(module: Any) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    rate = getattr(module, "attention_dropout", 0.0)  # applied by a function
    return rate if isinstance(rate, float) else 0.0


def _refuse(when: bool, what: str, rule: str, remedy: str) -> None:
    if when:
        raise CurateError(
            f"a training is replayed backwards by exact derivatives, but {what}: it takes {rule}; {remedy}."
        )
