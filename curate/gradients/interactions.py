"""Sums of per-sample gradients and their inner products with directions, for any samples and directions: the building
blocks of DualSFT's diagnostics (arXiv:2605.06166, Appendix F).

M_ij = q_j g_ij is the interaction of sample i and parameter j; a sample's value sums it over the trained parameters, a
parameter's value over the training samples. Each side is selected as if the other were used in full; `Regret` measures
what that loses, and `reselect` alternates the two selections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.gradients.backward import Loss
from curate.gradients.collectors import Dots, Lengths, Totals
from curate.gradients.gradient_model import GradientModel
from curate.kinds.passes import GradientRequest
from curate.models.usage import Usage
from curate.numerics.rank_agreement import best, jaccard, spearman
from curate.numerics.top_k import largest

Samples = Sequence[Any]  # as stored in the pool: messages, or text
Arrays = Mapping[str, np.ndarray]  # by parameter name


@dataclass(frozen=True)
class Looked:
    """For N samples. dot: inner products of their gradients with K directions, float64 [N, K]; length: their gradient
    norms, [N]; both NaN where a sample has no gradient. usage: the cost."""

    dot: np.ndarray
    length: np.ndarray
    usage: Usage


def look(way: GradientModel, samples: Samples, directions: Sequence[Arrays]) -> Looked:
    """Inner products of each sample's gradient with the directions, in one forward and backward pass."""
    at = way.backward.at
    q = {n: torch.stack([_on(at, d[n]) for d in directions]) for n in at.shapes}
    requests = {
        ("look", "dot"): GradientRequest(lambda at, state, places: Dots(q)),
        ("look", "length"): GradientRequest(lambda at, state, places: Lengths()),
    }
    columns, usage = way.way(samples, "whole", requests, {})
    return Looked(columns["look", "dot"]["dot"], columns["look", "length"]["length"], usage)


def summed(
    way: GradientModel,
    samples: Samples,
    groups: np.ndarray | None = None,
    loss: Loss | None = None,
    beside: str = "",
) -> tuple[list[Arrays], np.ndarray, Usage]:
    """The summed gradients of each group's samples, float64; how many samples of each have one; and the cost.

    groups: int64 [N], from 0; None: a single group. loss, beside: a loss other than the samples' own, as in
    GradientRequest.
    """
    labels = np.zeros(len(samples), np.int64) if groups is None else np.asarray(groups, np.int64)
    k = int(labels.max(initial=0)) + 1
    request = GradientRequest(
        lambda at, state, places: Totals(labels[places], k, "", "count"), loss=loss, beside=beside
    )
    columns, usage = way.way(samples, "whole", {("sum", "x"): request}, {})
    sums = columns["sum", "x"]["sums"]
    empty = {n: np.zeros(shape) for n, shape in way.backward.at.shapes.items()}
    counts = np.asarray(sums.get("count", np.zeros(k)), np.int64)
    return [{n: sums[n][i] if n in sums else zero for n, zero in empty.items()} for i in range(k)], counts, usage


