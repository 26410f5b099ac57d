"""Tokenising samples of a workspace for training and as anchors, and which of them cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.preferences import PLAIN
from curate.runs.samples import TrainingRows
from curate.store.input_formats import Reader, Refused
from curate.store.schema import CONTENT
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.lookup import samples_at
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


def documents_of(ws: Workspace, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel) -> list[list[Encoded]]:
    """Tokenise every sample into one document, or several if texts are split; unusable ones get an `error`."""
    from curate.training.examples import pieces

    if rows.kept:
        return rows.kept["documents"]
    _refuse_preferences(ws, rows)
    documents: list[list[Encoded]] = [[] for _ in rows.row]
    for positions, table in samples_at(ws, rows.row, rows.id, CONTENT):
        samples = table.select(CONTENT).to_pylist()
        for sample, position, encoded in zip(samples, positions, _encoded(samples, settings, lm), strict=True):
            if not encoded.error and len(encoded.ids) > lm.context and sample["messages"] is None and settings.split:
                documents[position] = [piece for piece in pieces(encoded, lm.context) if piece.supervised.any()]
                continue
            documents[position] = [_cut(encoded, settings, lm)]
    if rows.kept is not None:
        rows.kept["documents"] = documents
    return documents


def _refuse_preferences(ws: Workspace, rows: TrainingRows) -> None:
    """Raises CurateError if some of the samples are preference data: learning their answers would also learn those that
    are not wanted."""
    found = sql.fetch(ws, f"SELECT row FROM pool WHERE NOT ({PLAIN})")["row"].to_numpy()
    if count := int(np.isin(rows.row, found).sum()):
        raise CurateError(
            f"{count:,} of the {len(rows.row):,} samples to train on are preference data (a rejected answer, or a "
            f'label), which this trainer does not learn from; select without them, by --where "{PLAIN}", or export '
            "them to a trainer of preferences."
        )


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


def left_out(encoded: list[list[Encoded]], rows: TrainingRows) -> list[str]:
    """The reason why each sample cannot be trained on; '' if it can."""
    reasons = []
    for position, documents in enumerate(encoded):
        reason = next((document.error for document in documents if document.error), "")
        if not reason and not any(document.supervised.any() for document in documents):
            reason = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
        if not reason and rows.column is not None and not np.isfinite(rows.column[position]):
            reason = "its column (--by) has no value"
        if not reason and rows.repeats[position] < 1:
            reason = "it repeats 0 times"
        reasons.append(reason)
    return reasons


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
