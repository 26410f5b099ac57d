"""`curate compare`: runs side by side, the quality of each against its total cost.

An arm consists of the runs that differ only in their seed (of the training, or of the selection). Quality is the
evaluation of the last checkpoint; cost includes the run and its preparation (curate/tables/run_costs.py). Runs that
were evaluated along the way are also compared as curves, quality against the FLOPs spent until then (runs/curves.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds import registry
from curate.numerics.statistics import Mean, paired
from curate.results import Result, Rows
from curate.runs.arms import arm_key
from curate.runs.curves import Curve, curves_of
from curate.store.contents import require_none_missing
from curate.store.recipes import RunRecipe
from curate.store.run_record import Run, require_run
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.run_costs import Cost, costs_of, scores_behind, steps_of
from curate.tables.views import evaluations_of

EARLIER_VERSION = "earlier version"  # of a metric, whose values are no longer comparable with today's
_SEEDED = re.compile(r"_(s|seed)?\d+$")


@dataclass
class Line:
    """One run. quality: (target, split, metric, shots) -> value. effective: share of a step's samples that its weights
    leave effective, (sum w)^2 / (n sum w^2), mean over steps; None for a model that was not trained. curves, area,
    gain: of each measure, as in Compared."""

    run: str
    arm: str
    seed: int
    samples: int
    cost: Cost
    quality: dict[str, float] = field(default_factory=dict)
    effective: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    area: dict[str, float] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)


@dataclass
class Arm:
    """Runs that differ only in their seed. null_of: the arm of which it is the control (scores or weights shuffled).

    against: the paired differences, over shared seeds, from the reference arm; beyond_null: from its own control;
    area_against: of the areas, from the reference arm. effective: as of a line, the mean over runs. area, gain: of each
    measure, as in Compared.
    """

    name: str
    runs: list[str]
    samples: float
    cost: Cost
    quality: dict[str, Mean] = field(default_factory=dict)
    against: dict[str, Mean] = field(default_factory=dict)
    beyond_null: dict[str, Mean] = field(default_factory=dict)
    null_of: str | None = None
    effective: float | None = None
    area: dict[str, Mean] = field(default_factory=dict)
    gain: dict[str, Mean] = field(default_factory=dict)
    area_against: dict[str, Mean] = field(default_factory=dict)

    def shown(self, measure: str, of: Literal["quality", "area", "gain"] = "quality") -> str:
        """The mean of a measure in words, with how many of the arm's runs it is over, if some have no value of it; ''
        if none has."""
        means: dict[str, Mean] = getattr(self, of)
        if measure not in means:
            return ""
        mean, runs = means[measure], len(self.runs)
        said = f"{mean.mean:.3g}" if of == "gain" else str(mean)
        return said if mean.n == runs else f"{said} ({mean.n} of {runs} runs)"


@dataclass
class Compared(Result):
    """Arms in the order of their first run. measures: what was evaluated, whether lower or higher is better, and
    whether a run was optimised for the target (in-domain). budget: the FLOPs, with those of the selection, up to which
    areas are taken; None if there are none.

    The area of a measure is its mean value from 0 to `budget` FLOPs: the value of the model as it was until the
    selection is paid for, then linear between evaluations, then the last value. Its gain is by how much the last value
    is better than that of the model as it was, per FLOP of all. Both need that model among the runs, evaluated.
    """

    arms: list[Arm]
    lines: list[Line]
    measures: dict[str, dict[str, Any]]
    against: str | None
    warnings: list[str] = field(default_factory=list)
    budget: float | None = None

    def _facts(self) -> dict[str, Any]:
        budget = {} if self.budget is None else {"budget": self.budget}
        return {"against": self.against, "measures": list(self.measures), **budget}

    def _tables(self) -> dict[str, Rows]:
        return {"arms": [_row(arm) for arm in self.arms]}


def _row(arm: Arm) -> dict[str, Any]:
    """An arm as a row of the table in which a comparison is shown."""
    quality = {key: arm.shown(key) for key in arm.quality}
    return {"arm": arm.name, "seeds": len(arm.runs), "samples": arm.samples, **quality, "all FLOPs": arm.cost.total}


def compare(
    ws: AnyWorkspace, runs: Sequence[str] = (), *, against: str | None = None, budget: float | None = None
) -> Compared:
    """Compare runs of a workspace; if none are named, all of them.

    against: the reference arm of the differences, given by one of its runs; default: the first. budget: FLOPs up to
    which areas under curves are taken; default: what the cheapest of the trained runs took in all. Unfinished runs are
    left out, with a warning, and so are damaged ones that are not named. Raises CurateError for an unknown run, or a
    budget that is not above 0.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise CurateError(f"--flops {budget:g}: the FLOPs up to which areas are taken are a number above 0.")
    ws = workspace_of(ws, pinned=True)
    if not runs:
        require_none_missing(ws, "run")
    damaged = [] if runs else [name for name in ws.run_names() if not _is_whole(Run(ws, name))]
    runs_by_name = {name: require_run(ws, name) for name in runs or ws.run_names() if name not in damaged}
    recipes = {name: run.require_recipe() for name, run in runs_by_name.items()}
    unfinished = [name for name, run in runs_by_name.items() if recipes[name].weighting and not run.is_complete()]
    names = [name for name in runs_by_name if name not in unfinished]
    if not names:
        raise CurateError(f"{ws.path} has no finished runs to compare; `curate train` makes one.")
    recipes = {name: recipes[name] for name in names}
    keys = {name: arm_key(recipe) for name, recipe in recipes.items()}
    labels = _labels(keys)
    measures, quality, points = _quality(ws, names, recipes)
    costs, lost_costs = costs_of(ws, recipes, keys)
    shares = _effective_shares(ws, names)
    lines = [
        Line(
            name,
            labels[keys[name]],
            recipes[name].seed,
            recipes[name].samples,
            costs[name],
            quality[name],
            shares.get(name),
        )
        for name in names
    ]
    runs_by_name = {name: runs_by_name[name] for name in names}
    reached = _with_curves(lines, runs_by_name, recipes, measures, points, budget)
    arms = [_arm(label, [line for line in lines if line.arm == label]) for label in dict.fromkeys(labels.values())]
    result = Compared(arms, lines, measures, None, budget=reached)
    result.warnings += _of_measures(result, budget)
    if lost_costs:
        result.warnings.append(lost_costs.rstrip("."))
    result.warnings += _left_out(unfinished, damaged)
    if against is not None and against not in keys:
        raise CurateError(f"--against {against}: it is none of the runs that are compared.")
    result.against = labels[keys[against or names[0]]]
    _differences(result, recipes, keys, labels)
    if unevaluated := [name for name in names if not quality[name]]:
        result.warnings.append(f"not evaluated: {', '.join(unevaluated)}; run `curate evaluate RUN --target T`")
    return result


