"""Several audits from one plan: its [grid] has lists of values, and every combination of them is an audit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError
from curate.runs.audit_toml import plan_of, read_content

if TYPE_CHECKING:
    from curate.runs.audit_spec import Audit

_MOST = 200  # audits, each of which is a training per selector, seed and stage


def read_plans(
    path: Path, model: str | None = None, seeds: int | None = None, trusted: Collection[str] = ()
) -> dict[str, Audit]:
    """The audits of a plan by what their names end with: '' for that of a plan without a [grid]. As `read_plan`."""
    content = read_content(path, model, seeds, trusted)
    try:
        return {suffix: plan_of(point) for suffix, point in expanded(content).items()}
    except CurateError as error:
        raise CurateError(f"{path}: {error}") from None


def expanded(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The plans of a plan with a [grid], by suffix. Raises CurateError for a grid of other than lists."""
    plain = {key: value for key, value in told.items() if key != "grid"}
    if "grid" not in told:
        return {"": plain}
    if not isinstance(told["grid"], dict) or not told["grid"]:
        raise CurateError('[grid] is a table of lists, as in budget.frac = [0.1, 0.25] or order = "all".')
    axes = [list(_axis(keys, values, plain)) for keys, values in _leaves(told["grid"])]
    points: dict[str, dict[str, Any]] = {}
    for chosen in product(*axes):
        suffix, plan = "_".join(word for word, _, _ in chosen), plain
        for _, keys, value in chosen:
            plan = _with(plan, keys, value)
        if suffix in points:
            raise CurateError(
                f"two audits of the [grid] would both be called '{suffix}'; leave out values that are equal."
            )
        points[suffix] = _fitting(plan)
        if len(points) > _MOST:
            raise CurateError(f"the [grid] has more than {_MOST} audits; take fewer values.")
    return points


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every list of a nested table, with the keys that lead to it."""
    for key, value in table.items():
        keys = (*above, *key.split("."))
        if isinstance(value, dict) and value:
            yield from _leaves(value, keys)
        elif keys == ("order",) or isinstance(value, list) and value:
            yield keys, value
        else:
            raise CurateError(f"[grid] has a list of values for {'.'.join(keys)}, not {value!r}.")


def _axis(keys: tuple[str, ...], values: Any, plan: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """(word of the name, keys, value) for every value of one list."""
    if keys == ("order",):
        for i, stages in enumerate(_orders(values, plan.get("stage", ())), 1):
            yield f"order_{i}", ("stage",), stages
        return
    for i, value in enumerate(values, 1):
        simple = isinstance(value, str | int | float)
        word = re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_") if simple else str(i)
        yield f"{keys[-1]}_{word}", keys, value


def _orders(told: Any, stages: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The stages in every order that is asked for: 'all', or lists of their names."""
    by_name = {stage["name"]: stage for stage in stages if isinstance(stage, dict) and "name" in stage}
    if told == "all":
        return [list(order) for order in permutations(stages)]
    if not isinstance(told, list) or not told:
        raise CurateError(f"[grid] order is 'all', or lists of the stages' names, not {told!r}.")
    for order in told:
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(by_name):
            raise CurateError(f"[grid] order: {order!r} is not every stage once, which are {', '.join(by_name)}.")
    return [[by_name[name] for name in order] for order in told]


def _with(plan: Mapping[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A plan with another value where the keys lead to; a budget is of one unit, so that it takes another's place."""
    first, *rest = keys
    if not rest:
        return {**plan, first: value}
    inner = plan.get(first, {})
    if not isinstance(inner, dict):
        raise CurateError(f"[grid] has {'.'.join(keys)}, and the plan's '{first}' is no table; write it as one.")
    return {**plan, first: _with({} if first == "budget" else inner, tuple(rest), value)}


def _fitting(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without `adapter`, where all parameters are trained: of a grid, that is for the audits with LoRA."""
    trains_all = not plan.get("train", {}).get("lora_r", 0)
    return {key: value for key, value in plan.items() if key != "adapter" or not trains_all}
