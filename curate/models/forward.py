"""Running samples through models, each sample once for all the scores that need it.

A `Model` groups samples into batches by length, halves batches when memory runs out, and tokenises ahead; subclasses
compute a batch (language_model.py, sentence_encoder.py). Results are float32, sums over tokens float64, whatever the
model's dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError
from curate.kinds.asking import Asked
from curate.kinds.classified import Classified
from curate.kinds.passes import Columns, ForwardRequest, GradientRequest, Pass, View
from curate.kinds.signals import Forward
from curate.models.asked import Asking
from curate.models.choice import MIXED, ModelChoice
from curate.models.tokens import Encoded, Sample, encode, marked
from curate.models.usage import Usage
from curate.progress import in_parts, passed

Key: TypeAlias = tuple[str, str]  # a score and its request
# Batches of samples that are computed otherwise than one by one: from all of a window's and the positions of those that
# can go through the model, the positions of each batch's samples, and its results.
Sharing: TypeAlias = Callable[[Sequence[Encoded], Sequence[int]], Iterator[tuple[list[int], Any]]]
WINDOW = 2048  # samples tokenised together and sorted by length
UNSUPERVISED = "nothing of it is supervised (no assistant's turn, or no text, within the context)"


class Model(ABC):
    """A loaded model, its tokenizer, and the batch size its device can hold. width: the hidden size."""

    def __init__(self, choice: ModelChoice, model: Any, tokenizer: Any, context: int):
        self.choice, self.model, self.tokenizer, self.context = choice, model, tokenizer, context
        self.device = next(model.parameters()).device
        self.n_params = sum(p.numel() for p in model.parameters())
        self.batch_tokens = choice.batch_tokens or (16_384 if self.device.type == "cuda" else 2_048)
        self.width = int(model.config.hidden_size)

    @property
    def mixed(self) -> bool:
        """Whether weights are float32 and the inputs of matrix products bfloat16."""
        return self.choice.dtype == MIXED

    def products(self) -> torch.autocast:
        """The context of a forward pass: autocast to bfloat16 if products are `mixed`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)

    @abstractmethod
    def _batch(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        """The forward results of a batch for each request, and the cost."""

    def _counted(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        """The counts of a batch's tokens, for which it does not go through the model."""
        lengths = np.array([len(sample.ids) for sample in encoded], np.int64)
        counts = np.array([sample.supervised[1:].sum() for sample in encoded], np.int64)
        total = int(lengths.sum())
        result = Forward(None, counts, None, lengths)
        return dict.fromkeys(requests, result), self.usage(total, total, **marked(encoded))

    def _sharing(self, requests: Mapping[Key, ForwardRequest]) -> Sharing | None:
        """How results of samples that have much in common are computed together, as `_batch` computes a batch's."""
        return None

    def usage(self, *amounts: Any, **more: Any) -> Usage:
        """A usage record for this model's device and size; zero unless amounts are given."""
        return Usage(_name(self.device), self.n_params, *amounts, **more)

    def through(
        self,
        samples: Sequence[Sample | Encoded],
        view: View | Literal[""],
        refused: dict[int, str],
        do: Callable[[list[Encoded], np.ndarray], Any],
        sharing: Sharing | None = None,
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Run batches of samples through `do(encoded, positions)`; yields their positions, int64 [B], and its result.

        refused: filled with the positions of samples that cannot go through the model, and the reasons. sharing: gives
        the results of what it can; the others go through `do`.
        """
        for places, encoded in self._windows(samples, view):
            lengths = np.array([len(sample.ids) for sample in encoded], np.int64)
            refused.update({int(places[i]): sample.error for i, sample in enumerate(encoded) if sample.error})
            todo = np.array([i for i, sample in enumerate(encoded) if not sample.error], np.int64)
            for together, result in sharing(encoded, todo.tolist()) if sharing else ():
                batch = np.array(together, np.int64)
                yield places[batch], result
                passed(len(batch), int(lengths[batch].sum()))
                todo = np.setdiff1d(todo, batch)
            while len(todo):
                batch = todo[next(by_length(lengths[todo], self.batch_tokens))]
                try:
                    result = do([encoded[i] for i in batch], places[batch])
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    if len(batch) > 1:  # the limit stays lowered: later batches are no larger
                        self.batch_tokens = int(lengths[batch].max()) * (len(batch) // 2)
                        continue
                    refused[int(places[batch[0]])] = f"its {lengths[batch[0]]} tokens need more memory than there is"
                else:
                    yield places[batch], result
                passed(len(batch), int(lengths[batch].sum()))
                todo = np.setdiff1d(todo, batch)

    def way(
        self,
        samples: Sequence[Sample | Encoded],
        view: View | Literal[""],
        requests: Mapping[Key, ForwardRequest],
        states: Mapping[str, Any],
    ) -> tuple[dict[Key, dict[str, Any]], Usage]:
        """The columns of each request for all samples, in order, with the reason in `error` where there is no value;
        and the cost."""
        usage, refused, n = self.usage(), dict[int, str](), len(samples)
        kept = {key: _blank(n, request, self) for key, request in requests.items()}
        computed = not all(request.counts_only for request in requests.values())
        do, sharing = (self._batch, self._sharing(requests)) if computed else (self._counted, None)
        for places, (results, cost) in self.through(
            samples, view, refused, lambda batch, _: do(batch, requests), sharing
        ):
            usage.add(cost)
            for key, request in requests.items():
                for column, values in request.of(results[key]).items():
                    kept[key][column][places] = values
                if request.per_token:
                    kept[key]["error"][places[results[key].counts == 0]] = UNSUPERVISED
        for columns in kept.values():
            for place, why in refused.items():
                columns["error"][place] = why
        return kept, usage

    def encoded(self, samples: Sequence[Sample], view: View) -> list[Encoded]:
        """The samples in the model's tokens."""
        choice = self.choice
        if isinstance(view, Asked):
            asking = Asking(self.tokenizer, view, choice.today, choice.special_tokens)
            return asking.encoded(samples, self.context, choice.too_long)
        if isinstance(view, Classified):
            raise CurateError(f"{choice.name} is no classifier; name one by --model classifier=MODEL.")
        how = (view, choice.today, choice.add_eos_token, choice.special_tokens)
        return encode(self.tokenizer, samples, self.context, choice.too_long, *how)

    def _windows(
        self, samples: Sequence[Sample | Encoded], view: View | Literal[""]
    ) -> Iterator[tuple[np.ndarray, list[Encoded]]]:
        """Windows of tokenised samples; the next window is tokenised while the model processes the current one. view:
        '' where the samples are `Encoded` already."""
        windows = [np.arange(a, min(a + WINDOW, len(samples))) for a in range(0, len(samples), WINDOW)]

        def tokenise(places: np.ndarray) -> list[Encoded]:
            if not view:
                return [cast(Encoded, samples[i]) for i in places]
            return self.encoded([cast(Sample, samples[i]) for i in places], view)

        with ThreadPoolExecutor(1) as executor:
            pending = [executor.submit(tokenise, places) for places in windows[:1]]
            for k, places in enumerate(windows):
                encoded = pending.pop().result()
                pending = [executor.submit(tokenise, upcoming) for upcoming in windows[k + 1 : k + 2]]
                yield places, encoded

    def padded(self, encoded: Sequence[Encoded], longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids int64, valid bool and supervised bool, each [B, T], padded on the right."""
        shape = (len(encoded), longest)
        ids, valid, supervised = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
        for i, sample in enumerate(encoded):
            n = len(sample.ids)
            ids[i, :n], valid[i, :n], supervised[i, :n] = sample.ids, True, sample.supervised
        return to_device(ids, self.device), to_device(valid, self.device), to_device(supervised, self.device)


class ScoringModel(Protocol):
    """Anything samples can be run through: a model, forward only or forward and backward."""

    def usage(self) -> Usage:
        """An empty usage record for this model."""
        ...

    def way(
        self, samples: Sequence[Sample], view: View, requests: Mapping[Key, Any], states: Mapping[str, Any]
    ) -> tuple[dict[Key, dict[str, Any]], Usage]:
        """The columns of each request for all samples, in order; and the cost."""
        ...


def score_samples(
    models: Mapping[str, ScoringModel],
    samples: Sequence[Sample],
    passes: Mapping[str, Pass],
    states: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Columns], Usage]:
    """The columns of each pass for all samples, in order, and their total cost.

    models: by role. Requests to the same model with the same view share one pass. `error` has the reason for a sample
    that cannot go through a model, or in which a request finds nothing supervised. states: the passes' states, by name.
    """
    grouped: dict[tuple[int, View], dict[Key, ForwardRequest | GradientRequest]] = {}
    by_id = {id(model): model for model in models.values()}
    for name, step in passes.items():
        for which, request in step.requests.items():
            grouped.setdefault((id(models[request.model]), request.view), {})[name, which] = request
    usage, kept = next(iter(models.values())).usage(), dict[Key, dict[str, np.ndarray]]()
    for (model, view), requests in grouped.items():
        with in_parts(len(grouped)):
            columns, cost = by_id[model].way(samples, view, requests, states or {})
        kept |= columns
        usage.add(cost)
        if usage.phases and not cost.phases:  # an auxiliary model besides the one whose gradients are taken
            usage.phases["forward"].add(cost)
    return {
        name: _joined(len(samples), name, step, kept, (states or {}).get(name)) for name, step in passes.items()
    }, usage


def _blank(n: int, request: ForwardRequest, model: Model) -> dict[str, np.ndarray]:
    """A request's columns for n samples before any is processed: NaN, in the shapes that an empty batch gives."""
    no_counts = np.zeros(0, np.int64)
    hidden = torch.zeros(0, 0, model.width) if request.hidden else None
    pooled = torch.zeros(0, model.width) if request.pooled else None
    empty = request.of(Forward(np.zeros(0) if request.per_token else None, no_counts, hidden, no_counts, pooled))
    columns = {}
    for name, values in empty.items():
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
        columns[name] = np.full((n, *np.shape(values)[1:]), np.nan, dtype)
    return {"error": np.full(n, "", dtype=object), **columns}


def _joined(n: int, name: str, step: Pass, kept: Mapping[Key, dict[str, np.ndarray]], state: Any) -> Columns:
    """A score's columns from those of its requests; a sample that one request has no value for is NaN, with `error`."""
    requests = {which: dict(kept[name, which]) for which in step.requests}
    error = np.full(n, "", dtype=object)
    for columns in requests.values():
        error = np.where(error == "", columns.pop("error"), error)
    result = dict(step.map(requests, state))
    own_error = result.pop("error", np.full(n, "", dtype=object))
    return {**result, "error": np.where(error == "", own_error, error)}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def usable_positions(model: Any) -> int:
    """How many tokens a model has positions for: RoBERTa and its kin count theirs from behind the padding's."""
    limit = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    places = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    before = [m.padding_idx + 1 for m in places if getattr(m, "padding_idx", None) is not None]
    return limit - max(before, default=0)


def wide(values: Tensor) -> Tensor:
    """The tensor in float32; float64 stays as it is."""
    return values if values.dtype == torch.float64 else values.float()


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device. Nothing waits for a GPU: from memory that is not pinned, a copy would wait for
    all the work before it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def out_of_memory(error: Exception) -> bool:
    """Whether an exception means that the GPU or the CPU ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error).lower()
    )


def by_length(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Positions of samples, int64, in batches of at most `budget` tokens including padding; longest first.

    A sample over the budget is a batch of its own. lengths: int64 [N].
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, budget // longest)
        yield order[start:stop]
        start = stop
