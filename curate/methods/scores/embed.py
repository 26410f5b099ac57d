from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target, near_target
from curate.kinds.signals import Forward
from curate.kinds.vectors import Aggregate


@dataclass(frozen=True)
class Embed(Score):
    """Similarity to the target by a frozen sentence encoder: mean cosine with the target's examples.

    Formula, with e(x) the encoder's vector of a sample's text (all its contents, joined by newlines), normalised to
    length 1:

        mean:         score = mean over the target's examples v of  e(x) . e(v)  =  e(x) . (mean of e(v))
        max:          score = max over v of  e(x) . e(v)
        subtask_max:  score = max over sub-tasks of the mean over the sub-task's v of  e(x) . e(v)

    The target's mean is computed first, which leaves one product per sample, however many examples it has. The vectors
    are stored (float16, with their norm) and reused for every target, by `curate neighbors` and by the selectors on
    vectors; without a target only the vectors are computed. The encoder is `minilm` unless you name another in
    sentence-transformers' layout: --model encoder=MODEL; its own pooling and maximum length apply (minilm: 256 tokens;
    longer texts are truncated and counted).

    Cost: one forward pass of the encoder, 2N FLOPs per token (minilm: N = 11 M without the embeddings), once for all
    targets; a further target costs its own encoding and 2D FLOPs per sample. Bottleneck: the device's matrix products.

    Departures: vectors are stored in float16, so a cosine is off by up to about 1e-4.

    Reference: Reimers, Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084. As a selector of training data: ADAPT
    (ICLR 2026), Section 2.2. Aggregate `subtask_max`: LESS (ICML 2024, arXiv:2402.04333).

    >>> import numpy as np
    >>> from curate.kinds.vectors import Vectors
    >>> samples, target = Vectors.of(np.array([[3.0, 4.0], [1.0, 0.0]])), Vectors.of(np.array([[2.0, 0.0], [0.0, 1.0]]))
    >>> step = Embed().passes(Target("t", None, (), ""))[0]
    >>> step.map(samples, step.open(target))["score"].round(2).tolist()
    [0.7, 0.5]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("encoder",)
    usual_models: ClassVar = {"encoder": "minilm"}
    ranks_in_bfloat16: ClassVar = True

    aggregate: Aggregate = "mean"
    """Mean over the target's examples, their maximum, or the maximum over sub-tasks of the sub-task's mean."""
    keep_subtasks: bool = False
    """Keep every sub-task's mean in the column `subtasks`; not with the aggregate `max`."""

    def __post_init__(self) -> None:
        if self.keep_subtasks and self.aggregate == "max":
            raise CurateError("embed keeps sub-tasks' means, so keep_subtasks=true goes with mean or subtask_max.")

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def vectors(self) -> Pass:
        request = ForwardRequest(pooled=True, of=self._pooled, model="encoder", view="text")
        return Pass("encode", self._vector, requests={"text": request})

    def _pooled(self, batch: Forward) -> Columns:
        assert batch.pooled is not None
        return {"vector": batch.pooled.float().cpu().numpy()}

    def _vector(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return requests["text"]

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (near_target(self.aggregate, self.keep_subtasks),)
