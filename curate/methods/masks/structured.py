from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.parameters import Mask, Parameters

# The two sides of a feed-forward layer, as different models name them; GPT-2's matrices are stored transposed.
_INTO = re.compile(r"(gate_proj|up_proj|fc1|c_fc|w1|w3|dense_h_to_4h)\.weight$")
_UP = re.compile(r"(up_proj|fc1|c_fc|w3|dense_h_to_4h)\.weight$")
_OUT = re.compile(r"(down_proj|fc2|mlp\.c_proj|w2|dense_4h_to_h)\.weight$")
_FLIPPED = re.compile(r"(c_fc|mlp\.c_proj)\.weight$")
# Of attention, what goes into its heads as values, and what comes out of them.
_VALUES = re.compile(r"v_proj\.weight$")
_HEADS = re.compile(r"(o_proj|self_attn\.out_proj)\.weight$")


@dataclass(frozen=True)
class Structured(Mask):
    """Channels of the feed-forward layers, and heads of attention, drawn at random across all layers (S2FT).

    Formula: a channel c of a layer is the row c of what goes in (up, gate) and the column c of what comes out (down);
    they are coupled: permuting channels together changes nothing. Without ratios, channels are drawn until the budget
    is spent, every set being equally likely, and for each channel

        trained=coupled    its rows and its column
        trained=down       its column alone

    With ratios, as published, each side is drawn by itself, of all layers together, and --frac is an upper bound:

        u_ratio, d_ratio   int(ratio x channels of all layers): rows of up alone, columns of down alone
        v_ratio, o_ratio   int(ratio x heads of all layers): a head's rows of v_proj, its columns of o_proj

    Published for Llama-3 8B on mathematics: d_ratio=0.03, the others 0, lr 1e-3, three epochs.

    Cost: no matrix products. Memory: the indices that were chosen.

    Departures: the published code permutes the chosen channels and heads to the front and trains a dense block beside
    the frozen matrix; the same weights are trained here, in place. It draws as many heads of v_proj as there are of
    queries; where queries share heads (grouped-query attention), those of v_proj itself are drawn here.

    Reference: Yang et al., "S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    NeurIPS 2024, arXiv:2412.06289; its code.

    >>> import numpy as np
    >>> weights = {"mlp.up_proj.weight": np.zeros((4, 2)), "mlp.down_proj.weight": np.zeros((2, 4))}
    >>> {n: len(p) for n, p in Structured().init(Parameters(weights, 9)).items()}  # two channels of four numbers
    {'mlp.up_proj.weight': 4, 'mlp.down_proj.weight': 4}
    >>> {n: len(p) for n, p in Structured(d_ratio=0.5).init(Parameters(weights, 9)).items()}  # two columns of two
    {'mlp.down_proj.weight': 4}
    """

    trained: Literal["coupled", "down"] = "coupled"
    """Without ratios: a channel's rows and its column, or its column alone."""
    seed: int = 0
    """Seed of the draw."""
    v_ratio: float = 0.0
    """Share of all layers' heads whose rows of v_proj are trained."""
    o_ratio: float = 0.0
    """Share of all layers' heads whose columns of o_proj are trained."""
    u_ratio: float = 0.0
    """Share of all layers' channels whose rows of up_proj are trained."""
    d_ratio: float = 0.0
    """Share of all layers' channels whose columns of down_proj are trained."""

    def __post_init__(self) -> None:
        for name in _SIDES:
            if not 0 <= getattr(self, name) <= 1:
                raise CurateError(f"{name}={getattr(self, name):g} of structured is a share, 0 to 1.")

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        if any(getattr(self, name) for name in _SIDES):
            return self._by_ratios(given)
        return self._by_budget(given)

    # --- as published ------------------------------------------------------------------------------------

    def _by_ratios(self, given: Parameters) -> dict[str, np.ndarray]:
        selected = dict[str, np.ndarray]()
        for ratio, (pattern, what, of_heads) in _SIDES.items():
            if not getattr(self, ratio):
                continue
            width = given.head_dim if of_heads else 1
            matrices = {n: w for n, w in given.weights.items() if pattern.search(n) and w.ndim == 2}
            if not matrices or not width:
                lacking = f"no {what} in this model" if not matrices else "not how wide a head of this model is"
                raise CurateError(f"the mask 'structured' finds {lacking}; leave out {ratio}, or take another mask.")
            drawn = self._drawn(ratio, {n: w.shape[0 if _by_row(n) else 1] // width for n, w in matrices.items()})
            selected |= {n: _places(w, _across(drawn[n], width), _by_row(n)) for n, w in matrices.items()}
        total = sum(map(len, selected.values()))
        told = ", ".join(f"{name}={getattr(self, name):g}" for name in _SIDES if getattr(self, name))
        if not total:
            raise CurateError(f"{told} of structured is less than one channel, or head, of all; take a larger ratio.")
        if total > given.budget:
            raise CurateError(
                f"{told} of structured takes {total:,} weights, and --frac allows {given.budget:,}: take a --frac "
                f"{total / max(given.budget, 1):.3g} times as large, or smaller ratios."
            )
        return selected

    def _drawn(self, ratio: str, units: Mapping[str, int]) -> dict[str, list[int]]:
        """A share of the channels, or heads, of all matrices together, by matrix."""
        pairs = [(name, unit) for name, count in units.items() for unit in range(count)]
        rng = np.random.default_rng(int(fingerprint(ratio, self.seed), 16))
        drawn: dict[str, list[int]] = {name: [] for name in units}
        for place in rng.choice(len(pairs), int(len(pairs) * getattr(self, ratio)), replace=False):
            name, unit = pairs[place]
            drawn[name].append(unit)
        return drawn

    # --- by a budget -------------------------------------------------------------------------------------

    def _by_budget(self, given: Parameters) -> dict[str, np.ndarray]:
        widths: dict[str, dict[str, int]] = {}  # prefix of a layer's matrices -> each one's name -> width of a channel
        channels: dict[str, int] = {}
        for name, weight in given.weights.items():
            side = _OUT.search(name) or (_INTO.search(name) if self.trained == "coupled" else None)
            if side and weight.ndim == 2:
                rows, columns = weight.shape
                layer = name[: name.rindex(side[1].rpartition(".")[2])]
                widths.setdefault(layer, {})[name] = columns if _by_row(name) else rows
                channels[layer] = rows if _by_row(name) else columns
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
            name: _places(given.weights[name], drawn[layer], _by_row(name))
            for layer, names in widths.items()
            for name in names
        }


# Ratio -> the matrices that it is of, in words, and whether it counts heads rather than channels.
_SIDES: Mapping[str, tuple[re.Pattern[str], str, bool]] = {
    "v_ratio": (_VALUES, "v_proj", True),
    "o_ratio": (_HEADS, "o_proj", True),
    "u_ratio": (_UP, "up_proj", False),
    "d_ratio": (_OUT, "down_proj", False),
}


def _by_row(name: str) -> bool:
    """Whether a channel, or a head, is rows of this matrix rather than columns."""
    inward = bool(_INTO.search(name) or _VALUES.search(name))
    return inward != bool(_FLIPPED.search(name))


def _across(units: list[int], width: int) -> list[int]:
    """The rows or columns of heads of this width."""
    return [unit * width + i for unit in units for i in range(width)]


def _places(weight: Any, lines: list[int], by_row: bool) -> np.ndarray:
    """Flat indices of these rows, or of these columns, ascending."""
    rows, columns = weight.shape
    selected = np.array(sorted(lines), np.int64)
    if by_row:
        return (selected[:, None] * columns + np.arange(columns)).ravel()
    return (np.arange(rows)[:, None] * columns + selected).ravel()
