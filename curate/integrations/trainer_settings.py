"""What a trainer's arguments are among the settings of `curate train`."""

from __future__ import annotations

from typing import Any

from curate.training.settings import TrainSettings

_RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")  # the name before transformers 5.2x is the second


def settings_of(trainer: Any, **more: Any) -> TrainSettings:
    """The settings of a training by transformers' Trainer. more: others, which those cannot say."""
    args = trainer.args
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    known: dict[str, Any] = {"schedule": schedule} if schedule in ("linear", "cosine", "constant") else {}
    return TrainSettings(
        **{
            "epochs": float(args.num_train_epochs),
            "steps": max(0, args.max_steps),
            "batch_size": samples_of_a_step(trainer),
            "micro_batch_size": args.per_device_train_batch_size,
            "lr": args.learning_rate,
            "weight_decay": args.weight_decay,
            "beta1": args.adam_beta1,
            "beta2": args.adam_beta2,
            "eps": args.adam_epsilon,
            "clip": args.max_grad_norm,
            "packing": bool(getattr(args, "packing", False)),
            **known,
            **more,
        }
    )


def samples_of_a_step(trainer: Any) -> int:
    """The rows of an optimizer step, of all processes."""
    args = trainer.args
    own: int = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return own * int(trainer.accelerator.num_processes)


def recomputes(args: Any) -> bool:
    """Whether activations are computed again in the backward pass."""
    return any(getattr(args, name, None) for name in _RECOMPUTING)


def recompute_nothing(args: Any) -> None:
    """Set that off."""
    for name in _RECOMPUTING:
        if getattr(args, name, None):
            setattr(args, name, False)
