"""What of a weighting, or of a trainer's settings, online weights cannot do: a sentence each."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from curate.errors import CurateError
from curate.kinds.weighting import Weighting

_NOT_HERE = {"outputs", "domains"}  # of a step that only curate's own trainer has


def refuse(weighting: Weighting, column: str | None) -> None:
    """Raises CurateError for a weighting that cannot be used in another trainer, or without that column."""
    needs = set(weighting.needs)
    if not weighting.chooses and (missing := sorted(needs & _NOT_HERE)):
        raise CurateError(f"the weighting '{weighting.name}' needs {missing[0]}, which only curate's own trainer has.")
    if "column" in needs and column is None:
        raise CurateError(f"the weighting '{weighting.name}' uses a column of the training set; give column=.")
    if column is not None and not needs & {"column", "base_loss"}:
        raise CurateError(f"the weighting '{weighting.name}' uses no column; leave out column='{column}'.")


def refuse_settings(settings: Any) -> None:
    """Raises CurateError for settings of a selection where none is made."""
    if settings is not None:
        raise CurateError("settings= are of a weighting that chooses (greats, less_online, …); leave them out.")


def refuse_trainer(trainer: Any, together: bool) -> None:
    """Raises CurateError for a loss that cannot be weighted. together: whether a step is weighted as a whole."""
    args = trainer.args
    if getattr(args, "loss_type", "nll") not in ("nll", "chunked_nll"):
        raise CurateError(f"loss_type={args.loss_type} weights tokens itself; take loss_type=nll.")
    if trainer.label_smoother is not None:
        raise CurateError("label_smoothing_factor makes a loss that is not of the labels alone; leave it out.")
    if trainer.compute_loss_func is not None:
        raise CurateError("compute_loss_func makes a loss of its own, which weights cannot enter; leave it out.")
    if together and trainer.accelerator.distributed_type.name == "DEEPSPEED":
        raise CurateError(
            "DeepSpeed takes every micro-batch's backward pass by itself, and this weighting needs all losses of a "
            "step before; use DDP."
        )


def tell_half(model: Any) -> None:
    """Warn of weights that are trained in half precision, which the trainers do without a word."""
    half = {str(p.dtype) for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        warnings.warn(
            f"the weights that are trained are in {' and '.join(sorted(half))}, in which steps that are small beside "
            "them are lost; load the model with dtype=torch.float32 (bf16=True still multiplies in bfloat16).",
            stacklevel=3,
        )
