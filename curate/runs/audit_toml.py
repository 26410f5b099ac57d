"""Parsing an audit's plan in TOML into an `Audit`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError, nearest
from curate.kinds import registry
from curate.models.choice import TRUST, ModelChoice

if TYPE_CHECKING:
    from curate.kinds.weighting import Weighting
    from curate.runs.audit_spec import Audit, Contender


# Predefined selectors that a plan may name, written as in a plan. A score is METHOD, METHOD>TARGET (own, future or
# past) or METHOD@base, computed with the model before the first stage.
READY: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "loss": {"method": "top", "scores": ["nll"], "by": "nll_nll"},
    "gradnorm": {"method": "top", "scores": ["gradnorm"], "by": "gradnorm"},
    "gradsim": {"method": "top", "scores": ["gradsim"], "by": "gradsim"},
    "kcenter": {"method": "kcenter", "scores": ["embed_lm@base"], "vectors": "embed_lm"},
    # Closeness to 400 characters: the simplest heuristic, to be replaced by a user's own column.
    "quality": {"method": "top", "by": "-abs(ln(greatest(n_chars, 1) / 400.0))"},
    "uds": {
        "method": "uds",
        "scores": ["nuclear", "embed_logits", "embed_logits>past"],
        "by": "nuclear",
        "vectors": "embed_logits",
        "history": "past",
    },
    "lhas": {
        "method": "lhas",
        "scores": ["nuclear", "embed_lm>future", "embed_lm>past"],
        "by": "nuclear",
        "vectors": "embed_lm",
        "target": "future",
        "history": "past",
    },
    # The same with the utility-diversity score as u: near what was chosen before counts less, by the logits.
    "lhas_uds": {
        "method": "lhas",
        "scores": ["nuclear", "embed_logits", "embed_logits>future", "embed_logits>past"],
        "by": "nuclear",
        "vectors": "embed_logits",
        "target": "future",
        "history": "past",
        "utility": "uds",
    },
    "replay": {"method": "random", "replay": 0.25},
    "greats": {"weighting": "greats"},
    "filter_then_weight": {"weighting": "filter_then_weight"},
    "less_online": {"weighting": "less_online"},
    "uds_online": {"weighting": "uds_online"},
}
_KEYS = {
    *("model", "selectors", "seeds", "metric", "limit", "out_of_domain", "proxy", "weighting", "adapter", "blur"),
    *("budget", "train", "probe", "measures", "stage", "selector", "metric_settings"),
}
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("seeds", "limit"), (int,)),
    **dict.fromkeys(("metric", "proxy", "weighting", "adapter"), (str,)),
    "blur": (int, float),
    **dict.fromkeys(("selectors", "out_of_domain", "stage"), (list,)),
    **dict.fromkeys(("budget", "train", "probe", "measures", "selector", "metric_settings"), (dict,)),
    "model": (str, dict),
}
_SAID: dict[type, str] = {
    **{int: "a whole number", float: "a number", str: "a name"},
    **{list: "a list", dict: "a table"},
}
# A selector's keys; others are settings of its method, or of the weighting that chooses in its place.
_WORDS = ("method", "scores", "by", "vectors", "target", "history", "weighting", "replay")


def plan_of(told: Mapping[str, Any]) -> Audit:
    """An audit from a parsed TOML plan. Raises CurateError for unknown keys and wrong types or values."""
    from curate.runs.audit_spec import Audit, Measures, Probe, Stage
    from curate.training.settings import TrainSettings

    _known(told, _KEYS, "the plan")
    for key, value in told.items():
        if not isinstance(value, _TYPES.get(key, object)) or isinstance(value, bool):
            expected = " or ".join(_SAID[kind] for kind in _TYPES[key])
            raise CurateError(f"the plan's '{key}' is {expected}, not {value!r}.")
        if isinstance(value, list) and not all(isinstance(v, dict if key == "stage" else str) for v in value):
            raise CurateError(f"the plan's '{key}' is a list of {'tables' if key == 'stage' else 'names'}.")
    for key in ("model", "stage"):
        if key not in told:
            raise CurateError(f"the plan has no '{key}'; give the model, and two stages or more as [[stage]].")
    stages = []
    for table in told["stage"]:
        _known(table, {"name", "where", "target"}, "a [[stage]]")
        if missing := {"name", "where", "target"} - table.keys():
            raise CurateError(f"a [[stage]] lacks '{min(missing)}'; it has a name, where (SQL) and a target.")
        stages.append(Stage(table["name"], table["where"], table["target"]))
    model = told["model"] if isinstance(told["model"], dict) else {"name": told["model"]}
    definitions = told.get("selector", {})
    budget = told.get("budget", {"frac": 0.25})
    if (
        len(budget) != 1
        or not budget.keys() <= {"frac", "top", "tokens"}
        or not all(isinstance(v, int if unit == "top" else (int, float)) for unit, v in budget.items())
    ):
        raise CurateError("the plan's budget is one of frac, top and tokens, as in budget = { frac = 0.25 }.")
    extra = {key: told[key] for key in ("seeds", "limit", "proxy", "blur", "adapter") if key in told}
    if extra.get("adapter", "carried") not in ("carried", "fresh"):
        raise CurateError(f"the plan's adapter is carried or fresh, not '{extra['adapter']}'.")
    return Audit(
        registry.with_settings(ModelChoice, _texts(model), "the plan's model"),
        tuple(stages),
        tuple(
            contender_of(name, definitions.get(name, {}))
            for name in told.get("selectors", ["random", "loss", "uds", "lhas"])
        ),
        registry.make("weighting", told.get("weighting", "uniform")),
        registry.make("selector", "random"),
        registry.make("metric", told.get("metric", "loss"), _texts(told.get("metric_settings", {}))),
        registry.with_settings(TrainSettings, _texts(told.get("train", {})), "the plan's [train]"),
        budget,
        elsewhere=tuple(told.get("out_of_domain", ())),
        probe=registry.with_settings(Probe, _texts(told.get("probe", {})), "the plan's [probe]"),
        measures=registry.with_settings(Measures, _texts(told.get("measures", {})), "the plan's [measures]"),
        **extra,
    )


def contender_of(name: str, told: Mapping[str, Any]) -> Contender:
    """A selector of the plan: a predefined one with some keys or settings overridden, or one that the plan defines."""
    from curate.runs.audit_spec import PAST, TARGETS, Contender, Scoring

    if name not in READY and not {"method", "weighting"} & told.keys():
        raise CurateError(
            f"there is no ready selector '{name}': {nearest(name, READY)} Or define it, by [selector.{name}] with a "
            "method, or with a weighting that chooses within the training's steps."
        )
    definition = {**READY.get(name, {}), **told}
    weighting, target = _weighting_of(name, definition)
    if weighting and weighting.chooses:
        return Contender(name, registry.make("selector", "random"), weighting=weighting, weighting_target=target,
                         replay=_replay_of(name, definition))  # fmt: skip
    if definition.get("target") == PAST or re.search(rf"_{PAST}\b", definition.get("by") or ""):
        raise CurateError(
            f"the selector '{name}': the first stage has no past, so neither by nor target may depend on it; name it "
            "by history, for a selector that uses one."
        )
    scores = []
    for text in definition.get("scores", ()):
        method, _, score_target = text.partition(">")
        method, _, model = method.partition("@")
        if model not in ("", "base") or score_target not in ("", *TARGETS):
            raise CurateError(
                f"the score '{text}' of the selector '{name}': write METHOD, METHOD>TARGET with {', '.join(TARGETS)}, "
                "or METHOD@base."
            )
        scores.append(Scoring(registry.make("score", method), score_target or None, "base" if model else "current"))
    settings = _texts({key: value for key, value in definition.items() if key not in _WORDS})
    words = {key: definition.get(key) for key in ("by", "vectors", "target", "history")}
    method = registry.make("selector", definition.get("method", "random"), settings)
    replay = _replay_of(name, definition)
    return Contender(name, method, tuple(scores), **words, weighting=weighting, weighting_target=target, replay=replay)


def _weighting_of(name: str, definition: Mapping[str, Any]) -> tuple[Weighting | None, str | None]:
    """A selector's weighting, with its settings, and the target that it looks at (own, if it uses one and none is
    named). A weighting that chooses within the steps has those settings and that target of the selector itself too."""
    from curate.runs.audit_spec import OWN

    told = definition.get("weighting")
    if told is None:
        return None, None
    if not isinstance(told, (str, dict)) or isinstance(told, dict) and "name" not in told:
        raise CurateError(f"the selector '{name}': weighting is a name, or a table with one, not {told!r}.")
    its = dict(told) if isinstance(told, dict) else {"name": told}
    kind = registry.find("weighting", str(its.pop("name")))
    if kind.chooses:
        if its_own := sorted({"method", "scores", "by", "vectors", "history"} & definition.keys()):
            raise CurateError(
                f"the selector '{name}': the weighting '{kind.name}' chooses within the training's steps, from all of "
                f"a stage's samples, so it has no {its_own[0]}; leave that out."
            )
        its |= {key: value for key, value in definition.items() if key == "target" or key not in _WORDS}
    target = its.pop("target", None) or (OWN if kind.uses_target else None)
    return registry.make("weighting", kind.name, _texts(its)), target


def _replay_of(name: str, definition: Mapping[str, Any]) -> float:
    replay = definition.get("replay", 0.0)
    if isinstance(replay, bool) or not isinstance(replay, (int, float)):
        raise CurateError(f"the selector '{name}': replay is a share, as in replay = 0.25, not {replay!r}.")
    return float(replay)


def _known(table: Mapping[str, Any], keys: set[str], label: str) -> None:
    for key in table:
        if key not in keys:
            raise CurateError(f"{label} has no '{key}': {nearest(key, sorted(keys))}")


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text, as given to `--set`."""
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}


