"""What transformers says it could not load, refused: it fills weights that are missing with random numbers, leaves out
those that it has no place for, and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError

_SHOWN = 3  # names in a message
_BUFFERS = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias)$")  # made anew; older versions stored them
_BESIDE_VECTORS = re.compile(  # heads of encoders, which vectors are made without
    r"(^|\.)(pooler|lm_head|cls|predictions|vocab_(transform|layer_norm|projector)|generator_predictions)\."
)


def listed(names: Collection[str]) -> str:
    """The first few of some names, and how many there are: 'a, b, c and 9 more'."""
    shown = sorted(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def refuse_unlike(
    path: Path, model: Any, report: Mapping[str, Any], encoder: bool = False, allow_unused: bool = False
) -> None:
    """Raises CurateError if weights of the model were not in its files, had another shape there, or were left over.

    report: `output_loading_info` of from_pretrained. encoder: whether heads do not matter. allow_unused: whether
    left-over weights are let be.
    """
    kind = type(model).__name__
    missing = _that_matter(report.get("missing_keys", ()), encoder)
    unused = _that_matter(report.get("unexpected_keys", ()), encoder)
    if missing:
        beside = f", and has {len(unused):,} that it has no place for ({listed(unused)})" if unused else ""
        raise CurateError(
            f"{path} lacks {len(missing):,} of the weights of {kind} ({listed(missing)}){beside}: they would be random "
            "numbers; fetch or save the whole model again, or name a model of that class."
        )
    if other := report.get("mismatched_keys", ()):
        name, stored, expected = min(other)
        raise CurateError(
            f"{path}: {len(other):,} of its weights have another shape than its config.json gives them ({name} is "
            f"{list(stored)} and would be {list(expected)}); put the model's own config.json there."
        )
    if unused and not allow_unused:
        raise CurateError(
            f"{path} has weights that {kind} has no place for ({listed(unused)}): what it computes is "
            "not what was trained; name a model without them, or leave them out by --set model.allow_unused=true."
        )


def refuse_left_out(path: Path, model: Any, stored: Mapping[str, int]) -> None:
    """Raises CurateError if a GGUF file has more numbers than its model has a place for: transformers leaves out what
    it does not know.

    stored: the numbers of each tensor of the file.
    """
    places = sum(parameter.numel() for parameter in model.parameters())
    left_out = sum(stored.values()) - places
    if left_out > 0:
        shown = [name for name in stored if "rope" in name] or stored
        raise CurateError(
            f"{path} has {left_out:,} numbers that {type(model).__name__} has no place for, of {len(stored):,} tensors "
            f"(such as {listed(shown)}): what it computes is not what was trained; name the folder or hub id of the "
            "original model, or leave them out by --set model.allow_unused=true."
        )


def _that_matter(names: Collection[str], encoder: bool) -> list[str]:
    kept = [name for name in names if not _BUFFERS.search(name)]
    return [name for name in kept if not (encoder and _BESIDE_VECTORS.search(name))]


def refuse_not_causal(path: Path, model: Any) -> None:
    """Raises CurateError if what a model says of a token depends on later ones, as an encoder's does: its likelihoods
    would be those of an answer that it sees."""
    import torch

    ids = torch.arange(6, device=model.device)[None] % model.config.vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    with torch.inference_mode():
        first, second = (model(input_ids=x, use_cache=False).logits[0, :-1] for x in (ids, other))
    rounding = max(1e-5, 2 * torch.finfo(first.dtype).eps)  # experts may get their tokens in other batches
    if float((first - second).abs().max()) > rounding * float(first.abs().max()):
        raise CurateError(
            f"{path} is no causal language model: as {type(model).__name__} it sees the tokens after the one that it "
            "predicts, as encoders do; name a causal language model."
        )
