"""The samples of a training as documents, and which of them cannot be trained on.

A sample's tokens are kept whole (curate.runs.tokens); a document is a sample cut to the context, or a piece of a text,
told by where it begins and how long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.preferences import PLAIN as LEARNABLE
from curate.runs.samples import TrainingRows
from curate.runs.tokens import Tokens, tokens_of
from curate.store.token_files import PARTIAL, PLAIN, WEIGHTED
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.lookup import samples_at
from curate.training.joined_arrays import Joined, everything
from curate.training.settings import TrainSettings

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.models.language_model import LanguageModel
    from curate.training.examples import Examples

_NOTHING = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
_NO_VALUE = "its column (--by) has no value"
_NEVER = "it repeats 0 times"


@dataclass(frozen=True)
class Documents:
    """What N samples are as D documents: one each, or several if texts are split.

    tokens: where the samples' tokens are. sample: int64 [D], the position of each document's sample, ascending. start,
    length, counts: int64 [D], a document's first token among those of all files, its tokens, how many are supervised.
    cut: bool [D], whether it was cut to the context. learn_all: whether every token is supervised. why: int32 [N], 0 or
    the number (from 1) in `reasons` of why a sample cannot be trained on.
    """

    tokens: Tokens
    sample: np.ndarray
    start: np.ndarray
    length: np.ndarray
    counts: np.ndarray
    cut: np.ndarray
    learn_all: bool
    why: np.ndarray
    reasons: Sequence[str]

    def left_out(self, rows: TrainingRows) -> np.ndarray:
        """The reason why each sample cannot be trained on, str [N]; '' if it can."""
        n = len(self.why)
        nothing = np.bincount(self.sample, self.counts, minlength=n) == 0
        no_value = np.zeros(n, bool) if rows.column is None else ~np.isfinite(rows.column)
        reasons = np.array(["", *self.reasons], object)[self.why]
        for is_so, words in ((nothing, _NOTHING), (no_value, _NO_VALUE), (rows.repeats < 1, _NEVER)):
            reasons[is_so & (reasons == "")] = words
        return reasons

    def of(self, kept: np.ndarray) -> np.ndarray:
        """The documents of some samples, int64, sample after sample, in that order."""
        first, last = np.searchsorted(self.sample, kept, "left"), np.searchsorted(self.sample, kept, "right")
        before = np.cumsum(last - first) - (last - first)
        return np.repeat(first - before, last - first) + np.arange(int((last - first).sum()))

    def examples(self, kept: np.ndarray) -> Examples:
        """These samples as training data; each one's number there is its place in `kept`."""
        return self._examples(kept, self.of(kept))

    def first_of(self, kept: np.ndarray) -> Examples:
        """The same with only the first document of each sample."""
        return self._examples(kept, np.searchsorted(self.sample, kept, "left"))

    def _examples(self, kept: np.ndarray, found: np.ndarray) -> Examples:
        from curate.training.examples import Examples

        place = np.zeros(len(self.why), np.int64)
        place[kept] = np.arange(len(kept))
        weighted = not self.learn_all and (self.tokens.flags[kept] & WEIGHTED).any()
        supervised = everything(self.tokens.size) if self.learn_all else _joined(self.tokens, "supervised", bool)
        return Examples(
            _joined(self.tokens, "ids", np.int32),
            supervised,
            self.start[found],
            self.length[found],
            self.counts[found],
            place[self.sample[found]],
            _joined(self.tokens, "weight", np.float32) if weighted else None,
        )

    def marked(self, kept: np.ndarray) -> dict[str, int]:
        """How many of these samples were cut, and of how many some turns are not supervised."""
        cut = int(self.cut[self.of(kept)].sum())
        return {"cut": cut, "partial": int((self.tokens.flags[kept] & PARTIAL != 0).sum())}


def _joined(tokens: Tokens, name: str, dtype: Any) -> Joined:
    return Joined([getattr(f, name) for f in tokens.files], [len(f.ids) for f in tokens.files], dtype)


def documents_of(
    ws: Workspace, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel, processes: Any = None
) -> Documents:
    """Every sample as one document, or several if texts are split, from the tokens kept in the workspace. processes:
    those of the training; None: this one. Raises CurateError for preference data, and samples that are not there."""
    from curate.training.distributed import Alone

    _refuse_preferences(ws, rows)
    for _ in samples_at(ws, rows.row, rows.id, ["id"]):  # refuses rows where by now another sample is
        pass
    return _documents(tokens_of(ws, rows, settings, lm, processes or Alone()), settings, lm)


def _refuse_preferences(ws: Workspace, rows: TrainingRows) -> None:
    """Raises CurateError if some of the samples are preference data: learning their answers would also learn those that
    are not wanted."""
    found = sql.fetch(ws, f"SELECT row FROM pool WHERE NOT ({LEARNABLE})")["row"].to_numpy()
    if count := int(np.isin(rows.row, found).sum()):
        raise CurateError(
            f"{count:,} of the {len(rows.row):,} samples to train on are preference data (a rejected answer, or a "
            f'label), which this trainer does not learn from; select without them, by --where "{LEARNABLE}", or export '
            "them to a trainer of preferences."
        )


def _documents(tokens: Tokens, settings: TrainSettings, lm: LanguageModel) -> Documents:
    """Samples in tokens as documents of at most the context."""
    context, learn_all = lm.context, settings.loss == "all"
    plain = (tokens.flags & PLAIN != 0) & (tokens.reason == 0)  # of which every token but the first is supervised
    too_long = (tokens.reason == 0) & (tokens.length > context)
    split = too_long & plain & settings.split
    cut = too_long & ~split
    reasons, why = list(tokens.reasons), tokens.reason.copy()
    if lm.choice.too_long == "refuse" and cut.any():
        reasons.append(f"is longer than the context of {context} tokens")
        why[cut] = len(reasons)
    length = np.where(cut, context, tokens.length)
    counts = np.where(plain | learn_all, np.maximum(length - 1, 0), tokens.counts)
    supervised = _joined(tokens, "supervised", bool)
    for i in np.flatnonzero(cut & ~plain & (not learn_all)):
        counts[i] = supervised[int(tokens.start[i]) : int(tokens.start[i]) + context].sum()
    n = np.where(split, -(-tokens.length // context), 1)
    sample = np.repeat(np.arange(len(n)), n)
    before = (np.arange(len(sample)) - np.repeat(np.cumsum(n) - n, n)) * context  # tokens of the pieces before
    is_piece = split[sample]
    length = np.where(is_piece, np.minimum(tokens.length[sample] - before, context), length[sample])
    counts = np.where(is_piece, length - 1, counts[sample])
    kept = ~is_piece | (counts > 0)
    columns = (column[kept] for column in (sample, tokens.start[sample] + before, length, counts, cut[sample]))
    return Documents(tokens, *columns, learn_all=learn_all, why=why, reasons=reasons)
