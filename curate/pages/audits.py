"""Several audits in one table, with figures over them: budgets, orders of stages, LoRA and all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curate.numerics.long_horizon.scorecard import LATER, NOW, WORDS, Scorecard
from curate.numerics.statistics import Mean
from curate.pages._html import render
from curate.pages.diagnosis import pyplot, saved
from curate.store.audit_recipe import AuditRecipe
from curate.tables.audit_cards import conditions

Found = Sequence[tuple[str, AuditRecipe, Scorecard]]
MEASURES = (
    *("gain", "score", "utility", "adaptation", "forgetting", "transfer", "worst", "out_of_domain"),
    *("entropy", "concentration"),
)


def rows(found: Found) -> list[dict[str, str]]:
    """A row for every audit and selector: under what, and the mean of each measure over seeds, with its standard
    error; ranks now and in the end."""
    measures = [name for name in MEASURES if any(np.isfinite(card.measures[name]).any() for _, _, card in found)]
    table = []
    for name, recipe, card in found:
        for k, selector in enumerate(card.selectors):
            row = {"audit": name, **conditions(recipe), "selector": selector}
            row |= {measure: _told(card.measures[measure][k]) for measure in measures}
            table.append({**row, "ranks": _ranks(card, selector)})
    return table


def values(found: Found) -> list[dict[str, Any]]:
    """The same as numbers: the mean of every measure over seeds, None where it is not known."""
    table = []
    for name, recipe, card in found:
        for k, selector in enumerate(card.selectors):
            row: dict[str, Any] = {"audit": name, **conditions(recipe), "selector": selector, "seeds": card.seeds}
            for measure in MEASURES:
                mean = _mean(card.measures[measure][k])
                row[measure] = mean if np.isfinite(mean) else None
            gap = card.myopia
            table.append({**row, "myopia_gap": gap.gap if gap else None, "p": gap.p if gap else None})
    return table


def reading(found: Found) -> list[str]:
    """A sentence for each audit: its myopia gap, and how many rankings by lot have as large a one."""
    lines = []
    for name, recipe, card in found:
        under = conditions(recipe)
        what = f"{name} ({under['budget']}; {under['stages']}; {under['trained']})"
        its = card.myopia
        if its is None:
            lines.append(f"{what}: no ranks.")
            continue
        interval = f", {its.interval[0]:.2f} to {its.interval[1]:.2f} over seeds" if its.interval else ""
        first, last = (card.ranked[int(np.argmin(ranks))] for ranks in (its.now, its.later))
        lines.append(
            f"{what}: myopia gap {its.gap:.2f}{interval}; {its.p:.1%} of rankings by lot have one as large. "
            f"First now: {first}; in the end: {last}."
        )
    return lines


def _ranks(card: Scorecard, selector: str) -> str:
    if not card.myopia or selector not in card.ranked:
        return ""
    at = card.ranked.index(selector)
    return f"{card.myopia.now[at]:g} -> {card.myopia.later[at]:g}"


def _told(measured: np.ndarray) -> str:
    known = measured[np.isfinite(measured)]
    return str(Mean.of(known.tolist())) if len(known) else "-"


def _mean(measured: np.ndarray) -> float:
    known = measured[np.isfinite(measured)]
    return float(known.mean()) if len(known) else float("nan")


# --- pictures ------------------------------------------------------------------------------------------------


def pictures(found: Found) -> dict[str, bytes]:
    """PNG figures by title: every selector's ranks over the audits, and entropy against concentration."""
    images = {}
    if any(card.myopia for _, _, card in found):
        images["ranks now and in the end, by audit"] = _over_audits(found)
    known = [np.isfinite(card.measures[x]).any() for _, _, card in found for x in ("entropy", "concentration")]
    if all(known):
        images["capability entropy and update concentration"] = _scatter(found)
    return images


def _selectors(found: Found) -> list[str]:
    return list(dict.fromkeys(selector for _, _, card in found for selector in card.selectors))


def _over_audits(found: Found) -> bytes:
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(2 * max(3.4, 0.7 * len(found)) + 1.6, 4.4), layout="constrained",
                                sharey=True)  # fmt: skip
    for axis, which, title in zip(
        axes, ("now", "later"), ("by immediate gain", "by long-horizon utility"), strict=True
    ):
        for k, selector in enumerate(_selectors(found)):
            ranks = [_rank(card, selector, which) for _, _, card in found]
            axis.plot(range(len(found)), ranks, marker="os^Dv<>PXh"[k % 10], markersize=5, label=selector, alpha=0.85)
        axis.set_xticks(range(len(found)), [name for name, _, _ in found], rotation=40, ha="right", fontsize=8)
        axis.set(title=f"rank {title}, 1 the best")
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(plt, figure)


def _rank(card: Scorecard, selector: str, which: str) -> float:
    if not card.myopia or selector not in card.ranked:
        return float("nan")
    return float(getattr(card.myopia, which)[card.ranked.index(selector)])


def _scatter(found: Found) -> bytes:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.8, 4.2), layout="constrained")
    for k, selector in enumerate(_selectors(found)):
        points = [
            [_mean(card.measures[x][card.selectors.index(selector)]) for x in ("entropy", "concentration")]
            for _, _, card in found
            if selector in card.selectors
        ]
        x, y = np.array(points).T
        axis.scatter(x, y, s=36, marker="os^Dv<>PXh"[k % 10], label=selector, alpha=0.85)
    axis.set(xlabel=WORDS["entropy"], ylabel=WORDS["concentration"], title="a point for each audit, mean over seeds")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(plt, figure)


# --- the page ------------------------------------------------------------------------------------------------


def page(found: Found, title: str) -> str:
    """The table of several audits as one HTML file, with its figures embedded."""
    better, table = {**NOW, **LATER}, rows(found)
    return render(
        "audit.html",
        title=title,
        reading=reading(found),
        levels={"Audits": table},
        measures={name: {"words": WORDS[name], "better": better[name]} for name in MEASURES if name in table[0]},
        seeds=max(card.seeds for _, _, card in found),
        pictures=pictures(found),
        notes=[f"{name}: {note}" for name, _, card in found for note in card.missing],
    )
