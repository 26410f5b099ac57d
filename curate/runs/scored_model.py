"""Reopening a gradient score: its accumulated sums, and the checkpoint it was computed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.score import Score
from curate.models.choice import ModelChoice
from curate.runs.warmup import last_checkpoint
from curate.store.commits import Parts
from curate.store.recipes import TableRecipe
from curate.store.workspace import Workspace
from curate.tables.inputs import method_again, model_choices
from curate.tables.state import score_state, usable

if TYPE_CHECKING:
    from curate.gradients.backward import Backward


@dataclass(frozen=True)
class ScoredModel:
    """method: the score's method with its settings. states: the results of its accumulating passes. model: at the last
    of its checkpoints, with the optimizer's moments if the score uses them. origin: the model that training started
    from. recipe: score.json.
    """

    method: Any
    states: Mapping[str, np.ndarray]
    model: Backward
    origin: ModelChoice
    recipe: TableRecipe
    warnings: Sequence[str] = field(default_factory=list)


def scored_model(ws: Workspace, name: str, *, allow_stale: bool = False, with_origin: bool = False) -> ScoredModel:
    """Open the score `name`. with_origin: also load the model before training, in the role `origin`.

    Raises CurateError for a stale score (unless allowed), one that does not score parameters, or one whose checkpoint
    or sums are gone.
    """
    from curate.gradients.backward import Backward
    from curate.models.language_model import LanguageModel

    ws.require("score", name)
    state = score_state(ws, name)
    warnings = usable([state], allow_stale)
    recipe = state.recipe
    method = method_again(recipe, str(state))
    if type(method).of_parameters is Score.of_parameters:
        raise CurateError(f"the score '{name}' ({recipe.method}) does not score parameters; use a `dualsft` score.")
    states: dict[str, np.ndarray] = {}
    for path in recipe.states:
        folder, _, part = path.rpartition("/")
        sums = Parts(ws.path / "prepared" / folder, ".safetensors").read(part)
        if sums is None:
            raise CurateError(f"the accumulated sums of the score '{name}' are gone; run `{state.command()} --fresh`.")
        states |= sums
    models = model_choices(recipe, ws.trusted)
    origin = models.get("origin") or models["base"]
    other_models = {"origin": LanguageModel(origin)} if with_origin else None
    moments = any(checkpoint.optimizer is not None for checkpoint in recipe.checkpoints)
    model = Backward([last_checkpoint(ws, recipe, models["base"])], moments=moments, others=other_models)
    return ScoredModel(method, states, model, origin, recipe, warnings)