def _of_measures(result: Compared, budget: float | None) -> list[str]:
    """Warnings of areas that were asked for and are not there, and of values of earlier versions of metrics."""
    warnings = []
    if budget and not result.budget:
        base = "the model as it was is none of the runs, or is not evaluated alike: `curate evaluate base --model M`"
        warnings.append(f"there are no areas up to {budget:.3g} FLOPs, as {base}")
    if any(key.endswith(EARLIER_VERSION) for key in result.measures):
        again = "`curate evaluate RUN` makes today's"
        warnings.append(f"values of an {EARLIER_VERSION} of a metric are a measure of their own; {again}")
    return warnings


def _left_out(unfinished: Sequence[str], damaged: Sequence[str]) -> list[str]:
    warnings = []
    if unfinished:
        warnings.append(f"not finished, so left out: {', '.join(unfinished)}; the same `curate train` goes on")
    if damaged:
        warnings.append(f"damaged, so left out: {', '.join(damaged)}; `curate verify` says what can be done")
    return warnings


def _with_curves(
    lines: Sequence[Line],
    runs: Mapping[str, Run],
    recipes: Mapping[str, RunRecipe],
    measures: Mapping[str, Mapping[str, Any]],
    points: Sequence[tuple[str, int, str, float]],
    budget: float | None,
) -> float | None:
    """Fill in each trained line's curves, areas and gains. Returns the FLOPs up to which areas are taken."""
    shapes = {name: fingerprint(recipe.model.shape()) for name, recipe in recipes.items()}
    untrained: dict[str, dict[str, float]] = {}
    for line in lines:
        if recipes[line.run].weighting is None:
            untrained.setdefault(shapes[line.run], {}).update(line.quality)
    bases = {name: untrained[shape] for name, shape in shapes.items() if shape in untrained}
    trained = [line for line in lines if recipes[line.run].weighting is not None]
    costs = {line.run: line.cost for line in trained}
    found = curves_of(runs, costs, [point for point in points if point[0] in costs], bases)
    budget = budget or min((line.cost.total for line in trained if line.cost.total), default=None)
    for line in trained:
        line.curves = found.get(line.run, {})
        for key, curve in line.curves.items():
            if budget and (area := curve.area(budget)) is not None:
                line.area[key] = area
            if (gain := curve.gain(measures[key]["better"])) is not None:
                line.gain[key] = gain
    return budget if any(line.area for line in trained) else None


