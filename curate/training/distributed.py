"""Communication between the processes of a training run; trivial for a single process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from curate.training.sharded_layers import is_sharded

T = TypeVar("T")

_BUCKET = 64  # parameters whose gradients are reduced together


class Alone:
    """A single process: the part of accelerate.Accelerator's interface that the trainer uses."""

    num_processes, process_index, is_main_process = 1, 0, True

    def wait_for_everyone(self) -> None:
        """Returns at once: there are no other processes."""


def gather(processes: Any, arrays: Sequence[np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
    """Each array concatenated over all processes, and the length of each process's part."""
    if processes.num_processes == 1:
        return [(a, [len(a)]) for a in arrays]
    from accelerate.utils import gather_object

    gathered = gather_object([list(arrays)])
    return [(np.concatenate(parts), [len(p) for p in parts]) for parts in zip(*gathered, strict=True)]


def objects(processes: Any, own: T) -> list[T]:
    """What each process has, rank by rank; it is small."""
    if processes.num_processes == 1:
        return [own]
    from accelerate.utils import gather_object

    return cast("list[T]", gather_object([own]))


def add_up(processes: Any, parameters: Mapping[str, Tensor]) -> None:
    """All-reduce (sum) the gradients over the processes, in place; a parameter without a gradient gets zeros. Those of
    sharded parameters are summed already."""
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes.num_processes == 1:
        return
    whole = [p for p in parameters.values() if not is_sharded(p)]
    for start in range(0, len(whole), _BUCKET):
        grads = [p.grad for p in whole[start : start + _BUCKET] if p.grad is not None]
        flat = processes.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
