"""Models by role: the `encoder` is a sentence encoder, the `classifier` a sequence classifier, every other role a
language model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import ScoringModel
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder
from curate.models.sequence_classifier import SequenceClassifier
from curate.models.skeleton import kind_of, skeleton

_KINDS = {"encoder": SentenceEncoder, "classifier": SequenceClassifier}


def load_roles(
    models: Mapping[str, ModelChoice],
    checkpoints: Sequence[CheckpointChoice] = (),
    moments: bool = False,
    counted: Collection[str] = (),
) -> dict[str, ScoringModel]:
    """Load the models, by role; one that has two roles is loaded once.

    checkpoints: of the base model, if gradients are needed. moments: also load their optimizers' state. counted: roles
    of which only tokens are counted, so that no weights are read.
    """
    from curate.gradients.gradient_model import GradientModel

    if counted:
        rest = {role: choice for role, choice in models.items() if role not in counted}
        shapes: dict[str, ScoringModel] = {role: skeleton(models[role], kind_of(role)) for role in counted}
        return {**shapes, **load_roles(rest, checkpoints, moments)} if rest else shapes
    kinds = {role: _KINDS.get(role, LanguageModel) for role in models}
    if checkpoints:
        del kinds["base"]
    loaded = {(kind, choice): kind(choice) for kind, choice in {(kinds[role], models[role]) for role in kinds}}
    by_role: dict[str, ScoringModel] = {role: loaded[kinds[role], models[role]] for role in kinds}
    if not checkpoints:
        return by_role
    language_models = {role: model for role, model in by_role.items() if isinstance(model, LanguageModel)}
    return {"base": GradientModel(checkpoints, moments, language_models), **by_role}
