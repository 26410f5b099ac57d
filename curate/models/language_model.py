"""A language model: per-token results at the supervised tokens, and the last layer's hidden states.

Only the supervised positions go through the output head, in pieces, so that the logits of a whole batch are never in
memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curate.errors import CurateError
from curate.kinds.asking import Asked
from curate.kinds.passes import ForwardRequest, View
from curate.kinds.signals import Forward, Logits
from curate.models.asked import Asking
from curate.models.choice import ModelChoice
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.forward import Key, Model, Sharing, to_device, wide
from curate.models.head import Head
from curate.models.load import load
from curate.models.mixed_precision import MixedBody, MixedHead, is_known
from curate.models.prefix_states import CachedBody, ContinuingBody, continues, may_continue
from curate.models.shared_pass import SharedPass
from curate.models.tokens import Encoded, marked, weights_of
from curate.models.usage import Usage

_PIECE = {"cpu": 1 << 24, "cuda": 1 << 27}  # logits in memory at once; a GPU wants more tokens at a time


class LanguageModel(Model):
    """A causal language model: its body and its output head."""

    def __init__(self, choice: ModelChoice, loaded: tuple[Any, Any] | None = None):
        """loaded: the model and its tokenizer, if they are in memory already."""
        model, tokenizer = loaded or load(choice)
        super().__init__(choice, model.eval(), tokenizer, _context(model.config, tokenizer, choice))
        self.body: Any = self.model.base_model
        self.head: Any = self.model.get_output_embeddings()
        self.plain_head = self._has_plain_head()
        self._asked: dict[Asked, list[Tensor]] = {}
        # No token sees the padding behind it; and without a mask a GPU has a faster kernel, and is not asked for it.
        self._masked = self.device.type != "cuda"

    @cached_property
    def output(self) -> Head:
        """The output head. Raises CurateError if the logits are not a linear map of the last hidden states."""
        if not self.plain_head:
            raise CurateError(
                f"{self.choice.name} scales or caps its logits, so they are not its head's product with its last "
                "hidden states; scores of whole logits need another model."
            )
        return Head(self.head.weight, getattr(self.head, "bias", None))

    @cached_property
    def _mixed_body(self) -> MixedBody | None:
        """The body with products in bfloat16, if these were chosen and its layout is known."""
        return MixedBody(self.model) if self.mixed and is_known(self.model.config) else None

    @cached_property
    def _mixed_head(self) -> MixedHead | None:
        return MixedHead(self.head) if self.mixed and isinstance(self.head, nn.Linear) else None

    def _has_plain_head(self) -> bool:
        """Whether the logits are the head applied to the last hidden states: some models also scale or cap them."""
        ids = torch.arange(4, device=self.device)[None] % self.model.config.vocab_size
        with torch.inference_mode():
            logits = self.model(input_ids=ids, use_cache=False).logits
            projected = self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state)
        return logits.shape == projected.shape and bool(torch.equal(logits, projected))

    @torch.inference_mode()
    def _batch(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        lengths = np.array([len(sample.ids) for sample in encoded])
        ids, valid, _ = self.padded(encoded, int(lengths.max()))
        needs_logits = any(request.per_token for request in requests.values())
        usage = self.usage(int(lengths.sum()), ids.numel())
        with counted(usage, self.choice.count_flops):
            states, logits = self._states(ids, valid, self.plain_head or not needs_logits)
        usage.flops = forward_flops(self.model, *ids.shape, head_rows=0)
        return self._results(encoded, requests, states, logits, usage)

    def _sharing(self, requests: Mapping[Key, ForwardRequest]) -> Sharing | None:
        needs_states = any(request.hidden for request in requests.values())

        def compute(encoded: Sequence[Encoded], states: Tensor, cost: Usage) -> tuple[dict[Key, Forward], Usage]:
            return self._results(encoded, requests, states, None, cost)

        def batches(encoded: Sequence[Encoded], todo: Sequence[int]) -> Iterator[tuple[list[int], Any]]:
            return SharedPass(self, encoded, compute, needs_states).batches(todo)

        return batches

    @cached_property
    def continuing(self) -> ContinuingBody | None:
        """The body that goes on behind a prefix; None if the model cannot, or its logits are not its head's product."""
        if not self.plain_head or not continues(self.model):
            return None
        return self._mixed_body or CachedBody(self.body, self.products)

    def in_common(self, view: View) -> int:
        """How many tokens all samples begin with in common in this view, as far as it is known beforehand and the model
        can go on behind them."""
        if not isinstance(view, Asked) or not self.plain_head or not may_continue(self.model):
            return 0
        return Asking(self.tokenizer, view, self.choice.today, self.choice.special_tokens).in_common()

    @torch.inference_mode()
    def _results(
        self,
        encoded: Sequence[Encoded],
        requests: Mapping[Key, ForwardRequest],
        states: Tensor,
        logits: Tensor | None,
        usage: Usage,
    ) -> tuple[dict[Key, Forward], Usage]:
        """The results of a batch from its last hidden states or, where there are some, the model's own logits; and the
        cost, to which the head's is added."""
        lengths = np.array([len(sample.ids) for sample in encoded])
        with counted(usage, self.choice.count_flops):
            values = self._per_token(states, logits, encoded, requests)
        counts = np.array([sample.supervised.sum() for sample in encoded], np.int64)
        needs_hidden = any(request.hidden for request in requests.values())
        hidden, before = None, None
        if needs_hidden:
            before, _ = _supervised(encoded, states.shape[1])
            _, valid, _ = self.padded(encoded, states.shape[1])
            hidden = wide(states).masked_fill(~valid[:, :, None], 0.0)
        results = {
            key: Forward(
                values.get(key),
                counts,
                hidden if request.hidden else None,
                lengths,
                head=self.output if request.head else None,
                weights=weights_of(encoded),
                before=before,
            )
            for key, request in requests.items()
        }
        n = int(counts.sum()) if values else 0
        every = len(lengths) * int(lengths.max()) * bool(values)
        usage.flops += forward_flops(self.model, 0, 0, n if self.plain_head else every)
        usage.flops_paper = paper_flops(FORWARD, self.n_params, len(encoded))
        usage.add(self.usage(**marked(encoded)))
        return results, usage

    def _states(self, ids: Tensor, valid: Tensor, body_only: bool) -> tuple[Tensor, Tensor | None]:
        """The last hidden states [B, T, D] and, unless `body_only`, the model's own logits [B, T, V]."""
        mask = valid.long() if self._masked else None
        if self._mixed_body and body_only:
            return self._mixed_body(ids).last_hidden_state, None
        with self.products():
            if body_only:
                return self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, None
            out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            return out.hidden_states[-1], out.logits

    def _per_token(
        self,
        states: Tensor,
        logits: Tensor | None,
        encoded: Sequence[Encoded],
        requests: Mapping[Key, ForwardRequest],
    ) -> dict[Key, np.ndarray]:
        """Each request's values at the S supervised tokens, float64 [S] or [S, K]; the token at t is predicted at
        t - 1."""
        functions = {key: request.per_token for key, request in requests.items() if request.per_token}
        if not functions:
            return {}
        source = states if logits is None else logits
        before, labels = (to_device(each, self.device) for each in _supervised(encoded, source.shape[1]))
        source = source.flatten(0, 1).index_select(0, before)
        answers = self._answers(next(iter(requests.values())).view)  # all requests of a batch have one view
        pieces: dict[Key, list[Tensor]] = {key: [] for key in functions}
        for log_p, own in self._log_p(source, labels, logits is None):
            block = Logits(log_p, own, answers)
            for key, f in functions.items():
                pieces[key].append(f(block))
        columns = [torch.cat(piece or [torch.zeros(0)]).double() for piece in pieces.values()]
        widths = [column.shape[1] if column.ndim > 1 else 1 for column in columns]
        flat = [column.reshape(len(column), width) for column, width in zip(columns, widths, strict=True)]
        values = torch.cat(flat, 1).cpu().numpy()  # one copy for all
        parts = np.split(values, np.cumsum(widths)[:-1], axis=1)
        shaped = [part if column.ndim > 1 else part[:, 0] for part, column in zip(parts, columns, strict=True)]
        return dict(zip(pieces, shaped, strict=True))

    def _answers(self, view: View) -> list[Tensor]:
        """The tokens that each answer of a question may begin with; none of another view."""
        if not isinstance(view, Asked):
            return []
        if view not in self._asked:
            asking = Asking(self.tokenizer, view, self.choice.today, self.choice.special_tokens)
            self._asked[view] = [to_device(np.array(own, np.int64), self.device) for own in asking.answers()]
        return self._asked[view]

    def _log_p(self, source: Tensor, labels: Tensor, from_states: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Log probabilities [n, V] and labels [n] of the S supervised tokens, a piece at a time.

        source: the states before them, [S, D], or their logits, [S, V].
        """
        if self._mixed_head and from_states:
            yield from self._mixed_head.log_p(source, labels)
            return
        size = max(1, _PIECE.get(self.device.type, _PIECE["cpu"]) // self.model.config.vocab_size)
        for start in range(0, len(labels), size):
            piece = source[start : start + size]
            yield (
                torch.log_softmax(wide(self.head(piece) if from_states else piece), dim=-1),
                labels[start : start + size],
            )


def _supervised(encoded: Sequence[Encoded], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the tokens before the S supervised ones in the flattened [B, longest], and these: int64 [S] each.

    From what is known here: a mask on the device would be waited for, until it is known how many there are.
    """
    each = [np.flatnonzero(sample.supervised[1:]) for sample in encoded]
    before = np.concatenate([i * longest + places for i, places in enumerate(each)])
    tokens = [sample.ids[1:][places] for sample, places in zip(encoded, each, strict=True)]
    return before, np.concatenate(tokens).astype(np.int64)


def _context(config: Any, tokenizer: Any, choice: ModelChoice) -> int:
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    limit = min(limit, tokenizer.model_max_length)
    if choice.context > limit:
        raise CurateError(
            f"model.context={choice.context} is more than the {limit} tokens that {choice.name} was made for."
        )
    return choice.context or int(limit)
