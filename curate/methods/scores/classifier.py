from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.classified import Classified
from curate.kinds.column_names import plain_name, refuse_column_names
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Forward


@dataclass(frozen=True)
class Classifier(Score):
    """The output of a text classifier or regression model of transformers, such as FineWeb-Edu's.

    Formula, with o_k the model's output for label k, as transformers' pipeline `text-classification` gives it
    (activation=auto: as it is for a regression, else the sigmoid or softmax that the model's configuration asks for):

        score = o_LABEL,   or with values = v_1, v_2, …:   sum over k of v_k o_k / (sum over k of o_k)

    label: which output, by its name or number; not needed if there is one only, as in a regression (FineWeb-Edu's
    educational value, 0 to 5). values: the numbers of ordered labels, whose expectation is then the score. further:
    labels that are columns of their own, NAME_LABEL, for models of several labels. The text is the messages'
    contents or the raw text (of=contents), or of a chat with each turn behind its role (of=chat), its last answer, or
    what stands before that. A text longer than the model's context counts by its first part (long=first, as the
    published ones do), or by the mean over all parts, weighted by their tokens, or their maximum.

    Cost: one forward pass, 2N FLOPs per token; long=mean and max of all parts. Bottleneck: the device's matrix
    products. Texts of like length go together, so that little is padding.

    Reference: Penedo et al., "The FineWeb Datasets", NeurIPS 2024, arXiv:2406.17557, Section 4 (FineWeb-Edu: linear
    regression on an encoder's output); transformers' pipeline.

    >>> outputs = Forward(None, np.zeros(1, int), None, np.array([5]), np.array([[0.1, 0.2, 0.7]]))
    >>> rated = Classifier(values="0,1,2")
    >>> round(float(rated._score({"text": rated._outputs(outputs)}, {})["score"][0]), 6)
    1.6
    """

    scope: ClassVar = "row"
    models: ClassVar = ("classifier",)

    label: str = ""
    """The label whose output is the score; default: the only one."""
    values: str = ""
    """Numbers of the labels in their order, as 0,1,2: the score is their expectation."""
    further: str = ""
    """Further labels, as toxic,obscene, each a column of its own."""
    of: Literal["contents", "chat", "prompt", "answer"] = "contents"
    """Which text of a sample is put to the classifier."""
    long: Literal["first", "mean", "max"] = "first"
    """What counts of a text that is longer than the context: its first part, or the mean or maximum over all parts."""
    activation: Literal["auto", "none", "sigmoid", "softmax"] = "auto"
    """What becomes of the model's outputs: as its configuration has it, or another."""

    def __post_init__(self) -> None:
        if self.label and self.values:
            raise CurateError("classifier takes a label, or values of all labels, not both.")
        refuse_column_names([plain_name(label) for label in self._further])
        self._numbers()

    @property
    def columns(self) -> Mapping[str, str]:  # type: ignore[override]
        """A column for each further label, by its name in small letters."""
        return {plain_name(label): "float32" for label in self._further}

    @property
    def _further(self) -> tuple[str, ...]:
        return tuple(label.strip() for label in self.further.split(",") if label.strip())

    def _numbers(self) -> np.ndarray:
        """The labels' values, float64 [L]; none if there are none."""
        try:
            return np.array([float(value) for value in self.values.split(",") if value.strip()])
        except ValueError:
            raise CurateError(
                f"values={self.values} of classifier are numbers with commas between, as 0,1,2."
            ) from None

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        labels = (*self._further, *([self.label] if self.label else []))
        view = Classified(self.of, self.long, self.activation, labels, every=not self.label)
        request = ForwardRequest(pooled=True, of=self._outputs, model="classifier", view=view)
        return (Pass("classify", self._score, requests={"text": request}),)

    def _outputs(self, batch: Forward) -> Columns:
        assert batch.pooled is not None
        return {"outputs": np.asarray(batch.pooled, np.float64)}

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        outputs, values, n = requests["text"]["outputs"], self._numbers(), len(self._further)
        further, own = dict(zip(self.columns, outputs[:, :n].T, strict=True)), outputs[:, n:]
        if len(values) not in (0, own.shape[1]):
            raise CurateError(f"values={self.values} are {len(values)}, and the classifier has {own.shape[1]} labels.")
        if len(values):
            return {"score": own @ values / own.sum(1), **further}
        if own.shape[1] != 1:
            raise CurateError(
                f"the classifier has {own.shape[1]} labels: name one by --set label=NAME (or its number, from 0), or "
                "give each a value by --set values=0,1,…"
            )
        return {"score": own[:, 0], **further}
