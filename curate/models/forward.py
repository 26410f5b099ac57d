"""Samples through a language model, once, for all that the passes of several scores want of it.

Only the supervised positions go through the output head, in pieces, so that the logits of a batch never stand in memory
at once. Log probabilities and what is made of them are float32, sums over tokens float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from curate.errors import CurateError
from curate.method import Columns, Leg, Pass
from curate.models.batches import by_length
from curate.models.load import ModelChoice, load
from curate.models.tokens import Encoded, Sample, encode
from curate.signals import Forward, Logits

Key: TypeAlias = tuple[str, str]  # a score and its leg

_WINDOW = 2048  # samples tokenised, and sorted by length, together
_UNSUPERVISED = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
_PIECE = 1 << 24  # logits that stand in memory at once


@dataclass
class Usage:
    """What samples cost on their way through a model, by the names of the ledger's columns. flops_paper: 2N a token.

    cut: samples that were longer than the context.
    """

    device: str
    n_params: int
    tokens: int = 0
    padded_tokens: int = 0
    flops: float = 0.0
    flops_paper: float = 0.0
    cut: int = 0

    def add(self, other: Usage) -> None:
        self.tokens += other.tokens
        self.padded_tokens += other.padded_tokens
        self.flops += other.flops
        self.flops_paper += other.flops_paper
        self.cut += other.cut


class LanguageModel:
    """A loaded model: its body, its output head, its tokenizer, and how large a batch its device bears."""

    def __init__(self, choice: ModelChoice):
        self.choice = choice
        model, self.tokenizer = load(choice)
        self.model: Any = model
        self.body: Any = self.model.base_model
        self.head: Any = self.model.get_output_embeddings()
        self.device = next(model.parameters()).device
        self.n_params = sum(p.numel() for p in model.parameters())
        self.batch_tokens = choice.batch_tokens or (16_384 if self.device.type == "cuda" else 2_048)
        self.context = _context(self.model.config, self.tokenizer, choice)
        self.plain_head = self._has_plain_head()

    def usage(self, *amounts: Any, **more: Any) -> Usage:
        return Usage(_name(self.device), self.n_params, *amounts, **more)

    def _has_plain_head(self) -> bool:
        """Whether the logits are the head's product with the last states: some models scale or cap them."""
        ids = torch.arange(4, device=self.device)[None] % self.model.config.vocab_size
        with torch.inference_mode():
            said = self.model(input_ids=ids, use_cache=False).logits
            made = self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state)
        return said.shape == made.shape and bool(torch.equal(said, made))

    def forward(
        self, samples: Sequence[Sample], view: str, legs: Mapping[Key, Leg], refused: dict[int, str]
    ) -> Iterator[tuple[np.ndarray, dict[Key, Forward], Usage]]:
        """Batches of samples: their positions, int64 [B], what each leg is given of them, and what it cost.

        refused: filled with the positions that cannot go through the model, and why.
        """
        for places, encoded in self._windows(samples, view):
            lengths = np.array([len(one.ids) for one in encoded], np.int64)
            refused.update({int(places[i]): one.error for i, one in enumerate(encoded) if one.error})
            todo = np.array([i for i, one in enumerate(encoded) if not one.error], np.int64)
            while len(todo):
                batch = todo[next(by_length(lengths[todo], self.batch_tokens))]
                try:
                    found = self._batch([encoded[i] for i in batch], legs)
                except Exception as error:
                    if not _out_of_memory(error):
                        raise
                    if len(batch) > 1:  # remembered: the next batches are no larger
                        self.batch_tokens = int(lengths[batch].max()) * (len(batch) // 2)
                        continue
                    refused[int(places[batch[0]])] = f"its {lengths[batch[0]]} tokens need more memory than there is"
                else:
                    yield places[batch], *found
                todo = np.setdiff1d(todo, batch)

    def _windows(self, samples: Sequence[Sample], view: str) -> Iterator[tuple[np.ndarray, list[Encoded]]]:
        """Windows of samples in tokens; the next is tokenised while the model is at work on one."""
        cuts = [np.arange(a, min(a + _WINDOW, len(samples))) for a in range(0, len(samples), _WINDOW)]

        def tokenise(places: np.ndarray) -> list[Encoded]:
            return encode(self.tokenizer, [samples[i] for i in places], self.context, self.choice.too_long, view)

        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(tokenise, places) for places in cuts[:1]]
            for k, places in enumerate(cuts):
                encoded = waiting.pop().result()
                waiting = [ahead.submit(tokenise, more) for more in cuts[k + 1 : k + 2]]
                yield places, encoded

    @torch.inference_mode()
    def _batch(self, encoded: Sequence[Encoded], legs: Mapping[Key, Leg]) -> tuple[dict[Key, Forward], Usage]:
        lengths = np.array([len(one.ids) for one in encoded])
        ids, valid, supervised = self._padded(encoded, int(lengths.max()))
        states, logits = self._states(ids, valid)
        counts = supervised.sum(1)
        values = self._per_token(states, logits, ids, supervised, legs)
        hidden = _wide(states) * valid[:, :, None] if any(leg.hidden for leg in legs.values()) else None
        given = {
            key: Forward(values.get(key), counts.cpu().numpy(), hidden if leg.hidden else None, lengths)
            for key, leg in legs.items()
        }
        n = int(counts.sum()) if values else 0
        usage = self.usage(int(lengths.sum()), ids.numel(), cut=sum(one.cut for one in encoded))
        batch, longest = ids.shape
        usage.flops = forward_flops(self.model, batch, longest, n if self.plain_head else ids.numel() * bool(values))
        usage.flops_paper = 2.0 * self.n_params * usage.tokens
        return given, usage

    def _padded(self, encoded: Sequence[Encoded], longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids int64, valid bool and supervised bool, each [B, T], padded on the right."""
        shape = (len(encoded), longest)
        ids, valid, supervised = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
        for i, one in enumerate(encoded):
            n = len(one.ids)
            ids[i, :n], valid[i, :n], supervised[i, :n] = one.ids, True, one.supervised
        there = [torch.from_numpy(a).to(self.device, non_blocking=True) for a in (ids, valid, supervised)]
        return there[0], there[1], there[2]

    def _states(self, ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last layer's states [B, T, D]; and the logits [B, T, V] of a model whose head is not a plain product."""
        mask = valid.long()
        if self.plain_head:
            return self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, None
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        return out.hidden_states[-1], out.logits

    def _per_token(
        self, states: Tensor, logits: Tensor | None, ids: Tensor, supervised: Tensor, legs: Mapping[Key, Leg]
    ) -> dict[Key, np.ndarray]:
        """What each leg asks for at the supervised tokens, float64 [S]; the token at t is predicted at t - 1."""
        asked = {key: leg.per_token for key, leg in legs.items() if leg.per_token}
        if not asked:
            return {}
        at = supervised[:, 1:]
        labels, source = ids[:, 1:][at], (states if logits is None else logits)[:, :-1][at]
        size = max(1, _PIECE // self.model.config.vocab_size)
        pieces: dict[Key, list[Tensor]] = {key: [] for key in asked}
        for start in range(0, len(labels), size):
            piece = source[start : start + size]
            log_p = torch.log_softmax(_wide(self.head(piece) if logits is None else piece), dim=-1)
            here = Logits(log_p, labels[start : start + size])
            for key, f in asked.items():
                pieces[key].append(f(here))
        empty = torch.zeros(0)
        return {key: torch.cat(found or [empty]).double().cpu().numpy() for key, found in pieces.items()}


def score_samples(
    models: Mapping[str, LanguageModel],
    samples: Sequence[Sample],
    passes: Mapping[str, Pass],
    states: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Columns], Usage]:
    """The columns of each pass for all samples, in their order, and what they cost together.

    models: by role. Legs through the same model with the same view share the way. A sample that cannot go through a
    model has the reason in `error`, and so has one in which a leg finds nothing supervised.
    """
    ways: dict[tuple[int, str], dict[Key, Leg]] = {}
    by_id = {id(model): model for model in models.values()}
    for name, step in passes.items():
        for which, leg in step.legs.items():
            ways.setdefault((id(models[leg.model]), leg.view), {})[name, which] = leg
    usage, kept = next(iter(models.values())).usage(), dict[Key, dict[str, np.ndarray]]()
    for (model, view), legs in ways.items():
        found, cost = _way(by_id[model], samples, view, legs)
        kept |= found
        usage.add(cost)
    return {
        name: _joined(len(samples), name, step, kept, (states or {}).get(name)) for name, step in passes.items()
    }, usage


def _way(
    model: LanguageModel, samples: Sequence[Sample], view: str, legs: Mapping[Key, Leg]
) -> tuple[dict[Key, dict[str, np.ndarray]], Usage]:
    """What each leg keeps of every sample, in their order, with the reason in `error` where it keeps nothing."""
    usage, refused, n = model.usage(), dict[int, str](), len(samples)
    kept = {key: _blank(n, leg, model) for key, leg in legs.items()}
    for places, given, cost in model.forward(samples, view, legs, refused):
        usage.add(cost)
        for key, leg in legs.items():
            for column, values in leg.of(given[key]).items():
                kept[key][column][places] = values
            if leg.per_token:
                kept[key]["error"][places[given[key].counts == 0]] = _UNSUPERVISED
    for columns in kept.values():
        for place, why in refused.items():
            columns["error"][place] = why
    return kept, usage


def _blank(n: int, leg: Leg, model: LanguageModel) -> dict[str, np.ndarray]:
    """What a leg keeps of n samples before any has gone its way: not a number, in the columns of an empty batch."""
    none = np.zeros(0, np.int64)
    hidden = torch.zeros(0, 0, model.model.config.hidden_size) if leg.hidden else None
    empty = leg.of(Forward(np.zeros(0) if leg.per_token else None, none, hidden, none))
    columns = {name: np.full((n, *np.shape(values)[1:]), np.nan) for name, values in empty.items()}
    return {"error": np.full(n, "", dtype=object), **columns}


def _joined(n: int, name: str, step: Pass, kept: Mapping[Key, dict[str, np.ndarray]], state: Any) -> Columns:
    """A score's columns from what its legs kept; a sample that one leg has nothing of has not a number."""
    legs = {which: dict(kept[name, which]) for which in step.legs}
    error = np.full(n, "", dtype=object)
    for columns in legs.values():
        error = np.where(error == "", columns.pop("error"), error)
    made = dict(step.map(legs, state))
    own = made.pop("error", np.full(n, "", dtype=object))
    return {**made, "error": np.where(error == "", own, error)}


def forward_flops(model: nn.Module, batch: int, length: int, head_rows: int) -> float:
    """FLOPs of a forward pass over [batch, length] tokens, of which `head_rows` go through the output head.

    Two for each weight of a matrix and each token, and 4 T^2 D for the attention of a sample of T tokens in each layer
    (scores and sums over all pairs, as the eager kernels compute them).
    """
    config: Any = model.config
    head = model.get_output_embeddings()  # type: ignore[operator]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 4.0 * config.num_hidden_layers * batch * length**2 * width
    return 2.0 * matrices * batch * length + attention + 2.0 * head.weight.numel() * head_rows


def _context(config: Any, tokenizer: Any, choice: ModelChoice) -> int:
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    most = min(most, tokenizer.model_max_length)
    if choice.context > most:
        raise CurateError(
            f"model.context={choice.context} is more than the {most} tokens that {choice.name} was made for."
        )
    return choice.context or int(most)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _wide(values: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return values if values.dtype == torch.float64 else values.float()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error).lower()
    )
