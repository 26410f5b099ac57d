"""Passes shared by gradient scores: a mean gradient, of the target or the pool, and inner products with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, GradientCollector, GradientRequest, Pass
from curate.kinds.vectors import Groups

if TYPE_CHECKING:
    from curate.gradients.backward import CheckpointView
    from curate.gradients.collectors import Directions

_COUNT = "samples"  # the key, among the sums, of each group's number of samples

By = Literal["ghost", "jvp", "difference"]


def mean_gradient(
    groups: Groups | None,
    shaped_by: tuple[str, ...] = (),
    every: bool = False,
    *,
    over: Literal["pool", "target", "anchors"] | None = None,
    named: str = "",
    loss: Callable[..., Any] | None = None,
    beside: str = "",
    curved: Callable[[CheckpointView, Any], Mapping[str, Any]] | None = None,
    more: Mapping[str, ForwardRequest | GradientRequest] | None = None,
) -> Pass:
    """A pass for the mean gradient of each of K groups of the target's examples; without groups, of the pool or `over`.

    Its state: named + CHECKPOINT/PARAMETER -> [K, *shape], float32. loss, beside, curved: as in GradientRequest; a mean
    Hessian-vector product is stored as named + hessianCHECKPOINT/PARAMETER. more: additional requests; the results of a
    ForwardRequest are averaged too, as named + REQUEST/mean -> [1]. Raises CurateError if no example of a group has a
    gradient.
    """
    over = over or ("target" if groups else "pool")
    requests: dict[str, ForwardRequest | GradientRequest] = {
        "gradient": GradientRequest(partial(_totals, groups), every=every, loss=loss, beside=beside),
        **({"hessian": GradientRequest(curved=curved, loss=loss, beside=beside)} if curved else {}),
        **(more or {}),
    }
    means = partial(_means, groups, over, named)
    return Pass(
        f"mean of the {over}",
        partial(_sums, named),
        means,
        opened if curved else None,
        shaped_by,
        requests=requests,
        over=over,
    )


def products(score: Callable[[np.ndarray, np.ndarray], Columns], by: By = "ghost", every: bool = False) -> Pass:
    """A pass for inner products of each sample's gradient with the K mean gradients, [B, K]; with `every`, at each of C
    checkpoints, times its learning rate, [B, C, K]. score: computes the columns from these and from the groups' shares
    of the target's examples."""
    ghost = GradientRequest(partial(_dots, every), every=every)
    request = ghost if by == "ghost" else GradientRequest(along=_along, by=by)
    return Pass("gradients", partial(_scored, score), open=opened, requests={"gradient": request})


def along_mean() -> GradientRequest:
    """A request for inner products with the mean gradient, for a pass with further requests."""
    return GradientRequest(partial(_dots, False))


def opened(state: Arrays) -> Directions:
    """The mean gradients as tensors, moved to a device on first use."""
    from curate.gradients.collectors import Directions

    return Directions(state)


def _key(at: CheckpointView) -> str:
    return f"{at.index}/"


def _totals(groups: Groups | None, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
    from curate.gradients.collectors import Totals

    of_each = groups.of_each[places] if groups else np.zeros(len(places), np.int64)
    return Totals(of_each, len(groups.labels) if groups else 1, _key(at), _COUNT)


def _sums(named: str, requests: Mapping[str, Columns], _: Arrays) -> Columns:
    sums = {}
    for which, columns in requests.items():
        if "mean" in columns:  # a forward request: one value per sample
            finite = columns["mean"][np.isfinite(columns["mean"])]
            sums |= {
                f"{named}{which}/mean": finite.sum(keepdims=True),
                f"{named}{which}/{_COUNT}": np.array([len(finite)]),
            }
        else:
            sums |= {named + name: value for name, value in columns["sums"].items()}
    return sums


def _means(groups: Groups | None, over: str, named: str, partials: Iterable[Arrays]) -> Arrays:
    sums: dict[str, np.ndarray] = {}
    for arrays in partials:
        for name, value in arrays.items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
    means = {}
    for name, value in sums.items():
        checkpoint, _, parameter = name.partition("/")
        counts = sums[f"{checkpoint}/{_COUNT}"]
        if parameter == _COUNT:
            means[name] = counts
        elif counts.all():
            means[name] = (value / counts.reshape(-1, *[1] * (value.ndim - 1))).astype(np.float32)
    all_counts = [value for name, value in sums.items() if name.endswith(f"/{_COUNT}")]
    empty = next((counts for counts in all_counts if not counts.all()), None)
    if groups and (empty is not None or not all_counts):
        label = groups.labels[0 if empty is None else int(np.argmin(empty))]
        subject = f"the target's sub-task '{label}'" if label else "the target"
        raise CurateError(f"no example of {subject} has a finite gradient of anything supervised; edit the target.")
    if over == "anchors" and (empty is not None or not all_counts):
        raise CurateError("none of the anchors has a finite gradient of anything supervised; set more aside.")
    return means


def _dots(every: bool, at: CheckpointView, state: Directions, places: np.ndarray) -> GradientCollector:
    from curate.gradients.collectors import Dots

    if not every:
        return Dots(state.on(at, min(state.keys, default="")))
    assert at.checkpoint.lr is not None
    return Dots(state.on(at, _key(at)), at.checkpoint.lr)


def _along(at: CheckpointView, state: Directions) -> Mapping[str, Any]:
    return state.on(at, min(state.keys, default=""))


def _scored(
    score: Callable[[np.ndarray, np.ndarray], Columns], requests: Mapping[str, Columns], state: Directions
) -> Columns:
    return score(requests["gradient"]["dot"], state.shares(_COUNT))
