"""Samples with common prefixes through a language model: each prefix once, then what is their own, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from curate.models.flops import counted, forward_flops
from curate.models.forward import by_length, out_of_memory, to_device
from curate.models.prefix_states import Block, ContinuingBody, Past
from curate.models.prefixes import Prefix, shared_prefixes
from curate.models.tokens import Encoded
from curate.models.usage import Usage

# Memory, in tokens of a batch: a token of a prefix counts as one while its keys and values are kept, of which there are
# no more than half a batch's; and as a quarter of one for each sample behind it, as one layer's at a time are copied.
_KEPT, _SEEN = 2, 4
_FEWEST = 4  # prefixes are used where they save at least this part of the tokens of a full batch

Piece: TypeAlias = tuple[Encoded, int, int]  # tokens [start, stop) of a sample
Batch: TypeAlias = tuple[list[int], Any]  # the samples of a batch, as positions among all, and what was computed


@dataclass
class SharedPass:
    """One way of samples through a language model, prefix by prefix.

    model: its LanguageModel. compute(samples, states, cost): what is computed of a batch from its last hidden states,
    [B, T, D], zero behind a sample's end; it is given the cost so far. whole: whether it needs all of a sample's states
    rather than those of the supervised tokens.
    """

    model: Any
    encoded: Sequence[Encoded]
    compute: Callable[[Sequence[Encoded], Tensor, Usage], Any]
    whole: bool
    cost: Usage = field(init=False)

    def __post_init__(self) -> None:
        self.cost = self.model.usage()

    def batches(self, samples: Sequence[int]) -> Iterator[Batch]:
        """The samples that share a prefix with others, in batches, as far as memory allows; the batches get smaller
        where it runs out, and samples of which a single one does not fit are left to the ordinary pass."""
        left = set(samples)
        while left:
            ids = {i: self.encoded[i].ids for i in sorted(left)}
            prefixes = shared_prefixes(ids, self.model.batch_tokens // _FEWEST)
            if not prefixes or not self.model.continuing:
                return
            try:
                for batch, result in self.behind(prefixes):
                    left -= set(batch)
                    yield batch, result
                return
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.model.batch_tokens <= max(map(len, ids.values())):
                    return
                self.model.batch_tokens //= 2  # it stays lowered: later batches are no larger

    def behind(self, prefixes: Sequence[Prefix], past: Past | None = None) -> Iterator[Batch]:
        """The samples behind these prefixes, in batches. past: what stands before each of them."""
        past = past or Past()
        lengths = np.array([prefix.stop - prefix.start for prefix in prefixes], np.int64)
        room = self.model.batch_tokens // _KEPT - past.kept
        for places in by_length(lengths + past.length // _SEEN, max(room, 1)):
            these, before = [prefixes[i] for i in places], past.of(self._tensor(places))
            block = self._after([(self.encoded[p.sample], p.start, p.stop) for p in these], before, keep=True)
            yield from self._rests(these, before, block)
            longer = [(row, prefix) for row, these_ in enumerate(these) for prefix in these_.longer]
            if longer:
                rows = self._tensor([row for row, _ in longer])
                yield from self.behind([prefix for _, prefix in longer], before.of(rows, block))

    def _rests(self, prefixes: Sequence[Prefix], past: Past, block: Block) -> Iterator[Batch]:
        """The samples that share nothing more behind these prefixes, which are the rows of the block."""
        ends = [(row, sample, prefix.stop) for row, prefix in enumerate(prefixes) for sample in prefix.rests]
        lengths = np.array([len(self.encoded[sample].ids) - start for _, sample, start in ends], np.int64)
        before = past.length + block.valid.shape[1]
        room = self.model.batch_tokens - past.kept - block.valid.numel()
        for places in by_length(lengths + (before if self.whole else before // _SEEN), max(room, 1)):
            batch = [ends[i] for i in places]
            samples = [self.encoded[sample] for _, sample, _ in batch]
            own_past = past.of(self._tensor([row for row, _, _ in batch]), block)
            pieces = [(item, start, len(item.ids)) for item, (_, _, start) in zip(samples, batch, strict=True)]
            states = _in_a_row([*own_past.states(), self._after(pieces, own_past, keep=False)])
            cost, self.cost = self.cost, self.model.usage()
            yield [sample for _, sample, _ in batch], self.compute(samples, states, cost)

    @torch.inference_mode()
    def _after(self, pieces: Sequence[Piece], past: Past, keep: bool) -> Block:
        """Pieces of samples behind their pasts, computed, for others behind them if `keep`; adds to the cost."""
        lengths = np.array([stop - start for _, start, stop in pieces], np.int64)
        valid = np.arange(lengths.max()) < lengths[:, None]
        ids, places = np.zeros(valid.shape, np.int64), np.zeros(valid.shape, np.int64)
        for i, (item, start, stop) in enumerate(pieces):
            ids[i, : stop - start] = item.ids[start:stop]
            places[i] = np.minimum(np.arange(start, start + valid.shape[1]), stop - 1)  # none beyond the context
        here = [self._tensor(values) for values in (ids, valid, places)]
        body: ContinuingBody = self.model.continuing
        with counted(self.cost, self.model.choice.count_flops):
            block = body.after(here[0], here[1], here[2], past, keep)
        self.cost.tokens += int(lengths.sum())
        self.cost.padded_tokens += ids.size
        self.cost.flops += forward_flops(self.model.model, *valid.shape, head_rows=0, before=past.length)
        return block

    def _tensor(self, values: Any) -> Tensor:
        return to_device(np.asarray(values), self.model.device)


@torch.inference_mode()
def _in_a_row(parts: Sequence[Block]) -> Tensor:
    """The states of whole samples, [B, T, D], zero behind their ends, from those of their parts, [B, P, D] each."""
    states, valid = torch.cat([part.states for part in parts], 1), torch.cat([part.valid for part in parts], 1)
    if not all(bool(part.valid.all()) for part in parts[:-1]):  # padding between the parts goes to the end
        order = torch.argsort(~valid, dim=1, stable=True)[:, : int(valid.sum(1).max())]
        states, valid = states.gather(1, order[:, :, None].expand(-1, -1, states.shape[-1])), valid.gather(1, order)
    return states.masked_fill_(~valid[:, :, None], 0)
