"""Counts what a GPU would have to wait for: values that Python asks a tensor for, and shapes that depend on values.

    with Syncs() as found:
        model.gradients(…)
    found.where()        # {"curate/gradients/backward.py:223 _local_scalar_dense": 3, …}

It counts on the CPU, where nothing waits. Copies to a device are not seen.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Of these a GPU's kernel gives the shape or the value that the processor waits for.
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "is_nonzero"}
_MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_READ = ("cpu", "numpy", "tolist")


class Syncs(TorchDispatchMode):
    """Use it in a `with` statement."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Syncs:
        for name in _READ:
            self._patch.setattr(torch.Tensor, name, self._counting(name, getattr(torch.Tensor, name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.undo()

    @property
    def total(self) -> int:
        return sum(self.found.values())

    def where(self) -> dict[str, int]:
        """How often each line of curate made a GPU wait, most often first."""
        return dict(self.found.most_common())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in _MASKED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _WAITING or masked:
            self._count(name)
        return func(*args, **(kwargs or {}))

    def _counting(self, name: str, inner: Any) -> Any:
        def counting(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
            if name == "cpu" or not vars(tensor).pop("_read", False):  # what `cpu` gave has been counted
                self._count(name)
            result = inner(tensor, *arguments, **more)
            if name == "cpu":
                result._read = True
            return result

        return counting

    def _count(self, name: str) -> None:
        for frame in reversed(traceback.extract_stack()):
            if "/curate/" in frame.filename:
                self.found[f"{frame.filename.rpartition('/curate/')[2]}:{frame.lineno} {name}"] += 1
                return
        self.found[f"elsewhere {name}"] += 1
