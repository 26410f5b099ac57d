"""The recipe of an audit: what its results depend on, beside them as audits/NAME/audit.json."""

from __future__ import annotations

from typing import Any

from curate.store.recipes import FORMAT, ModelRecipe, Recipe

BASE = "base"  # the name of the model before the first stage, among the paths


class AuditRecipe(Recipe, frozen=True, kw_only=True):
    """audit.json: what an audit depends on. data: fingerprints of each stage's samples and of each target. adapter:
    carried if one adapter goes through all stages, fresh if each has its own; absent if all parameters are trained, and
    if an earlier version had one for each that began alike.
    blur: share of a stage's samples that its neighbours have."""

    format: int = FORMAT
    model: ModelRecipe
    stages: list[dict[str, Any]]
    selectors: dict[str, dict[str, Any]]
    weighting: list[Any]
    training: dict[str, Any]
    budget: dict[str, float]
    metric: list[Any]
    out_of_domain: list[str]
    proxy: str | None
    probe: dict[str, Any]
    measures: dict[str, Any]
    data: dict[str, str] = {}
    adapter: str = ""
    blur: float = 0.0
