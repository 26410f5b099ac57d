"""Models by role: the `encoder` is a sentence encoder, every other role a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import ScoringModel
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder


def load_roles(
    models: Mapping[str, ModelChoice], checkpoints: Sequence[CheckpointChoice] = (), moments: bool = False
) -> dict[str, ScoringModel]:
    """Load the models, by role; one that has two roles is loaded once.

    checkpoints: of the base model, if gradients are needed. moments: also load their optimizers' state.
    """
    from curate.gradients.gradient_model import GradientModel

    kinds = {role: SentenceEncoder if role == "encoder" else LanguageModel for role in models}
    if checkpoints:
        del kinds["base"]
    loaded = {(kind, choice): kind(choice) for kind, choice in {(kinds[role], models[role]) for role in kinds}}
    by_role: dict[str, ScoringModel] = {role: loaded[kinds[role], models[role]] for role in kinds}
    if not checkpoints:
        return by_role
    language_models = {role: model for role, model in by_role.items() if isinstance(model, LanguageModel)}
    return {"base": GradientModel(checkpoints, moments, language_models), **by_role}
