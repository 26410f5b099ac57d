"""What an audit needs before it begins: its data is there and fits, and an audit of that name is the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import structs

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.runs.audit_pools import blurred, divided, stage_table, val_rows
from curate.runs.audit_spec import FUTURE, MOST_SEEDS, OWN, PROBE, TARGETS, Audit, Contender
from curate.runs.config import EARLIER, HOW
from curate.store.audit_recipe import BASE, AuditRecipe
from curate.store.encoding import read_table, write_json
from curate.store.recipes import read_recipe, write_recipe
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from curate.training.settings import TrainSettings


@dataclass(frozen=True)
class Checked:
    """sizes: number of samples of each stage. stamps: fingerprints of each stage's samples and each target. lengths:
    mean tokens of each stage's samples, estimated."""

    sizes: list[int]
    stamps: dict[str, str]
    lengths: list[float] = field(default_factory=list)

    def rows(self, budget: Mapping[str, float], stage: int, share: float = 1.0) -> dict[str, float]:
        """A share of the budget of a stage (from 1), which is the same for all selectors."""
        if "frac" in budget:
            whole = max(1, int(budget["frac"] * self.sizes[stage - 1] + 1e-9))
        else:
            ((unit, whole),) = budget.items()
            if unit == "tokens":
                return {"tokens": share * whole}
        return {"top": whole if share == 1 else max(1, round(share * whole))}

    def samples(self, budget: Mapping[str, float], stage: int) -> float:
        """How many samples the budget of a stage is; of a budget of tokens, estimated."""
        its = self.rows(budget, stage)
        return its["top"] if "top" in its else its["tokens"] / self.lengths[stage - 1]


def check(ws: Workspace, audit: Audit) -> Checked:
    """Check that an audit can run, before anything is computed. Raises CurateError if it cannot."""
    _refuse_names(audit)
    _refuse_settings(audit)
    for contender in audit.contenders:
        _refuse_contender(contender, audit.settings)
    stamps = {f"the target '{name}'": _target_stamp(ws, name, audit) for name in audit.targets}
    if audit.proxy:
        stamps[f"the target '{audit.proxy}'"] = _target_stamp(ws, audit.proxy, audit)
    if audit.divides:
        for stage in audit.stages[1:]:
            divided(val_rows(ws, [stage.target]), stage.target, val_rows(ws, [audit.proxy]) if audit.proxy else None)
    tables = _stages(ws, audit)
    for stage, table in zip(audit.stages, tables, strict=True):
        stamps[f"the samples of the stage '{stage.name}'"] = fingerprint(table["id"].to_pylist())
    lengths = [float(np.mean(table["n_chars"].to_numpy())) / 4 for table in tables]
    return Checked([table.num_rows for table in tables], stamps, lengths)


def _refuse_names(audit: Audit) -> None:
    """Raises CurateError for duplicate or invalid names."""
    for kind, names in (("stages", [s.name for s in audit.stages]), ("selectors", [c.name for c in audit.contenders])):
        if twice := {name for name in names if names.count(name) > 1}:
            raise CurateError(f"two {kind} are called '{min(twice)}'; give each a name of its own.")
    for contender in audit.contenders:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", contender.name) or contender.name == BASE:
            raise CurateError(
                f"the selector '{contender.name}': names are of small letters, digits and underscores, and '{BASE}' is "
                "the model before."
            )


def _refuse_settings(audit: Audit) -> None:
    """Raises CurateError for a plan that is too small, or asks for something an audit does not have."""
    if len(audit.stages) < 2:
        raise CurateError("an audit measures what a stage does to later ones: give two stages or more.")
    if not audit.contenders or not 1 <= audit.seeds <= MOST_SEEDS:
        raise CurateError(f"an audit needs at least one selector, and 1 to {MOST_SEEDS:,} seeds, not {audit.seeds:,}.")
    (unit, amount), *extra = audit.budget.items()
    if extra or unit not in ("frac", "top", "tokens") or not amount > 0 or unit == "frac" and amount > 1:
        raise CurateError(f"a budget is one of frac (up to 1), top and tokens, above 0, not {dict(audit.budget)}.")
    if audit.weighting.uses_target or "column" in audit.weighting.needs:
        raise CurateError(
            f"the weighting '{audit.weighting.name}' needs a target or a column, which an audit does not have for "
            "all its selectors; make it one of them, by [selector.NAME] with weighting."
        )
    if shared := set(audit.elsewhere) & {stage.target for stage in audit.stages}:
        raise CurateError(f"'{min(shared)}' is a stage's target, so it is not out of domain; leave it out there.")
    if audit.adapter and not audit.settings.lora_r:
        raise CurateError(
            f"adapter={audit.adapter} says what becomes of LoRA's matrices between stages, and without train.lora_r "
            "all parameters are trained; leave one of them out."
        )
    if not 0 <= audit.blur <= 0.5:
        raise CurateError(
            f"blur is the share of a stage's samples that its neighbours have, 0 to 0.5, not {audit.blur:g}."
        )


def _refuse_contender(contender: Contender, settings: TrainSettings) -> None:
    """Raises CurateError for a selector whose weighting or replay cannot be."""
    label, weighting = f"the selector '{contender.name}'", contender.weighting
    if not 0 <= contender.replay < 1:
        raise CurateError(f"{label}: replay is a share of the budget, 0 or more and below 1, not {contender.replay:g}.")
    if weighting is None:
        return
    if {"column", "domains"} & set(weighting.needs):
        raise CurateError(f"{label}: the weighting '{weighting.name}' needs a column or a mixture, which no stage has.")
    if weighting.uses_target and contender.weighting_target not in (OWN, FUTURE):
        raise CurateError(
            f"{label}: the weighting '{weighting.name}' needs a target: give target = '{OWN}' or '{FUTURE}'."
        )
    if not weighting.uses_target and contender.weighting_target:
        raise CurateError(f"{label}: the weighting '{weighting.name}' uses no target; leave it out.")
    if weighting.chooses and contender.replay:
        raise CurateError(f"{label}: '{weighting.name}' chooses among a stage's samples at every step, without replay.")
    if weighting.chooses and not settings.keep_weights:
        raise CurateError(
            f"{label}: what '{weighting.name}' chose is read from its weights; leave out keep_weights=false."
        )


