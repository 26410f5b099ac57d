"""The factors of Llama 3's rotary embedding, which transformers leaves out of a GGUF file.

llama.cpp's converter writes them as a tensor, rope_freqs.weight, by which the frequencies are to be divided, and none
of the settings that they follow from. transformers reads neither, so that Llama 3.1 and later would be computed with
other frequencies than they were trained with, at every position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from curate.models.gguf_header import ROPE_FACTORS, float32_in, tensors_in
from curate.models.loading_report import refuse_left_out

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of all releases
_ROUNDING = 1e-5  # relative; the factors are float32


def complete_from_gguf(path: Path, model: Any, allow_unused: bool) -> None:
    """Give a model the frequencies that its file has factors for. Raises CurateError if anything else of the file has
    no place in it, unless allow_unused."""
    tensors = tensors_in(path)
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    if ROPE_FACTORS in tensors and _set_frequencies(model, float32_in(path, tensors[ROPE_FACTORS])):
        del sizes[ROPE_FACTORS]
    if not allow_unused:
        refuse_left_out(path, model, sizes)


def _set_frequencies(model: Any, factors: np.ndarray) -> bool:
    """Set the settings that these factors follow from, and the frequencies; returns whether there are such settings."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None or getattr(rotary, "rope_type", "") != "default" or len(factors) != len(rotary.inv_freq):
        return False
    before = rotary.inv_freq.detach().cpu().numpy().astype(np.float64)
    found = dict(model.config.rope_parameters)
    model.config.rope_parameters = {**found, **_LLAMA3, "rope_type": "llama3", "factor": float(factors.max())}
    fresh = type(rotary)(config=model.config)
    frequencies = fresh.inv_freq.detach().numpy().astype(np.float64)
    if not np.allclose(frequencies, before / factors, rtol=_ROUNDING, atol=0):
        model.config.rope_parameters = found
        return False
    model.base_model.rotary_emb = fresh.to(rotary.inv_freq.device)
    return True