def _effective_shares(ws: Workspace, names: Sequence[str]) -> dict[str, float]:
    """Of each run that was trained, the effective share of a step's samples, mean over steps."""
    weights = "coalesce(weights, greatest(samples, effective_samples))"  # earlier versions did not count them
    share = f"SELECT run, avg(effective_samples / {weights}) AS share FROM metrics GROUP BY run"
    found = sql.rows(ws, share, list(names))
    return {row["run"]: row["share"] for row in found}


def _is_whole(run: Run) -> bool:
    """Whether what a comparison reads of a run can be read."""
    try:
        return bool(run.require_recipe() and run.checkpoints() is not None and run.evaluations.records() is not None)
    except CurateError:
        return False


# --- arms ------------------------------------------------------------------------------------------------


def _labels(keys: dict[str, str]) -> dict[str, str]:
    """A name for every arm: its first run's without the trailing seed; its full name if two arms would share it."""
    first: dict[str, str] = {}
    for name, key in keys.items():
        first.setdefault(key, name)
    labels = {key: _SEEDED.sub("", name) or name for key, name in first.items()}
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {key: first[key] if label in twice else label for key, label in labels.items()}


def _arm(name: str, lines: list[Line]) -> Arm:
    n = len(lines)
    counted = [line.cost.counted for line in lines if line.cost.counted is not None]
    means = {
        key: sum(getattr(line.cost, key) for line in lines) / n
        for key in ("prep", "prep_marginal", "train", "online", "paper", "seconds", "samples_seen", "padding")
    }
    cost = Cost(**means, counted=sum(counted) / n if len(counted) == n else None)
    quality, area, gain = (_means([getattr(line, of) for line in lines]) for of in ("quality", "area", "gain"))
    shares = [line.effective for line in lines if line.effective is not None]
    effective = sum(shares) / len(shares) if shares else None
    runs, samples = [line.run for line in lines], sum(line.samples for line in lines) / n
    return Arm(name, runs, samples, cost, quality, effective=effective, area=area, gain=gain)


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """Of each measure, the mean over those runs that have it."""
    measures = dict.fromkeys(key for of_run in values for key in of_run)
    return {key: Mean.of([of_run[key] for of_run in values if key in of_run]) for key in measures}


def _differences(
    result: Compared, recipes: Mapping[str, RunRecipe], keys: dict[str, str], labels: dict[str, str]
) -> None:
    """Fill in each arm's differences, over shared seeds, from the reference arm and from its control."""
    by_seed, areas = (_by_seed(result, recipes, of) for of in ("quality", "area"))
    result.warnings += _shared_seeds(result)
    _pair_with_controls(result, recipes, keys, labels)
    control_of = {arm.null_of: arm.name for arm in result.arms if arm.null_of}
    for arm in result.arms:
        for differences, of, reference in (
            (arm.against, by_seed, result.against),
            (arm.beyond_null, by_seed, control_of.get(arm.name)),
            (arm.area_against, areas, result.against),
        ):
            for key, values in of[arm.name].items():
                reference_values = of[reference].get(key) if reference and reference != arm.name else None
                if reference_values and (difference := paired(values, reference_values)):
                    differences[key] = difference