def _target_stamp(ws: Workspace, name: str, audit: Audit) -> str:
    """A target's fingerprint. Raises CurateError if it cannot be used in an audit."""
    if name in (*TARGETS, PROBE, BASE):
        raise CurateError(f"a target called '{name}' would be taken for the audit's own; give it another name.")
    load_target(ws, name)
    table = read_table(ws.targets.intact(name), ["id", "split"])
    if "test" not in table["split"].to_pylist() and name in audit.targets:
        raise CurateError(f"the target '{name}' has no split test, on which models are evaluated; add it.")
    return fingerprint(table.to_pydict())


def _stages(ws: Workspace, audit: Audit) -> list[pa.Table]:
    """The samples of every stage, id and n_chars, in the order of the pool. Raises CurateError if they do not fit."""
    skill = f"({audit.measures.clusters}\n)::VARCHAR AS skill"
    tables = [stage_table(ws, stage, f"id, n_chars, {skill}") for stage in audit.stages]
    ids: dict[str, str] = {}
    for stage, table in zip(audit.stages, tables, strict=True):
        if not table.num_rows:
            raise CurateError(f"the stage '{stage.name}' has no samples: none passes \"{stage.where}\".")
        shared: dict[str, int] = {}
        for sample_id in table["id"].to_pylist():
            earlier = ids.setdefault(sample_id, stage.name)
            shared[earlier] = shared.get(earlier, 0) + (earlier != stage.name)
        for earlier, n in shared.items():
            if n:
                raise CurateError(
                    f"the stages '{earlier}' and '{stage.name}' share {n:,} samples, so the second would not train on "
                    "new data; make their filters exclude each other."
                )
    found = [blurred(audit, number, tables) for number in range(1, len(tables) + 1)]
    for stage, table in zip(audit.stages, found, strict=True):
        top, tokens = audit.budget.get("top", 0), float(np.sum(table["n_chars"].to_numpy())) / 4
        if top > table.num_rows or audit.budget.get("tokens", 0) > tokens:
            available = f"{table.num_rows:,} samples" if top else f"about {tokens:,.0f} tokens"
            raise CurateError(
                f"the stage '{stage.name}' has {available}, fewer than the budget of "
                f"{top or audit.budget['tokens']:,.0f}; use a smaller budget, or frac=."
            )
    return found


# --- an audit of that name ---------------------------------------------------------------------------------


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
    if old.adapter != new.adapter:
        if not old.adapter and new.training["lora_r"] and old.training.get("lora_r"):
            _refuse_other(
                name, "an adapter for each stage that all begin alike, as an earlier version of curate had it"
            )
        _refuse_other(name, f"adapter={old.adapter or 'none'}, not {new.adapter or 'none'}")
    for key in AuditRecipe.__struct_fields__:
        before, now = (_as_before(key, getattr(recipe, key)) for recipe in (old, new))
        if key not in ("selectors", "data", "adapter", "format") and before != now:
            _refuse_other(name, f"another {key.replace('_', ' ')}{_which(before, now)}")
    for key, stamp in new.data.items():
        if old.data.get(key, stamp) != stamp:
            _refuse_other(name, f"other data: {key} changed since")


def _as_before(key: str, value: Any) -> Any:
    """An entry of a recipe; what audits did before there was a setting, where an earlier version has none of it."""
    if key == "training":
        usual = {**asdict(TrainSettings()), **EARLIER}
        return {name: setting for name, setting in {**usual, **value}.items() if name not in HOW}
    if key == "probe":
        return {"rows": "same", **value}
    return value.as_json() if hasattr(value, "as_json") else value


def _which(before: Any, now: Any) -> str:
    """The first entry in which two tables differ, in words."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    its, wanted = (f"{v:g}" if isinstance(v, float) else v for v in (before.get(key), now.get(key)))
    return f" ({key}={its}, not {wanted})"


def _refuse_other(name: str, difference: str) -> None:
    raise CurateError(
        f"the audit '{name}' exists, with {difference}; choose another name, or --fresh to begin it anew."
    )


def sum_up(folder: Path, audit: Audit) -> None:
    """Record which of an audit's cells its scorecard covers."""
    summary = {
        "selectors": [contender.name for contender in audit.contenders],
        "stages": [[stage.name, stage.target] for stage in audit.stages],
        "elsewhere": list(audit.elsewhere),
        "seeds": audit.seeds,
        "measures": asdict(audit.measures),
        "ways": [[contender.name, seed] for contender, seed in audit.paths()],
        "notes": _notes(audit),
    }
    write_json(folder / "summed.json", summary)


def _notes(audit: Audit) -> Sequence[str]:
    """What a reader of the scorecard has to know."""
    named = {s.target for c in audit.contenders for s in c.scores}
    named |= {target for c in audit.contenders for target in (c.weighting_target, c.target)}
    sees = FUTURE in named and audit.proxy in (None, *(stage.target for stage in audit.stages[1:]))
    chooses = OWN in named and audit.probe.data == "own"  # for the branch, by the next stage's target
    if audit.probe.steps and not audit.divides and (sees or chooses):
        return [
            "probe.rows=same: the samples by which a selector sees the future are those that its adaptation is "
            "measured on"
        ]
    return []
