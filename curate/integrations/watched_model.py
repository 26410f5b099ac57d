"""A model that a trainer calls for its loss, watched: the loss of every supervised token, and hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.errors import CurateError
from curate.integrations.documents import Documents
from curate.kinds.signals import position_weighted
from curate.models.forward import wide

_NO_TOKENS = (
    "this trainer's loss is not the sum of its tokens' losses ({}), so that they cannot be weighted; turn that off."
)


class Watched:
    """Stands for the model within a trainer's `compute_loss`, and returns what the model does, with weighted losses.

    weighted: from the loss of every supervised token, Tensor [S], differentiable, and the position-weighted mean of
    each document's last hidden states, Tensor [n, D], detached (None unless `states`), the losses that are summed.
    """

    def __init__(
        self, model: Any, documents: Documents, states: bool, weighted: Callable[[Tensor, Tensor | None], Tensor]
    ):
        self._model, self._documents, self._weighted = model, documents, weighted
        self._wanted, self._states = states, cast("Tensor | None", None)
        self.called = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **given: Any) -> Any:
        """What the model returns for these inputs, with its loss."""
        self.called = True
        return self._fused(given) if given.get("fused_lm_head") else self._plain(given)

    def _fused(self, given: dict[str, Any]) -> Any:
        """Of TRL's output head, which makes the tokens' log probabilities and no logits."""
        outputs, documents = self._model(**given), self._documents
        log_probs = outputs.log_probs
        rows, tokens = documents.document.shape
        if log_probs.shape != (rows, tokens - 1):
            raise CurateError(_NO_TOKENS.format(f"log probabilities of shape {tuple(log_probs.shape)}"))
        places = documents.before - torch.div(documents.before, tokens, rounding_mode="floor")  # a row has one less
        losses = self._weighted(-log_probs.flatten().index_select(0, places), self._states)
        weighted = torch.zeros_like(log_probs).flatten().index_copy(0, places, -losses.to(log_probs.dtype))
        outputs.log_probs = weighted.view_as(log_probs)
        return outputs

    def _plain(self, given: dict[str, Any]) -> Any:
        """Of a model that makes logits. It is given no labels, or it would make a loss of its own."""
        labels, items = given.pop("labels", None), given.pop("num_items_in_batch", None)
        if labels is None:
            raise CurateError(_NO_TOKENS.format("label smoothing, or a loss function of its own"))
        outputs, documents = self._model(**given), self._documents
        logits = outputs["logits"]
        if logits is None or logits.shape[:2] != documents.document.shape:
            raise CurateError(_NO_TOKENS.format("logits are not made, or not of every token"))
        if outputs.get("aux_loss") is not None:
            raise CurateError(_NO_TOKENS.format("output_router_logits adds the routers' own"))
        scores = logits.flatten(0, 1).index_select(0, documents.before)
        losses = self._weighted(cross_entropy(wide(scores), documents.labels, reduction="none"), self._states)
        outputs["loss"] = losses.sum() / (len(documents.labels) if items is None else items)
        return outputs

    def see(self, hidden: Tensor) -> None:
        """Take the last hidden states [R, T, D] of the forward pass."""
        if not self._wanted:
            return
        documents = self._documents
        if hidden.shape[:2] != documents.document.shape:
            raise CurateError(
                f"the model's hidden states have the shape {tuple(hidden.shape)}, and its input "
                f"{tuple(documents.document.shape)}: tokens that are put before it (prompt tuning) are not supported."
            )
        self._states = position_weighted(wide(hidden.detach()), documents.document, documents.place, len(documents))
