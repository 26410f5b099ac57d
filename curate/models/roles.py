"""Models by the part they play: an `encoder` gives a vector of a text, every other role is a language model."""

from __future__ import annotations

from collections.abc import Mapping

from curate.models.forward import Model
from curate.models.language_model import LanguageModel
from curate.models.load import ModelChoice
from curate.models.sentence_encoder import SentenceEncoder


def load_roles(models: Mapping[str, ModelChoice]) -> dict[str, Model]:
    """The models, by role; one that has two roles is loaded once."""
    kinds = {role: SentenceEncoder if role == "encoder" else LanguageModel for role in models}
    loaded = {(kind, choice): kind(choice) for kind, choice in {(kinds[role], models[role]) for role in models}}
    return {role: loaded[kinds[role], choice] for role, choice in models.items()}
