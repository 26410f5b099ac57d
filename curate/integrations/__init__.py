"""curate's weights in trainers that are not its own: transformers' Trainer and TRL's SFTTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.integrations.online_weights import OnlineWeights

__all__ = ["OnlineWeights"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for, as it takes torch and transformers with it."""
    if name == "OnlineWeights":
        from curate.integrations.online_weights import OnlineWeights

        return OnlineWeights
    raise AttributeError(name)
