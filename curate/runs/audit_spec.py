"""The specification of a long-horizon audit: stages, competing selectors, and how they are measured.

audits/NAME/audit.json                 the recipe it was started with
            cells/PATH-t1.json         the results of one selector and seed at a stage; exists once complete
            summed.json                which cells the scorecard covers; exists once the audit has ended
            models/PATH-t1/            a model between two stages, while it is needed
            stages/t1/, work/PATH-t2/  workspaces with one stage's samples, in which its cells are computed
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import structs

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.metric import Metric
from curate.kinds.score import Score
from curate.kinds.selector import Selector
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.numerics.long_horizon.matrix import Window
from curate.numerics.long_horizon.scorecard import Scorecard, scorecard
from curate.store.encoding import read_json, read_table, write_json
from curate.store.recipes import AuditRecipe, read_recipe, write_recipe
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.inputs import load_target, model_recipe
from curate.training.settings import TrainSettings

BASE = "base"  # the model before the first stage


# A stage's own target; the val samples of later stages' targets (at the last stage: of all stages' targets); the
# samples trained on in earlier stages.
OWN, FUTURE, PAST = "own", "future", "past"
TARGETS = (OWN, FUTURE, PAST)


@dataclass(frozen=True)
class Stage:
    """One stage of the sequence. where: SQL over `samples` of the workspace, the stage's samples. target: what it is
    evaluated on."""

    name: str
    where: str
    target: str


@dataclass(frozen=True)
class Scoring:
    """A score of a stage's samples that a selector uses. target: OWN, FUTURE or PAST, for a score that uses a target.
    model: the current model at that stage, or the base model before the first."""

    score: Score
    target: str | None = None
    model: Literal["current", "base"] = "current"


@dataclass(frozen=True)
class Contender:
    """A selector as the audit runs it. by, vectors, target, history: as in `curate select`, in a workspace that has the
    stage's samples, these scores and the targets OWN, FUTURE and PAST. history: used from the second stage on."""

    name: str
    selector: Selector
    scores: tuple[Scoring, ...] = ()
    by: str | None = None
    vectors: str | None = None
    target: str | None = None
    history: str | None = None


@dataclass(frozen=True)
class Probe:
    """The short branch on the next stage, by which future adaptation is measured.

    The settings of `[probe]`.
    """

    steps: int = 20
    """Optimizer steps; 0: no branch."""
    every: int = 5
    """Steps between two evaluations on the next stage's val samples."""
    data: Literal["common", "own"] = "common"
    """Training data of the branch: common for the same random samples for all selectors, own for each one's choice."""
    limit: int = 0
    """Questions per evaluation; 0: all."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.every < 1 or self.limit < 0:
            raise CurateError(
                "a probe has steps and limit of 0 or more, and evaluates every so many steps, 1 or more; not "
                f"steps={self.steps}, every={self.every}, limit={self.limit}."
            )


@dataclass(frozen=True)
class Measures:
    """How the measures are defined where the paper leaves them open. The settings of `[measures]`."""

    alpha: float = 1.0
    """Weight of future adaptation in the long-horizon utility."""
    beta: float = 1.0
    """Weight of forgetting, which is subtracted."""
    gamma: float = 1.0
    """Weight of the out-of-domain performance."""
    window: Window = "own"
    """Forgetting is the drop from the best value since the stage itself (own), or since the start."""
    with_last: bool = False
    """Whether the final value counts towards that best, so that no drop is negative."""
    clip: bool = False
    """Whether a rise counts as 0 in forgetting."""
    normalizer: Literal["minmax", "none"] = "minmax"
    """Scaling of the tasks' scores in imbalance: from the worst selector to the best, or none."""
    ddof: int = 0
    """Degrees of freedom subtracted in imbalance (numpy's ddof)."""
    axis: Literal["tokens", "steps"] = "tokens"
    """The x axis of the area under a learning curve."""
    from_start: bool = True
    """Whether the curve begins before the branch's first step, or with the first evaluation after it."""
    threshold: float = 0.5
    """The early threshold: this share of the total gain of the first selector's branch, averaged over seeds."""
    clusters: str = "source"
    """SQL over `samples`: the skill of a sample in capability entropy."""
    log_base: float = 0.0
    """Base of the logarithm in capability entropy; 0: e."""
    normalize_entropy: bool = False
    """Divide capability entropy by the logarithm of the number of skills."""
    running: int = 10
    """Steps of the running mean in training stability."""
    gradients: int = 128
    """Number of selected samples whose gradients update concentration is computed from; 0: none."""
    projection: int = 32
    """Dimensions that each side of a layer's gradient is projected to for this; 0: no projection."""


