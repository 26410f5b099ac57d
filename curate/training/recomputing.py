"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LATER, _EARLIER = "activation_checkpointing", "gradient_checkpointing"  # transformers' names, of 5.2x and before


def recompute(model: Any) -> None:
    """Turn it on for all later forward passes of transformers' model in training."""
    _named(model, "enable")({"use_reentrant": False})


def keep_activations(model: Any) -> None:
    """Turn it off."""
    if _is_on(model):
        _named(model, "disable")()


@contextmanager
def recomputing(model: Any, wanted: bool) -> Iterator[None]:
    """It for the forward passes within, if wanted, not on anyway, and the model has it."""
    if not wanted or _is_on(model) or not model.supports_gradient_checkpointing:
        yield
        return
    recompute(model)
    try:
        yield
    finally:
        _named(model, "disable")()


def _is_on(model: Any) -> bool:
    return any(getattr(module, _EARLIER, False) for module in model.modules())


def _named(model: Any, what: str) -> Any:
    return getattr(model, f"{_LATER}_{what}", None) or getattr(model, f"{_EARLIER}_{what}")
