from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.parameters import Mask, Parameters

# The two sides of a feed-forward layer, as different models name them; GPT-2's matrices are stored transposed.
_INTO = re.compile(r"(gate_proj|up_proj|fc1|c_fc|w1|w3|dense_h_to_4h)\.weight$")
_OUT = re.compile(r"(down_proj|fc2|mlp\.c_proj|w2|dense_4h_to_h)\.weight$")
_FLIPPED = re.compile(r"(c_fc|mlp\.c_proj)\.weight$")


@dataclass(frozen=True)
class Structured(Mask):
    """Channels of the feed-forward layers, drawn at random across all layers (S2FT).

    Formula: a channel c of a layer is the row c of what goes in (up, gate) and the column c of what comes out (down);
    they are coupled: permuting channels together changes nothing. Channels are drawn until the budget is spent, every
    set being equally likely, and for each channel

        trained=coupled    its rows and its column
        trained=down       its column alone (the published setting for Llama: d_ratio 0.03, the others 0)

    Cost: no matrix products. Memory: the indices that were chosen.

    Departures: the published code permutes the chosen channels to the front and trains a dense block beside the frozen
    matrix; the same weights are trained here, in place. Its selection of attention heads is not offered.

    Reference: Yang et al., "S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    NeurIPS 2024, arXiv:2412.06289; its code.

    >>> import numpy as np
    >>> weights = {"mlp.up_proj.weight": np.zeros((4, 2)), "mlp.down_proj.weight": np.zeros((2, 4))}
    >>> {n: len(p) for n, p in Structured().init(Parameters(weights, 9)).items()}  # two channels of four numbers
    {'mlp.up_proj.weight': 4, 'mlp.down_proj.weight': 4}
    """

    trained: Literal["coupled", "down"] = "coupled"
    """A channel's rows and its column, or its column alone."""
    seed: int = 0
    """Seed of the draw."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        widths: dict[str, dict[str, int]] = {}  # prefix of a layer's matrices -> each one's name -> width of a channel
        channels: dict[str, int] = {}
        for name, weight in given.weights.items():
            side = _OUT.search(name) or (_INTO.search(name) if self.trained == "coupled" else None)
            if side and weight.ndim == 2:
                rows, columns = weight.shape
                by_row = bool(_INTO.search(name)) != bool(_FLIPPED.search(name))
                layer = name[: name.rindex(side[1].rpartition(".")[2])]
                widths.setdefault(layer, {})[name] = columns if by_row else rows
                channels[layer] = rows if by_row else columns
        if not widths:
            raise CurateError(
                "the mask 'structured' finds no feed-forward layer in this model (down_proj, fc2, c_proj, w2); take "
                "another mask."
            )
        pairs = [(layer, c) for layer, count in channels.items() for c in range(count)]
        order = np.random.default_rng(int(fingerprint("channels", self.seed), 16)).permutation(len(pairs))
        drawn: dict[str, list[int]] = {layer: [] for layer in widths}
        remaining = given.budget
        for place in order:
            layer, c = pairs[place]
            cost = sum(widths[layer].values())
            if cost > remaining:
                break
            drawn[layer].append(c)
            remaining -= cost
        if remaining == given.budget:
            raise CurateError(
                f"a channel of a feed-forward layer has {min(sum(w.values()) for w in widths.values())} elements, "
                f"and the budget is {given.budget}; take a larger --frac."
            )
        return {
            name: _places(given.weights[name], name, drawn[layer]) for layer, names in widths.items() for name in names
        }


def _places(weight: np.ndarray, name: str, channels: list[int]) -> np.ndarray:
    """Flat indices of the rows, or of the columns, that are these channels."""
    rows, columns = weight.shape
    selected = np.array(sorted(channels), np.int64)
    if bool(_INTO.search(name)) != bool(_FLIPPED.search(name)):
        return (selected[:, None] * columns + np.arange(columns)).ravel()
    return (np.arange(rows)[:, None] * columns + selected).ravel()