def _refuse_trust(model: Any, trusted: Collection[str]) -> None:
    """Raises CurateError for a plan's model with a setting that lets code run, unless it is trusted."""
    for name in TRUST:
        if isinstance(model, dict) and name in model and name not in trusted and model[name] not in (False, "false"):
            option = f"--{name.replace('_', '-')}"
            raise CurateError(
                f"model.{name} lets a model's files run code, which no plan may turn on; where you trust it, say "
                f"`curate {option} audit …`."
            )


def read_content(
    path: Path, model: str | None = None, seeds: int | None = None, trusted: Collection[str] = ()
) -> dict[str, Any]:
    """What a plan's file says. Its arguments and errors are those of `read_plan`."""
    if not path.is_file():
        raise CurateError(f"{path}: there is no such plan.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise CurateError(f"{path} is nested too deeply for a plan.") from None
    except ValueError as error:  # of its syntax, its encoding, or an integer of thousands of digits
        raise CurateError(f"{path} is no TOML: {str(error).splitlines()[0]}.") from None
    own_model = content.get("model", {})
    try:
        _refuse_trust(own_model, trusted)
    except CurateError as error:
        raise CurateError(f"{path}: {error}") from None
    overrides = {"model": {**(own_model if isinstance(own_model, dict) else {}), "name": model}} if model else {}
    return {**content, **overrides, **({} if seeds is None else {"seeds": seeds})}


def read_plan(path: Path, model: str | None = None, seeds: int | None = None, trusted: Collection[str] = ()) -> Audit:
    """Read an audit's plan from a TOML file; model, seeds: override the plan's; trusted: settings of models that
    let code run and that the plan may turn on. Raises CurateError naming the file, the key and the rule."""
    content = read_content(path, model, seeds, trusted)
    if "grid" in content:
        raise CurateError(
            f"{path} has a [grid], which is several audits; `curate audit` runs them, and "
            "curate.runs.audit_grid.read_plans reads them one by one."
        )
    try:
        return plan_of(content)
    except CurateError as error:
        raise CurateError(f"{path}: {error}") from None
