from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Forward


@dataclass(frozen=True)
class Tokens(Score):
    """Tokens of the sample by a model's tokenizer and chat template, as a trainer of that model counts them.

    Formula: score = tokens of the whole sample as the chat template prints it, with what it adds (raw text: with the
    tokens that the tokenizer adds around it), at most the model's context. Column: `supervised`, those of them whose
    loss is trained on (the assistant's turns; all but the first of raw text). With it, `curate select --tokens N`
    counts these tokens instead of guessing, and `--token-count tokens_supervised` the supervised ones.

    Only the tokenizer and the configuration are read, no weights. Choose what the trainer will use: its context
    (--set model.context=2048), its template (--set model.chat_template=FILE), an end behind raw texts
    (--set model.add_eos_token=true). A trainer that packs or pads counts its padding besides.

    Cost: tokenises the pool once; no FLOPs. Bottleneck: the tokenizer, one core.

    Reference: the tokenizer itself; the supervised tokens are those of `nll`.

    >>> import numpy as np
    >>> batch = Forward(None, np.array([2]), None, np.array([5]))
    >>> {name: values.tolist() for name, values in Tokens()._counted(batch).items()}
    {'tokens': [5], 'supervised': [2]}
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    columns: ClassVar = {"supervised": "int32"}

    of: Literal["whole", "supervised"] = "whole"
    """Count the whole sample's tokens, as a step's cost goes by, or the supervised ones, as the loss's mean does."""

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("tokenise", self._score, requests={"whole": ForwardRequest(of=self._counted)}),)

    def _counted(self, batch: Forward) -> Columns:
        return {"tokens": batch.lengths, "supervised": batch.counts}

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        counted = requests["whole"]
        score = counted["tokens" if self.of == "whole" else "supervised"]
        return {"score": score, "supervised": counted["supervised"]}
