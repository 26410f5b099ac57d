"""A model of the tiny model's kind that is a twentieth of its width and knows nothing.

For tests of the machinery around a model, which ask that something was stored, killed, gone on with or compared, not
what a model knows: the tiny model's two million parameters are most of what such a test would compute.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from curate.models.choice import TINY

WIDTH, INNER, LAYERS, HEADS = 32, 64, 2, 2


def _narrow() -> str:
    """Its folder, which the processes that a test starts have from the environment."""
    if "CURATE_NARROW" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="curate-narrow-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _write(folder)
        os.environ["CURATE_NARROW"] = str(folder)
    return os.environ["CURATE_NARROW"]


def _write(folder: Path) -> None:
    """The tiny model's files with another size, and weights drawn at random, the same ones every time."""
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((TINY / "config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (config["vocab_size"], WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        its = f"model.layers.{layer}"
        shapes |= {f"{its}.self_attn.{side}_proj": (WIDTH, WIDTH) for side in "qkvo"}
        shapes |= {f"{its}.mlp.{side}_proj": (INNER, WIDTH) for side in ("gate", "up")}
        shapes |= {f"{its}.mlp.down_proj": (WIDTH, INNER)}
        shapes |= {f"{its}.{norm}_layernorm": (WIDTH,) for norm in ("input", "post_attention")}
    rng = np.random.default_rng(0)
    weights = {
        f"{name}.weight": (rng.normal(0, 0.1, shape) if len(shape) > 1 else np.ones(shape)).astype(np.float16)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NARROW = _narrow()
