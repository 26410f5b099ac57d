from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError, nearest
from curate.kinds.classified import Classified
from curate.kinds.passes import Columns, Pass
from curate.kinds.sample_text import NoText
from curate.kinds.score import Score, Target
from curate.kinds.text import Text

_PREFIX = "__label__"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Fasttext(Score):
    """The probability that a fastText classifier gives to a label: a quality filter such as DCLM's, or a language.

    Formula: score = P(label | text), as fastText's own `predict` gives it, of the text with its lines joined by blanks,
    `" ".join(text.strip().splitlines())`, since fastText takes one line at a time (DCLM's filter does the same).
    Column: `best`, the probability of the most probable label.

    model: a file ending in .bin or .ftz that fastText wrote, such as DCLM's oh-eli5 (label=hq) or lid.176 (label=en).
    label: with or without the prefix `__label__`. The file's SHA-256 is part of the score's recipe. Needs the extra
    `fasttext` (pip install 'curate-lm[fasttext]').

    Cost: reads the pool once; no FLOPs of matrix products. Bottleneck: fastText's lookup of n-grams, one core a worker.

    Of a classifier with hierarchical softmax (lid.176 is one) fastText gives no probability below about 1e-5: 0 here.

    Departures: DCLM's code takes one minus the other label's probability where that is the most probable; here it is
    the label's own, which is the same where there are two.

    Reference: Joulin et al., "Bag of Tricks for Efficient Text Classification", EACL 2017, arXiv:1607.01759; Li et al.,
    "DataComp-LM", NeurIPS 2024, arXiv:2406.11794, Section 4.4.

    >>> joined("  two\\nlines\\r\\n")
    'two lines'
    """

    scope: ClassVar = "row"
    unit_bytes: ClassVar[int] = 32 << 20
    columns: ClassVar = {"best": "float32"}

    model: str = ""
    """The file of the classifier."""
    label: str = ""
    """The label whose probability is the score."""
    of: Literal["contents", "chat", "prompt", "answer"] = "contents"
    """Which text of a sample is classified."""

    def settings(self) -> dict[str, Any]:
        """The settings, and the digest of the file, which may be replaced under its name."""
        return {**super().settings(), "sha256": self._digest}

    @property
    def _digest(self) -> str:
        if "_sha256" not in vars(self):
            object.__setattr__(self, "_sha256", _sha256(self.model) if self.model else "")
        return vars(self)["_sha256"]

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        if not self.model or not self.label:
            raise CurateError(
                "fasttext needs a classifier and a label of it: add --set fasttext.model=FILE.bin --set "
                "fasttext.label=LABEL."
            )
        return (Pass("classify", self._classify, open=lambda _: _loaded(self.model)),)

    def _classify(self, batch: Text, model: Any) -> Columns:
        wanted = self.label if self.label.startswith(_PREFIX) else _PREFIX + self.label
        if wanted not in model.labels:
            own = [label.removeprefix(_PREFIX) for label in model.labels]
            raise CurateError(f"{self.model} has no label '{self.label}': {nearest(self.label, own)}")
        score, best = np.full(len(batch), np.nan), np.full(len(batch), np.nan)
        errors, texts, places = np.full(len(batch), "", object), list[str](), list[int]()
        for i, sample in enumerate(batch.samples()):
            try:
                texts.append(joined(Classified(self.of).text(sample)))
                places.append(i)
            except NoText as reason:
                errors[i] = str(reason)
        labels, values = model.predict(texts, k=-1) if texts else ([], [])
        for i, own, p in zip(places, labels, values, strict=True):
            score[i] = p[own.index(wanted)] if wanted in own else 0.0  # a tree's leaves below 1e-5 are not visited
            best[i] = p[0]
        return {"score": score, "best": best, "error": errors}


def joined(text: str) -> str:
    """A text as one line."""
    return " ".join(text.strip().splitlines())


def _loaded(file: str) -> Any:
    """The classifier. Raises CurateError without fastText, or if the file is none of its."""
    try:
        import fasttext
    except ImportError:
        raise CurateError("fastText is not installed: `pip install 'curate-lm[fasttext]'`.") from None
    try:
        return fasttext.load_model(file)
    except ValueError as error:
        raise CurateError(f"{file} is no model that fastText wrote ({error}).") from None


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb") as opened:
            while piece := opened.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise CurateError(f"{file} cannot be read ({error.strerror}); name a classifier's file.") from None
    return digest.hexdigest()