@dataclass(frozen=True)
class Audit:
    """Everything that determines an audit, apart from the stored data.

    budget: one of {"frac": F}, {"top": N}, {"tokens": N}, for every stage. common: the selector of the probe's samples.
    elsewhere: out-of-domain targets. proxy: a target to use in place of FUTURE's samples. limit: questions per
    evaluation; 0: all.
    """

    model: ModelChoice
    stages: tuple[Stage, ...]
    contenders: tuple[Contender, ...]
    weighting: Weighting
    common: Selector
    metric: Metric
    settings: TrainSettings = field(default_factory=TrainSettings)
    budget: Mapping[str, float] = field(default_factory=lambda: {"frac": 0.25})
    seeds: int = 3
    elsewhere: tuple[str, ...] = ()
    proxy: str | None = None
    limit: int = 0
    probe: Probe = Probe()
    measures: Measures = Measures()

    @property
    def targets(self) -> list[str]:
        """All targets to evaluate on, those of the stages first."""
        return list(dict.fromkeys([*(stage.target for stage in self.stages), *self.elsewhere]))

    def paths(self) -> list[tuple[Contender, int]]:
        """Every pair of a selector and a seed."""
        return [(contender, seed) for seed in range(self.seeds) for contender in self.contenders]

    def recipe(self, stamps: Mapping[str, str]) -> AuditRecipe:
        """All settings that results depend on, without those that only affect how results are summarised; stamps:
        fingerprints of the data."""
        measured = {key: value for key, value in asdict(self.measures).items() if key in _MEASURED}
        return AuditRecipe(
            model=model_recipe(self.model),
            stages=[asdict(stage) for stage in self.stages],
            selectors={contender.name: _contender(contender) for contender in self.contenders},
            weighting=[self.weighting.name, self.weighting.settings()],
            training=asdict(self.settings),
            budget=dict(self.budget),
            metric=[self.metric.name, self.metric.shaping(), self.limit],
            out_of_domain=list(self.elsewhere),
            proxy=self.proxy,
            probe={**asdict(self.probe), "common": self.common.name},
            measures=measured,
            data=dict(stamps),
        )


_MEASURED = ("clusters", "gradients", "projection", "running")  # the measures' settings that a cell depends on


def _contender(contender: Contender) -> dict[str, Any]:
    scores = [[s.score.name, s.score.version, s.score.settings(), s.target, s.model] for s in contender.scores]
    inputs = {
        "by": contender.by,
        "vectors": contender.vectors,
        "target": contender.target,
        "history": contender.history,
    }
    return {"selector": [contender.selector.name, contender.selector.settings()], "scores": scores, **inputs}


@dataclass(frozen=True)
class Checked:
    """sizes: number of samples of each stage. stamps: fingerprints of each stage's samples and each target."""

    sizes: list[int]
    stamps: dict[str, str]

    def rows(self, budget: Mapping[str, float], stage: int) -> dict[str, float]:
        """The budget of a stage (from 1): a fraction is of all its samples, so it is the same for all selectors."""
        if "frac" in budget:
            return {"top": max(1, int(budget["frac"] * self.sizes[stage - 1] + 1e-9))}
        return dict(budget)


def check(ws: Workspace, audit: Audit) -> Checked:
    """Check that an audit can run, before anything is computed. Raises CurateError if it cannot."""
    _refuse_names(audit)
    _refuse_settings(audit)
    stamps = {f"the target '{name}'": _target_stamp(ws, name, audit) for name in audit.targets}
    if audit.proxy:
        stamps[f"the target '{audit.proxy}'"] = _target_stamp(ws, audit.proxy, audit)
    sizes, of_stages = _stages(ws, audit)
    return Checked(sizes, {**stamps, **of_stages})


def _refuse_names(audit: Audit) -> None:
    """Raises CurateError for duplicate or invalid names."""
    for kind, names in (("stages", [s.name for s in audit.stages]), ("selectors", [c.name for c in audit.contenders])):
        if twice := {name for name in names if names.count(name) > 1}:
            raise CurateError(f"two {kind} are called '{min(twice)}'; give each a name of its own.")
    for contender in audit.contenders:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", contender.name):
            raise CurateError(f"the selector '{contender.name}': names are of small letters, digits and underscores.")


_MOST_SEEDS = 1000  # each is a training per stage and selector


def _refuse_settings(audit: Audit) -> None:
    """Raises CurateError for a plan that is too small, or asks for something an audit does not have."""
    if len(audit.stages) < 2:
        raise CurateError("an audit measures what a stage does to later ones: give two stages or more.")
    if not audit.contenders or not 1 <= audit.seeds <= _MOST_SEEDS:
        raise CurateError(f"an audit needs at least one selector, and 1 to {_MOST_SEEDS:,} seeds, not {audit.seeds:,}.")
    (unit, amount), *extra = audit.budget.items()
    if extra or unit not in ("frac", "top", "tokens") or not amount > 0 or unit == "frac" and amount > 1:
        raise CurateError(f"a budget is one of frac (up to 1), top and tokens, above 0, not {dict(audit.budget)}.")
    if audit.weighting.uses_target or "column" in audit.weighting.needs:
        raise CurateError(
            f"the weighting '{audit.weighting.name}' needs a target or a column, which an audit does not have."
        )
    if shared := set(audit.elsewhere) & {stage.target for stage in audit.stages}:
        raise CurateError(f"'{min(shared)}' is a stage's target, so it is not out of domain; leave it out there.")


