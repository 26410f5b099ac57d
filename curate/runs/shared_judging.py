"""One evaluation by all processes of a training: each judges a part of the questions, and all know the whole result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curate.errors import CurateFailure
from curate.kinds.metric import EvalResult, Metric, Question


def agreed(processes: Any, value: Any) -> Any:
    """The first process's value, in all of them, which all call this. processes: an Accelerator; None: one alone."""
    if processes is None or processes.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


def judged(metric: Metric, model: Any, asked: Sequence[Question], processes: Any) -> EvalResult:
    """The metric's result on N questions, with what all processes have spent; every process judges each
    `num_processes`-th one. To be called by all of them.

    Raises what a process's part raised, there, and CurateFailure in the others, so that none waits for it.
    """
    if processes is None or processes.num_processes == 1:
        return metric.evaluate(model, asked)
    from accelerate.utils import gather_object

    places = range(processes.process_index, len(asked), processes.num_processes)
    own, failure = None, None
    try:
        own = metric.evaluate(model, [asked[i] for i in places])
    except Exception as error:  # raised below, once the others know  # noqa: BLE001
        failure = error
    parts: list[tuple[range, EvalResult | None, str]] = gather_object([(places, own, repr(failure))])
    if failure:
        raise failure
    done = [(part_places, part) for part_places, part, _ in parts if part is not None]
    if len(done) < len(parts):
        said = next(said for _, part, said in parts if part is None)
        raise CurateFailure(f"{metric.name} stopped in another process: {said[:300]}")
    return _joined(len(asked), done)


def _joined(n: int, parts: Sequence[tuple[range, EvalResult]]) -> EvalResult:
    """The results of parts of n questions as one."""
    values, error = np.full(n, np.nan), np.full(n, "", object)
    answers, weights = [""] * n, np.zeros(n)
    usage = parts[0][1].usage
    for k, (places, part) in enumerate(parts):
        at = list(places)
        values[at], error[at] = part.values, part.error
        for i, said in zip(at, part.answers or [], strict=False):
            answers[i] = said
        if part.weights is not None:
            weights[at] = part.weights
        if k:
            usage.add(part.usage)
    first = parts[0][1]
    note = "; ".join(dict.fromkeys(part.note for _, part in parts if part.note))
    return EvalResult(
        values,
        error,
        usage,
        None if first.answers is None else answers,
        note,
        None if first.weights is None else weights,
    )
