"""Tokenising samples of a workspace for training and as anchors, and which of them cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.runs.samples import TrainingRows
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from curate.tables.lookup import samples_at
from curate.training.settings import TrainSettings

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.models.language_model import LanguageModel
    from curate.models.tokens import Encoded, Sample
    from curate.training.examples import Examples


def encoded_one_by_one(records: Iterable[Any], settings: TrainSettings, lm: LanguageModel) -> Iterator[Encoded]:
    """Tokenise records in any format that `ingest` reads, one by one; unusable ones get an `error`."""
    from curate.models.tokens import Encoded, encode

    reader = Reader("auto", {})
    for record in records:
        try:
            sample = reader.sample(record)
        except Refused as refused:
            yield Encoded(error=str(refused))
            continue
        stored = {"messages": sample.messages, "text": sample.text}
        yield _cut(encode(lm.tokenizer, [stored], 1 << 40)[0], settings, lm)


def documents_of(ws: Workspace, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel) -> list[list[Encoded]]:
    """Tokenise every sample into one document, or several if texts are split; unusable ones get an `error`."""
    from curate.models.tokens import encode
    from curate.training.examples import pieces

    if rows.kept:
        return rows.kept["documents"]
    found: list[list[Encoded]] = [[] for _ in rows.row]
    for places, table in samples_at(ws, rows.row, rows.id, ["messages", "text"]):
        samples = table.select(["messages", "text"]).to_pylist()
        for sample, place, one in zip(samples, places, encode(lm.tokenizer, samples, 1 << 40), strict=True):
            if not one.error and len(one.ids) > lm.context and sample["messages"] is None and settings.split:
                found[place] = [piece for piece in pieces(one, lm.context) if piece.supervised.any()]
                continue
            found[place] = [_cut(one, settings, lm)]
    if rows.kept is not None:
        rows.kept["documents"] = found
    return found


def _cut(one: Encoded, settings: TrainSettings, lm: LanguageModel) -> Encoded:
    """A sample cut to the context, with the supervised tokens that the settings ask for."""
    if not one.error and len(one.ids) > lm.context:
        if lm.choice.too_long == "refuse":
            one = replace(one, error=f"is longer than the context of {lm.context} tokens")
        one = replace(one, ids=one.ids[: lm.context], supervised=one.supervised[: lm.context], cut=True)
    if settings.loss == "all":
        one.supervised = np.arange(len(one.ids)) > 0
    return one


def left_out(encoded: list[list[Encoded]], rows: TrainingRows) -> list[str]:
    """The reason why each sample cannot be trained on; '' if it can."""
    whys = []
    for place, documents in enumerate(encoded):
        why = next((one.error for one in documents if one.error), "")
        if not why and not any(one.supervised.any() for one in documents):
            why = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
        if not why and rows.column is not None and not np.isfinite(rows.column[place]):
            why = "its column (--by) has no value"
        if not why and rows.repeats[place] < 1:
            why = "it repeats 0 times"
        whys.append(why)
    return whys


def anchors_of(samples: Sequence[Sample], name: str, lm: LanguageModel) -> Examples:
    """A target's tokenised samples, including those without supervised tokens. Raises CurateError if none is usable."""
    from curate.models.tokens import encode
    from curate.training.examples import Examples

    encoded = [one for one in encode(lm.tokenizer, samples, lm.context, lm.choice.too_long) if not one.error]
    if not encoded:
        raise CurateError(f"none of the samples of the target '{name}' can go through the model.")
    return Examples.of(encoded)