def restricted(q: Arrays, selected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A direction with zeros wherever no parameter is selected (flat positions, by name)."""
    masked = {}
    for name, values in q.items():
        kept = np.zeros(values.size)
        places = np.asarray(selected.get(name, ()), np.int64)
        kept[places] = values.ravel()[places]
        masked[name] = kept.reshape(values.shape)
    return masked


def products(q: Arrays, total: Arrays) -> dict[str, np.ndarray]:
    """q * G, elementwise: the value of every parameter."""
    return {name: values * total[name] for name, values in q.items()}


def flat(arrays: Arrays) -> np.ndarray:
    """All arrays flattened into one vector, in the parameters' order."""
    return np.concatenate([values.ravel() for values in arrays.values()])


# --- reselection -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """One side reselected, given the other side's selection from the previous round.

    number: of the round. what: data or parameters. jaccard: of the selection with the previous round's; spearman: of
    the values with the previous round's; from_first: Jaccard of the selection with the first. flops, seconds: the cost
    of this side.
    """

    number: int
    what: str
    jaccard: float
    spearman: float
    from_first: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Reselected:
    """rounds: in order, parameters before data in each. rows, selected: the samples and parameters selected in the
    last."""

    rounds: list[Round]
    rows: np.ndarray
    selected: dict[str, np.ndarray]


def reselect(way: GradientModel, samples: Samples, q: Arrays, rows: int, numbers: int, rounds: int) -> Reselected:
    """Both sides reselected in turn, each given the other side's latest selection (Appendix F.9).

    rows, numbers: how many samples and parameters are selected. The first selection ignores the other side: samples by
    <q, g_i>, parameters by q * G over all samples.
    """
    sizes = {name: values.size for name, values in q.items()}

    def chosen(worths: Arrays) -> dict[str, np.ndarray]:
        return largest(lambda name: worths[name], sizes, numbers)

    first = look(way, samples, [q])
    (total, *_), _, _ = summed(way, samples)
    worth_of_rows, worth_of_numbers = first.dot[:, 0], products(q, total)
    selected_rows, selected = best(worth_of_rows, rows), chosen(worth_of_numbers)
    rows_first, numbers_first, history = selected_rows, _places(selected, sizes), list[Round]()
    for number in range(1, rounds + 1):
        (total, *_), _, cost = summed(way, [samples[i] for i in selected_rows])
        new_products = products(q, total)
        new_selected, before, after = chosen(new_products), _places(selected, sizes), None
        after = _places(new_selected, sizes)
        agreement = (
            jaccard(before, after),
            spearman(flat(worth_of_numbers), flat(new_products)),
            jaccard(numbers_first, after),
        )
        history.append(Round(number, "parameters", *agreement, cost.flops, cost.seconds or 0.0))
        looked = look(way, samples, [restricted(q, selected)])
        worths = looked.dot[:, 0]
        finite = np.isfinite(worths) & np.isfinite(worth_of_rows)
        new_rows = best(worths, rows)
        agreement = (
            jaccard(selected_rows, new_rows),
            spearman(worth_of_rows[finite], worths[finite]),
            jaccard(rows_first, new_rows),
        )
        history.append(Round(number, "data", *agreement, looked.usage.flops, looked.usage.seconds or 0.0))
        selected_rows, selected, worth_of_rows, worth_of_numbers = new_rows, new_selected, worths, new_products
    return Reselected(history, selected_rows, selected)


def _places(selected: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """Positions in the vector that `flat` makes of all parameters."""
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    return np.concatenate([starts[name] + np.asarray(places, np.int64) for name, places in selected.items()])


# --- curvature -------------------------------------------------------------------------------------------


def curvature_along(
    way: GradientModel, samples: Samples, direction: Arrays, loss: Loss | None = None, beside: str = ""
) -> dict[str, np.ndarray]:
    """The Hessian of the samples' mean loss times a direction (name -> shape), float64, by a Hessian-vector product."""
    along = {name: _on(way.backward.at, values)[None] for name, values in direction.items()}
    request = GradientRequest(curved=lambda at, state: along, loss=loss, beside=beside)
    columns, _ = way.way(samples, "whole", {("bend", "x"): request}, {})
    sums = columns["bend", "x"]["sums"]
    index = way.backward.at.index
    count = float(sums[f"hessian{index}/samples"][0])
    return {name: sums[f"hessian{index}/{name}"][0] / count for name in direction}


def drawn_by_score(worths: Arrays, layers: Iterable[str], each: int, seed: int) -> dict[str, np.ndarray]:
    """`each` random positions of every named parameter, a third each from the lowest, middle and highest third by
    |value|."""
    rng, positions = np.random.default_rng(seed), {}
    for name in layers:
        thirds = np.array_split(np.argsort(np.abs(worths[name].ravel()), kind="stable"), 3)
        drawn = [rng.choice(third, min(each // 3, len(third)), replace=False) for third in thirds]
        positions[name] = np.sort(np.concatenate(drawn))
    return positions


def _on(at: Any, values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).to(at.device, at.dtype)
