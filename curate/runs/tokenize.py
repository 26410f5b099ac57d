"""Tokenising the samples of a stream for training, and those of a target as anchors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.store.input_formats import Reader, Refused
from curate.store.schema import CONTENT
from curate.training.settings import TrainSettings

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.models.language_model import LanguageModel
    from curate.models.tokens import Encoded, Sample
    from curate.training.examples import Examples


def encoded_one_by_one(records: Iterable[Any], settings: TrainSettings, lm: LanguageModel) -> Iterator[Encoded]:
    """Tokenise records in any format that `ingest` reads, one by one; unusable ones get an `error`."""
    from curate.models.tokens import Encoded

    reader = Reader("auto", {})
    for record in records:
        try:
            sample = reader.sample(record)
        except Refused as refused:
            yield Encoded(error=str(refused))
            continue
        if sample.rejected is not None or sample.wanted is not None:
            yield Encoded(
                error="is preference data (a rejected answer, or a label), which this trainer does not learn from"
            )
            continue
        stored = {column: getattr(sample, column) for column in CONTENT}
        yield _cut(_encoded([stored], settings, lm)[0], settings, lm)


def _encoded(samples: Sequence[Sample], settings: TrainSettings, lm: LanguageModel) -> list[Encoded]:
    from curate.models.tokens import encode

    rules = {"today": lm.choice.today, "special_tokens": lm.choice.special_tokens}
    return encode(lm.tokenizer, samples, 1 << 40, add_eos_token=settings.add_eos_token, **rules)


def _cut(encoded: Encoded, settings: TrainSettings, lm: LanguageModel) -> Encoded:
    """A sample cut to the context, with the supervised tokens that the settings ask for."""
    if not encoded.error and len(encoded.ids) > lm.context:
        if lm.choice.too_long == "refuse":
            encoded = replace(encoded, error=f"is longer than the context of {lm.context} tokens")
        encoded = replace(
            encoded,
            ids=encoded.ids[: lm.context],
            supervised=encoded.supervised[: lm.context],
            weight=None if encoded.weight is None else encoded.weight[: lm.context],
            cut=True,
        )
    if settings.loss == "all":
        encoded.weight = None
        encoded.supervised = np.arange(len(encoded.ids)) > 0
    return encoded


def anchors_of(samples: Sequence[Sample], name: str, lm: LanguageModel, add_eos: bool = False) -> Examples:
    """A target's tokenised samples, including those without supervised tokens. Raises CurateError if none is usable."""
    from curate.models.tokens import encode
    from curate.training.examples import Examples

    rules = {"today": lm.choice.today, "special_tokens": lm.choice.special_tokens}
    tokenised = encode(lm.tokenizer, samples, lm.context, lm.choice.too_long, add_eos_token=add_eos, **rules)
    encoded = [item for item in tokenised if not item.error]
    if not encoded:
        raise CurateError(f"none of the samples of the target '{name}' can go through the model.")
    return Examples.of(encoded)