def _target_stamp(ws: Workspace, name: str, audit: Audit) -> str:
    """A target's fingerprint. Raises CurateError if it cannot be used in an audit."""
    if name in (*TARGETS, BASE):
        raise CurateError(f"a target called '{name}' would be taken for the audit's own; give it another name.")
    load_target(ws, name)
    table = read_table(ws.targets.intact(name), ["id", "split"])
    if "test" not in table["split"].to_pylist() and name in audit.targets:
        raise CurateError(f"the target '{name}' has no split test, on which models are evaluated; add it.")
    return fingerprint(table.to_pydict())


def _stages(ws: Workspace, audit: Audit) -> tuple[list[int], dict[str, str]]:
    ids: dict[str, str] = {}
    sizes, stamps = [], {}
    for stage in audit.stages:
        skill = f"({audit.measures.clusters}\n)::VARCHAR AS skill"
        samples = sql.fetch(ws, f"SELECT id, n_chars, {skill} FROM samples WHERE ({stage.where}\n) ORDER BY row")
        stage_ids = samples["id"].to_pylist()
        if not stage_ids:
            raise CurateError(f"the stage '{stage.name}' has no samples: none passes \"{stage.where}\".")
        shared: dict[str, int] = {}
        for sample_id in stage_ids:
            earlier = ids.setdefault(sample_id, stage.name)
            shared[earlier] = shared.get(earlier, 0) + (earlier != stage.name)
        for earlier, n in shared.items():
            if n:
                raise CurateError(
                    f"the stages '{earlier}' and '{stage.name}' share {n:,} samples, so the second would not train on "
                    "new data; make their filters exclude each other."
                )
        top = audit.budget.get("top", 0)
        tokens = float(np.sum(samples["n_chars"].to_numpy())) / 4
        if top > len(stage_ids) or audit.budget.get("tokens", 0) > tokens:
            available = f"{len(stage_ids):,} samples" if top else f"about {tokens:,.0f} tokens"
            raise CurateError(
                f"the stage '{stage.name}' has {available}, fewer than the budget of "
                f"{top or audit.budget['tokens']:,.0f}; use a smaller budget, or frac=."
            )
        sizes.append(len(stage_ids))
        stamps[f"the samples of the stage '{stage.name}'"] = fingerprint(stage_ids)
    return sizes, stamps


def begin(folder: Path, audit: Audit, checked: Checked) -> None:
    """Record the audit's recipe. Raises CurateError if an audit of that name has other settings or other data."""
    recipe, path = audit.recipe(checked.stamps), folder / "audit.json"
    if path.exists():
        old = read_recipe(path, AuditRecipe)
        _refuse_other_audit(folder.name, old, recipe)
        recipe = structs.replace(recipe, selectors={**old.selectors, **recipe.selectors})  # further ones may join
    write_recipe(path, recipe)


def _refuse_other_audit(name: str, old: AuditRecipe, new: AuditRecipe) -> None:
    """Raises CurateError if an audit differs in anything but its selectors, or in one of these."""
    for selector, definition in new.selectors.items():
        if old.selectors.get(selector, definition) != definition:
            _refuse_other(name, f"another selector '{selector}'")
    for key, stamp in new.data.items():
        if old.data.get(key, stamp) != stamp:
            _refuse_other(name, f"other data: {key} changed since")
    old_values, new_values = old.as_json(), new.as_json()
    for key, value in new_values.items():
        if old_values.get(key) != value and key != "selectors":
            _refuse_other(name, f"another {key.replace('_', ' ')}")


def sum_up(folder: Path, audit: Audit) -> None:
    """Record which of an audit's cells its scorecard covers."""
    summary = {
        "selectors": [contender.name for contender in audit.contenders],
        "stages": [[stage.name, stage.target] for stage in audit.stages],
        "elsewhere": list(audit.elsewhere),
        "seeds": audit.seeds,
        "measures": asdict(audit.measures),
        "ways": [[contender.name, seed] for contender, seed in audit.paths()],
    }
    write_json(folder / "summed.json", summary)


def card_of(ws: Workspace, name: str) -> Scorecard | None:
    """The scorecard of an audit; None if it has not ended."""
    folder = ws.path / "audits" / name
    if not (folder / "summed.json").exists():
        return None
    summary = read_json(folder / "summed.json")
    covered = {*map(tuple, summary["ways"]), (BASE, 0)}
    cells = [read_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    return scorecard(
        [cell for cell in cells if (cell["selector"], cell["seed"]) in covered],
        summary["selectors"],
        [(stage, target) for stage, target in summary["stages"]],
        summary["elsewhere"],
        summary["seeds"],
        Measures(**summary["measures"]),
    )


def _refuse_other(name: str, difference: str) -> None:
    raise CurateError(
        f"the audit '{name}' exists, with {difference}; choose another name, or --fresh to begin it anew."
    )
