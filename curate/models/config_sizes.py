"""A model's configuration against the sizes of its weights, before memory is taken for what it describes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.models.tensor_files import header

_PACKED = 8  # weights that one stored number may hold, in a quantised model
_SLACK = 2  # tied weights are stored once
_BUFFERS = 1 << 28  # numbers beside the weights that a model may make, such as its mask
_FEW = 256  # modules that are made in no time, whatever the files hold
_COUNTS = re.compile(r"num_\w*(layers|blocks)|n_(layers?|blocks?)|(en|de)coder_layers")
_SIZES = re.compile(
    r"(\w+_)?(hidden|vocab|intermediate|embedding)_size|num_\w*(heads|experts)|n_(embd|inner|heads?|positions|ctx)"
    r"|n_\w*experts|(\w+_)?(head|ffn)_dim|d_(model|ff|kv|inner|state)"
)


def stored_sizes(files: list[Path]) -> tuple[int, int]:
    """How many tensors and numbers are in files of weights, at most. Raises CurateError for damaged ones."""
    tensors, numbers = 0, 0
    for file in files:
        if file.suffix == ".safetensors":
            shapes = header(file)
            tensors += len(shapes)
            for shape, dtype in shapes.values():
                size = 1
                for n in shape:
                    size *= n
                numbers += size * (1 if "F" in dtype else _PACKED)
        else:  # GGUF, or pickled: no more than its bytes can hold
            size = file.stat().st_size
            tensors += _gguf_tensors(file) if file.suffix == ".gguf" else size // 64
            numbers += size * _PACKED
    return tensors, numbers


def _gguf_tensors(file: Path) -> int:
    """How many tensors a GGUF file says it has, no more than it can describe."""
    with file.open("rb") as f:
        head = f.read(16)
    stated = struct.unpack("<Q", head[8:16])[0] if len(head) == 16 else 0
    return min(stated, file.stat().st_size // 24)


def refuse_unlike_weights(path: Path, config: Any, files: list[Path]) -> None:
    """Raises CurateError if a configuration has a size that is negative, or more than the weights can be of."""
    tensors, numbers = stored_sizes(files)
    for name, value in _integers(config.to_dict()):
        what, most = ("tensors", tensors) if _COUNTS.fullmatch(name) else ("numbers", numbers)
        is_size = what == "tensors" or _SIZES.fullmatch(name)
        if is_size and value > max(most, _FEW) or value < 0 and (is_size or name == "max_position_embeddings"):
            raise CurateError(
                f"{path}: the configuration says {name}={value:,}, and the weights have {most:,} {what}; put the "
                "model's own config.json there."
            )


def _integers(settings: dict[str, Any], depth: int = 8) -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        if isinstance(value, dict) and depth:
            yield from _integers(value, depth - 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(name), value


def refuse_too_large(path: Path, model: Any, files: list[Path]) -> None:
    """Raises CurateError if a model without memory (on the device meta) is far larger than its weights' files."""
    _, numbers = stored_sizes(files)
    for what, found, most in (
        ("weights", model.parameters(), _SLACK * numbers + (1 << 20)),
        ("buffers", model.buffers(), _SLACK * numbers + _BUFFERS),
    ):
        described = sum(tensor.numel() for tensor in found)
        if described > most:
            raise CurateError(
                f"{path}: the configuration describes {described:,} numbers in {what}, and the files hold "
                f"{numbers:,}; put the model's own config.json there."
            )
