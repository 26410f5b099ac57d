"""The training objective: the loss of every supervised token of a batch, differentiable, and hidden states.

Only supervised positions go through the output head. Rows are padded on the right, which causal attention never sees,
so no attention mask is needed; in packed rows position ids restart with every document, which keeps their attention
separate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.errors import CurateError
from curate.kinds.signals import position_weighted
from curate.models.forward import wide
from curate.models.language_model import LanguageModel
from curate.training.examples import Batch


@dataclass(frozen=True)
class Losses:
    """Losses of a batch of n documents with S supervised tokens.

    token: the loss of each token, Tensor [S], document after document, differentiable. states: the position-weighted
    mean of each document's last hidden states, Tensor [n, D], detached; None unless requested. hidden: all last hidden
    states, for rows of one document each, [n, T, D], likewise.
    """

    token: Tensor
    states: Tensor | None
    hidden: Tensor | None = None

    def means(self, counts: np.ndarray) -> np.ndarray:
        """Each document's mean loss, float64 [n]; counts: its number of supervised tokens, int64 [n]."""
        return np.bincount(np.repeat(np.arange(len(counts)), counts), self.values, len(counts)) / counts

    @cached_property
    def values(self) -> np.ndarray:
        """The loss of each token, float64 [S], read from the device once."""
        return self.token.detach().double().cpu().numpy()


class Objective:
    """A language model in training, and the precision it is trained in. compiled: whether its body is compiled.

    Raises CurateError for a model that cannot be compiled so, as more than its head makes its logits.
    """

    def __init__(self, model: LanguageModel, bfloat16: bool = False, compiled: bool = False):
        self.model, self.bfloat16, self.body = model, bfloat16, model.body
        if compiled and not model.plain_head:
            raise CurateError(f"{model.choice.name} scales or caps its logits, and is not compiled; leave out compile.")
        if compiled:  # batches differ in their lengths, and each would be compiled anew
            self.body = torch.compile(model.body, dynamic=True)
        self.flash = "flash" in (getattr(model.model.config, "_attn_implementation", None) or "")

    def arithmetic(self) -> str:
        """The dtype of the weights and of matrix products, in words."""
        dtype = str(next(self.model.model.parameters()).dtype)
        return f"{dtype}, products in bfloat16" if self.bfloat16 else dtype

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast to bfloat16, if chosen."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def losses(self, batch: Batch, states: bool = False, hidden_too: bool = False) -> Losses:
        """The loss of every supervised token; the one at t is predicted at t - 1 of the same document. states,
        hidden_too: also return these of `Losses`."""
        with self.precision():
            hidden, logits = self._forward(batch)
            outputs = batch.at(hidden if logits is None else logits, before=1)
            scores = self.model.head(outputs) if logits is None else outputs
        token = cross_entropy(wide(scores), batch.at(batch.ids), reduction="none")
        if batch.weight is not None:
            token = token * batch.at(batch.weight)
        n = len(batch.documents)
        pooled = position_weighted(wide(hidden.detach()), batch.document, batch.place, n) if states else None
        return Losses(token, pooled, wide(hidden.detach()) if hidden_too else None)

    def states(self, batch: Batch) -> Losses:
        """Only the documents' pooled hidden states, without the output head."""
        with self.precision():
            hidden = self._hidden(batch)
        pooled = position_weighted(wide(hidden), batch.document, batch.place, len(batch.documents))
        return Losses(pooled.new_zeros(0), pooled)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The last hidden states [R, T, D]; and the logits [R, T, V] unless they are just the head applied to them."""
        if self.model.plain_head:
            return self._hidden(batch), None
        out, shape = self.model.model(output_hidden_states=True, **self._given(batch)), batch.ids.shape
        return out.hidden_states[-1].reshape(*shape, -1), out.logits.reshape(*shape, -1)

    def _hidden(self, batch: Batch) -> Tensor:
        return self.body(**self._given(batch)).last_hidden_state.reshape(*batch.ids.shape, -1)

    def _given(self, batch: Batch) -> dict[str, Any]:
        if not batch.packed:
            return {"input_ids": batch.ids, "use_cache": False}
        shape = (1, -1) if self.flash else batch.ids.shape  # flash kernels take packed documents as one row
        return {"input_ids": batch.ids.reshape(shape), "position_ids": batch.place.reshape(shape), "use_cache": False}

    @torch.no_grad()
    def refuse_unpackable(self) -> None:
        """Raises CurateError if documents packed into one row attend to each other in this model, found by a trial."""
        ids = torch.arange(1, 9, device=self.model.device) % self.model.model.config.vocab_size
        place = torch.arange(4, device=self.model.device)
        document = torch.tensor([0] * 4 + [1] * 4, device=self.model.device)
        supervised = torch.tensor([1, 2, 3, 5, 6, 7], device=self.model.device)
        packed = Batch(np.arange(2), ids[None], torch.cat([place, place])[None], document[None], supervised, True)
        alone = Batch(np.arange(1), ids[None, 4:], place[None], document[None, :4], supervised[:3], False)
        together, apart = self.losses(packed).token[3:], self.losses(alone).token
        if not torch.allclose(together, apart, rtol=1e-2 if self.bfloat16 else 1e-4, atol=1e-4):
            raise CurateError(
                f"{self.model.choice.name}: documents packed into one row see each other in this model; train it "
                "without packing."
            )
