"""How the candidates of one step lie over the processes of a training run, and what is told of them from one to all.

Each process takes every P-th micro-batch. What is gathered has the order of one process that takes all of them, so that
a weighting is shown the same step, and ties are broken alike, however many processes there are. Of gradients, only
sketches are gathered: r x c numbers of a layer for each candidate (curate.gradients.sketches).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from curate.models.usage import Usage
from curate.training.distributed import gather, objects

Tensors: TypeAlias = "Tensor | tuple[Tensor, Tensor]"  # a sketch of each sample, or both factors of every token


class SharedCandidates:
    """The B candidates of a step in micro-batches, of which each of P processes takes every P-th.

    groups: of all processes, each micro-batch's rows, in the parts that go through the model one by one. own: positions
    of this process's candidates among all of them, int64 [n].
    """

    def __init__(self, processes: Any, groups: Sequence[Sequence[Sequence[np.ndarray]]]):
        self.processes, self.world, self.rank = processes, processes.num_processes, processes.process_index
        self.groups = [[np.concatenate(part) for part in parts] for parts in groups]
        documents = [np.concatenate(parts) for parts in self.groups]
        self.documents = np.concatenate(documents)
        stops = np.cumsum([len(group) for group in documents])
        positions = [np.arange(stop - len(group), stop) for stop, group in zip(stops, documents, strict=True)]
        nothing = np.zeros(0, np.int64)
        self._by_rank = [np.concatenate([nothing, *positions[rank :: self.world]]) for rank in range(self.world)]
        self.own = self._by_rank[self.rank]

    @property
    def mine(self) -> list[np.ndarray]:
        """The documents of each of this process's passes."""
        return [part for parts in self.groups[self.rank :: self.world] for part in parts]

    @property
    def at_once(self) -> bool:
        """Whether no process has more than one micro-batch."""
        return len(self.groups) <= self.world

    def own_of(self, values: np.ndarray) -> list[np.ndarray]:
        """Of values [B] of all candidates, those of each of this process's passes."""
        stops = np.cumsum([len(part) for part in self.mine])[:-1]
        return np.split(values[self.own], stops) if self.mine else []

    def all_of(self, values: np.ndarray) -> np.ndarray:
        """Values [n] of every process's own candidates, as one array [B]."""
        ((gathered, _),) = gather(self.processes, [values])
        placed = np.empty_like(gathered)
        placed[np.concatenate(self._by_rank)] = gathered
        return placed

    def sketches(self, own: Mapping[str, Tensors], good: np.ndarray) -> Iterator[tuple[str, Any]]:
        """The sketches of every layer, of the good candidates of all processes: [G, r, c], or both factors of every
        token. own: of this process's. good: bool [B]."""
        counts = [int(good[positions].sum()) for positions in self._by_rank]
        order = torch.from_numpy(np.argsort(np.concatenate([its[good[its]] for its in self._by_rank])))
        for name, forms in _forms(self.processes, own).items():
            parts = _parts(own[name]) if name in own else [None] * len(forms)
            joined = [self._joined(part, form, counts, order) for part, form in zip(parts, forms, strict=True)]
            yield name, joined[0] if len(joined) == 1 else tuple(joined)

    def _joined(self, own: Tensor | None, form: _Form, counts: list[int], order: Tensor) -> Tensor:
        """Tensors [n, ...] of all processes as one, in the candidates' order, shorter ones continued with zeros."""
        padded = form.zeros(max(counts), self.processes.device)
        if own is not None:
            padded[: own.shape[0], : own.shape[1]] = own
        every = self.processes.gather(padded).view(self.world, *padded.shape)
        joined = torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])
        return joined[order.to(joined.device)]


class _Form(NamedTuple):
    """The shape of a tensor without its first dimension, the largest of those in all processes, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, n: int, device: torch.device) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=self.dtype, device=device)


def _parts(given: Tensors) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def _forms(processes: Any, own: Mapping[str, Tensors]) -> dict[str, list[_Form]]:
    """The forms of what the processes have by name: each has some of the names, with tensors that may differ in their
    second dimension."""
    forms: dict[str, list[_Form]] = {}
    for described in objects(processes, {name: [(tuple(t.shape[1:]), t.dtype) for t in _parts(given)]
                                         for name, given in own.items()}):  # fmt: skip
        for name, its in described.items():
            found = [_Form(*form) for form in its]
            if name in forms:
                found = [_Form(max(a.shape, b.shape), a.dtype) for a, b in zip(forms[name], found, strict=True)]
            forms[name] = found
    return dict(sorted(forms.items()))


def sum_of_tensors(processes: Any, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum over processes of tensors by name. A process may have none of a name; the first dimension may differ,
    and the shorter ones are continued with zeros."""
    if processes.num_processes == 1:
        return dict(own)
    sums = {}
    for name, (form,) in _forms(processes, {name: tensor[None] for name, tensor in own.items()}).items():
        total = form.zeros(1, processes.device)[0]
        if name in own:
            total[: len(own[name])] = own[name]
        sums[name] = processes.reduce(total, "sum")
    return sums


def sum_of_usage(processes: Any, own: Usage) -> None:
    """Make a process's cost that of all of them; its time remains its own."""
    if processes.num_processes == 1:
        return
    names = ("tokens", "padded_tokens", "flops", "flops_paper", "cut", "partial")
    every = objects(processes, own)
    for name in names:
        setattr(own, name, sum(getattr(each, name) for each in every))
