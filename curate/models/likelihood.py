"""How likely a model finds the answers of samples."""

from __future__ import annotations

from collections.abc import Sequence

from curate.kinds.registry import Columns, Leg, Pass
from curate.kinds.signals import Logits
from curate.models.forward import Usage, score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Sample


def answer_losses(model: LanguageModel, samples: Sequence[Sample]) -> tuple[Columns, Usage]:
    """Of each sample's last answer: `mean`, the mean loss of its tokens, float64 [N]; `tokens`, how many; `error`."""

    def loss(logits: Logits) -> object:
        return -logits.label_log_p

    step = Pass("answers", lambda legs, _: legs["answer"], legs={"answer": Leg(loss, view="last")})
    found, usage = score_samples({"base": model}, samples, {"loss": step})
    return found["loss"], usage
