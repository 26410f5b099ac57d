"""A comparison as an HTML page: findings in words, tables, and a figure of quality against total FLOPs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from curate.numerics.statistics import Mean, pareto
from curate.pages._html import render
from curate.pages.diagnosis import pyplot, saved
from curate.runs.curves import mean_curve
from curate.verbs.compare import Arm, Compared

_FAR = 3  # times the shortest curve: from there on the axis of the curves is logarithmic


def page(found: Compared, title: str) -> str:
    """The whole comparison as one HTML file, with its figure embedded."""
    return render(
        "comparison.html",
        title=title,
        reading=reading(found),
        picture=plot(found),
        curves=plot_curves(found) if has_curves(found) else None,
        budget=found.budget,
        measures=found.measures,
        arms=found.arms,
        differences=_differences(found),
        notes=found.warnings,
    )


# --- in words --------------------------------------------------------------------------------------------


def reading(found: Compared) -> list[str]:
    """The findings, one sentence per measure, with intervals."""
    lines = []
    for key, measure in found.measures.items():
        arms = [arm for arm in found.arms if key in arm.quality and arm.null_of is None]
        if len(arms) < 2:
            continue
        sign = 1.0 if measure["better"] == "higher" else -1.0
        best = max(arms, key=lambda arm: sign * arm.quality[key].mean)
        domain = "in domain" if measure["in_domain"] else "out of domain"
        front = pareto([a.cost.total for a in arms], [a.quality[key].mean for a in arms], measure["better"])
        lines.append(
            f"{key} ({domain}, {measure['better']} is better): {best.name} reaches {best.shown(key)}"
            f"{_sureness(best.beyond_null.get(key), 'its own control')}. {_against(arms, key, sign, found.against)}"
            f"Nothing is both cheaper and better than {', '.join(arms[i].name for i in front)}."
        )
    return lines


def _against(arms: Sequence[Arm], key: str, sign: float, reference: str | None) -> str:
    """Which arms differ significantly, over seeds, from the one that all are compared with."""
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "not significantly different": []}
    for arm in arms:
        if interval := arm.against[key].interval() if key in arm.against else None:
            low, high = sorted(sign * bound for bound in interval)
            kind = "better" if low > 0 else "worse" if high < 0 else "not significantly different"
            kinds[kind].append(arm.name)
    groups = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    return f"Against {reference}, {'; '.join(groups)}. " if groups else ""


def _sureness(difference: Mean | None, reference: str | None) -> str:
    if difference is None:
        return ""
    interval = difference.interval()
    if interval is None:
        return f"; {difference.mean:+.3g} from {reference}, by one seed"
    caveat = "" if interval[0] > 0 or interval[1] < 0 else ", not significant"
    return f"; {difference.mean:+.3g} from {reference} (95 %: {interval[0]:+.3g} to {interval[1]:+.3g}{caveat})"


# --- differences -----------------------------------------------------------------------------------------


def _differences(compared: Compared) -> dict[str, list[tuple[Arm, list[dict[str, str]]]]]:
    """Paired differences by heading: from the arm that all are compared with, and from each arm's control; for every
    arm that has any, a cell for each measure."""
    tables = {}
    for heading, attribute in (
        (f"Differences from {compared.against}", "against"),
        ("Differences from its own control", "beyond_null"),
    ):
        arms = [arm for arm in compared.arms if getattr(arm, attribute)]
        if arms:
            tables[heading] = [
                (arm, [_difference(getattr(arm, attribute).get(key), m) for key, m in compared.measures.items()])
                for arm in arms
            ]
    return tables


def _difference(difference: Mean | None, measure: dict[str, Any]) -> dict[str, str]:
    """The text of a difference, and its kind: good or bad where the interval excludes 0."""
    if difference is None:
        return {"text": "", "kind": ""}
    interval = difference.interval()
    if interval is None:
        return {"text": f"{difference.mean:+.3g}", "kind": ""}
    sign = 1.0 if measure["better"] == "higher" else -1.0
    low, high = sorted(sign * bound for bound in interval)
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    return {"text": f"{difference.mean:+.3g} ({interval[0]:+.3g} to {interval[1]:+.3g})", "kind": kind}


# --- the figure ------------------------------------------------------------------------------------------


def plot(found: Compared) -> bytes:
    """Quality against total FLOPs, a panel per measure, as PNG: means with standard errors, and the Pareto front."""
    plt = pyplot()
    measures = list(found.measures.items()) or [("", {"better": "lower", "in_domain": True})]
    columns = min(len(measures), 2)
    rows = -(-len(measures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2 * columns, 5.0 * rows), squeeze=False, layout="constrained")
    short_names = _short([arm.name for arm in found.arms])
    styles = _look(found.arms, plt.get_cmap("tab10").colors)
    for panel, (key, measure) in zip(axes.flat, measures, strict=False):
        arms = [arm for arm in found.arms if key in arm.quality]
        for arm in arms:
            value, (color, marker) = arm.quality[key], styles[arm.name]
            options = {"fmt": marker, "color": color, "capsize": 3, "markersize": 8, "alpha": 0.85}
            panel.errorbar(arm.cost.total, value.mean, yerr=value.error, label=short_names[arm.name], **options)
        real = [arm for arm in arms if not arm.null_of]
        front = pareto([a.cost.total for a in real], [a.quality[key].mean for a in real], measure["better"])
        if points := [(real[i].cost.total, real[i].quality[key].mean) for i in front]:
            panel.step(*zip(*points, strict=True), where="post", color="#888", linewidth=1, zorder=0)
        domain = "in domain" if measure["in_domain"] else "out of domain"
        panel.set(title=f"{key}, {domain}", xlabel="all FLOPs", ylabel=f"{measure['better']} is better")
        if totals := [arm.cost.total for arm in arms if arm.cost.total]:
            panel.set_xscale("symlog", linthresh=min(totals))
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(measures) :]:
        panel.axis("off")
    shown = _in_order(axes.flat, [short_names[arm.name] for arm in found.arms])
    columns = min(6, max(1, len(shown)))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return saved(plt, figure)


def has_curves(found: Compared) -> bool:
    """Whether a run was evaluated more than once along the way."""
    return any(len(curve.flops) > 1 for line in found.lines for curve in line.curves.values())


def plot_curves(found: Compared) -> bytes:
    """Quality against the FLOPs spent until then, a panel per measure, as PNG: the mean over an arm's runs, with its
    standard error. A curve begins when its selection is paid for."""
    plt = pyplot()
    measures = list(found.measures.items())
    columns = min(len(measures), 2)
    rows = -(-len(measures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2 * columns, 5.0 * rows), squeeze=False, layout="constrained")
    short_names = _short([arm.name for arm in found.arms])
    styles = _look(found.arms, plt.get_cmap("tab10").colors)
    totals = [line.cost.total for line in found.lines if line.curves]
    most, shortest = max(totals), found.budget or min(totals)
    for panel, (key, measure) in zip(axes.flat, measures, strict=False):
        for arm in found.arms:
            curves = [line.curves[key] for line in found.lines if line.arm == arm.name and key in line.curves]
            if not curves:
                continue
            x, mean, error = mean_curve(curves)
            color, marker = styles[arm.name]
            dashes = "--" if arm.null_of else "-"
            panel.plot(x, mean, dashes, color=color, marker=marker, markersize=4, label=short_names[arm.name])
            panel.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        domain = "in domain" if measure["in_domain"] else "out of domain"
        panel.set(title=f"{key}, {domain}", xlabel="all FLOPs until then", ylabel=f"{measure['better']} is better")
        if most > _FAR * shortest:  # linear as far as all have come, so that one that paid far more leaves room
            panel.set_xscale("symlog", linthresh=shortest)
            panel.axvline(shortest, color="#888", linewidth=1, linestyle=":")
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(measures) :]:
        panel.axis("off")
    shown = _in_order(axes.flat, [short_names[arm.name] for arm in found.arms])
    figure.legend(
        shown.values(), shown.keys(), loc="outside lower center", ncols=min(6, max(1, len(shown))), frameon=False
    )
    return saved(plt, figure)


def _in_order(panels: Iterable[Any], names: Sequence[str]) -> dict[str, Any]:
    """Name -> what stands for it in a legend, of all panels: a panel has only the arms with its measure."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    return {name: handles[name] for name in names if name in handles}


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names without their common prefix."""
    shared = os.path.commonprefix(list(names)) if len(names) > 1 else ""
    cut = shared.rfind("_") + 1
    return {name: name[cut:] for name in names}


def _look(arms: Sequence[Arm], colors: Sequence[Any]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of every arm; a control has its arm's colour."""
    real = [arm.name for arm in arms if not arm.null_of]
    styles = {name: (colors[i % len(colors)], "os^Dv"[i // len(colors) % 5]) for i, name in enumerate(real)}
    return styles | {arm.name: (styles.get(arm.null_of, ("#444", ""))[0], "x") for arm in arms if arm.null_of}