def _by_seed(result: Compared, recipes: Mapping[str, RunRecipe], of: str) -> dict[str, dict[str, dict[int, float]]]:
    """arm -> measure -> seed -> value of that kind (quality, area); the mean if runs share a seed."""
    by_arm: dict[str, dict[str, dict[int, float]]] = {arm.name: {} for arm in result.arms}
    seeds = {line.seed for line in result.lines}
    for line in result.lines:
        untrained = recipes[line.run].weighting is None  # so its value is the same for every seed
        same_seed = [
            getattr(other_line, of)
            for other_line in result.lines
            if (other_line.arm, other_line.seed) == (line.arm, line.seed)
        ]
        for key in getattr(line, of):
            values = [known_values[key] for known_values in same_seed if key in known_values]
            of_seeds = dict.fromkeys(seeds if untrained else {line.seed}, sum(values) / len(values))
            by_arm[line.arm].setdefault(key, {}).update(of_seeds)
    return by_arm


def _shared_seeds(result: Compared) -> list[str]:
    """A warning for each arm with several runs of the same seed."""
    warnings = []
    for arm in result.arms:
        seeds = [line.seed for line in result.lines if line.arm == arm.name]
        if len(set(seeds)) < len(seeds):
            warnings.append(
                f"runs of {arm.name} share a seed of training; differences take their mean: give each its own --seed"
            )
    return warnings


def _pair_with_controls(
    result: Compared, recipes: Mapping[str, RunRecipe], keys: dict[str, str], labels: dict[str, str]
) -> None:
    """Match each control arm with the arm that it is the control of: the one that differs in nothing else."""
    plain_keys = {labels[keys[name]]: arm_key(recipe, null=False) for name, recipe in recipes.items()}
    controls = {labels[keys[name]] for name, recipe in recipes.items() if _is_null(recipe)}
    for arm in result.arms:
        if arm.name in controls:
            arm.null_of = next(
                (a for a in plain_keys if a not in controls and plain_keys[a] == plain_keys[arm.name]), None
            )


def _is_null(recipe: RunRecipe) -> bool:
    shuffled = any((step.choice or {}).get("null") for step in steps_of(recipe))
    return bool(shuffled or recipe.settings.get("shuffle_weights"))


# --- quality ---------------------------------------------------------------------------------------------


def _quality(
    ws: Workspace, names: Sequence[str], recipes: Mapping[str, RunRecipe]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]], list[tuple[str, int, str, float]]]:
    """The measures; for every run the value of each at its last evaluated checkpoint; and all of them, as (run, step,
    measure, value)."""
    in_domain = {target for recipe in recipes.values() for target in _aims(recipe)}
    measures: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, float]] = {name: {} for name in names}
    points: list[tuple[str, int, str, float]] = []
    order = [(key, "ascending") for key in ("run", "step", "target", "metric")]
    for row in evaluations_of(ws, names).sort_by(order).to_pylist():
        if row["value"] is not None:
            shots = f", {row['shots']}-shot" if row["shots"] else ""
            split = "" if row["split"] == "test" else f" ({row['split']})"
            settings = f" [{row['settings']}]" if row["settings"] else ""
            earlier = f", {EARLIER_VERSION}" if _is_earlier(row["metric"], row["version"]) else ""
            key = f"{row['target']} {row['metric']}{shots}{split}{settings}{earlier}"
            measures[key] = {"better": row["better"], "in_domain": row["target"] in in_domain, "target": row["target"]}
            values[row["run"]][key] = row["value"]  # rows are sorted by step, so the last one wins
            points.append((row["run"], row["step"], key, row["value"]))
    shown = sorted(measures, key=lambda key: (not measures[key]["in_domain"], key))
    return {key: measures[key] for key in shown}, values, points


def _is_earlier(metric: str, version: int | None) -> bool:
    """Whether a value was made by an earlier version of its metric, so that it is another measure."""
    if metric not in registry.names("metric"):
        return False  # a task of the harness
    return (version or 1) < registry.find("metric", metric).version


def _aims(recipe: RunRecipe) -> set[str]:
    """The targets that a run was optimised for: by its weighting, its selection or its mixture."""
    steps = steps_of(recipe)
    targets = {score.target for _, score in scores_behind(recipe)} | {recipe.target}
    targets |= {(step.choice or {}).get("target") for step in steps}
    targets |= {spec.target for step in steps if step.proxy for spec in step.proxy.judges}
    return {target for target in targets if target}
