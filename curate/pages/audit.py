"""An audit as an HTML page: its findings in words, the two-level scorecard, and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from curate.numerics.long_horizon.myopia import Myopia
from curate.numerics.long_horizon.scorecard import LATER, NOW, WORDS, Scorecard, rows
from curate.numerics.statistics import adjusted, paired
from curate.pages._html import render
from curate.pages.diagnosis import pyplot, saved

# --- in words ------------------------------------------------------------------------------------------------


def reading(card: Scorecard) -> list[str]:
    """The findings in sentences: whether the selectors are myopic, how certain that is, and what distinguishes them."""
    myopia = card.myopia
    if myopia is None:
        return ["Fewer than two selectors have both a gain and a utility, so there are no ranks to compare."]
    order = [card.ranked[i] for i in np.argsort(myopia.now, kind="stable")]
    final_order = [card.ranked[i] for i in np.argsort(myopia.later, kind="stable")]
    interval = (
        f", {myopia.interval[0]:.2f} to {myopia.interval[1]:.2f} over seeds" if myopia.interval else ", by one seed"
    )
    lines = [
        f"Myopia gap {myopia.gap:.2f}{interval}; random rankings have {myopia.null:.2f} on average, {myopia.p:.1%} of "
        f"them one as large and {myopia.agree:.1%} one as small: {_verdict(myopia, len(order))}.",
        f"Now: {', '.join(order)}. In the end: {', '.join(final_order)}. {_movers(card)}",
    ]
    lines += [_turned(card)] if card.seeds > 1 else []
    gain = _mean_over_seeds(card.measures["gain"].T)
    if (gain[np.isfinite(gain)] < 0).all():
        lines.append("No selector gains on its own stages here, so the ranks now show which does the least harm.")
    base = card.selectors[0]
    for name in ("gain", "utility", "forgetting", "adaptation"):
        if sentence := _apart(card, name, base):
            lines.append(sentence)
    return lines


def _verdict(myopia: Myopia, selectors: int) -> str:
    """The conclusion from a gap, at the 5 % level."""
    if myopia.p < 0.05:
        return "ranks now and later differ more than by chance: here today's order misleads"
    if myopia.agree < 0.05:
        return "ranks now and later agree more than by chance: here, what wins now wins in the end"
    if myopia.least >= 0.05:
        share = f"even a full reversal is {myopia.least:.0%} of all rankings"
        return f"{selectors} selectors are too few to tell, as {share}; use more"
    return "consistent with chance: here, today's order says little about the end, either way"


def _turned(card: Scorecard) -> str:
    """Which selectors are myopic each by itself, at the 5 % level for all of them together."""
    myopia = card.myopia
    assert myopia is not None
    told = [f"{card.ranked[i]} (p = {p:.2g})" for i, p in enumerate(adjusted(myopia.myopic)) if p <= 0.05]
    over = f"over {card.seeds} seeds, adjusted for {len(card.ranked)} selectors"
    if not told:
        return f"None is ahead now and behind in the end beyond chance ({over})."
    return f"Myopic, ahead now and behind in the end, each beyond chance ({over}): {', '.join(told)}."


def _movers(card: Scorecard) -> str:
    """Which selectors change rank, the largest changes first."""
    myopia = card.myopia
    assert myopia is not None
    moved = [i for i in np.argsort(-myopia.each, kind="stable") if myopia.each[i] > 0]
    if not moved:
        return "None moves."
    moves = [f"{card.ranked[i]} from {myopia.now[i]:g} to {myopia.later[i]:g}" for i in moved[:3]]
    return f"Moving most: {', '.join(moves)}."


def _apart(card: Scorecard, name: str, base: str) -> str:
    """Which selectors differ significantly from the first in one measure, over seeds; '' if that is unknown."""
    better = {**NOW, **LATER}[name]
    kinds: dict[str, list[str]] = {"better": [], "worse": []}
    first = _by_seed(card.measures[name][0])
    for k, selector in enumerate(card.selectors[1:], 1):
        difference = paired(_by_seed(card.measures[name][k]), first)
        interval = difference.interval() if difference else None
        if difference and interval and (interval[0] > 0 or interval[1] < 0):
            is_better = (difference.mean > 0) == (better == "higher")
            kinds["better" if is_better else "worse"].append(f"{selector} ({difference.mean:+.3g})")
    groups = [f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names]
    if not np.isfinite(card.measures[name]).any() or card.seeds < 2:
        return ""
    n = len(card.selectors) - 1
    return (f"{WORDS[name].capitalize()}, against {base} ({n} intervals of 95 %, each by itself): "
            f"{'; '.join(groups) or 'no significant difference over these seeds'}.")  # fmt: skip


def _by_seed(values: np.ndarray) -> dict[int, float]:
    return {s: float(v) for s, v in enumerate(values) if np.isfinite(v)}


# --- pictures ------------------------------------------------------------------------------------------------


def pictures(card: Scorecard) -> dict[str, bytes]:
    """PNG figures by title: rank reversal, learning on the next stage, out-of-domain performance against forgetting,
    update concentration against forgetting, and the tasks by stage."""
    images = {}
    if card.myopia:
        images["rank now against rank in the end"] = _reversal(card)
    if any(curve for curves in card.curves.values() for curve in curves):
        images["learning on the next stage"] = _learning(card)
    for x, y in (("out_of_domain", "forgetting"), ("concentration", "forgetting")):
        if np.isfinite(card.measures[x]).any() and np.isfinite(card.measures[y]).any():
            images[f"{x.replace('_', ' ')} and {y}"] = _scatter(card, x, y)
    images["tasks after every stage"] = _heat(card)
    return images


def _reversal(card: Scorecard) -> bytes:
    plt, myopia = pyplot(), card.myopia
    assert myopia is not None
    figure, axis = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    n = len(card.ranked)
    axis.plot([1, n], [1, n], color="#999", linewidth=1, linestyle="--", zorder=0)
    for k, name in enumerate(card.ranked):
        axis.scatter(myopia.now[k], myopia.later[k], s=46, marker=_marker(k), label=name)
    axis.set(xlabel="rank by immediate gain", ylabel="rank by long-horizon utility", xlim=(n + 0.5, 0.5),
             ylim=(n + 0.5, 0.5), title="1 is the best; off the line, ranks change")  # fmt: skip
    axis.set_xticks(range(1, n + 1))
    axis.set_yticks(range(1, n + 1))
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(plt, figure)


def _learning(card: Scorecard) -> bytes:
    plt, count = pyplot(), len(card.stages) - 1
    figure, axes = plt.subplots(1, count, figsize=(4.6 * count + 1.4, 3.8), squeeze=False, layout="constrained")
    for t, axis in enumerate(axes.flat):
        for k, name in enumerate(card.selectors):
            if curve := card.curves[name][t]:
                axis.plot(*curve, marker=_marker(k), markersize=5, label=name, alpha=0.85)
        target = card.stages[t + 1][1]
        axis.set(title=f"after {card.stages[t][0]}", xlabel="tokens of the branch", ylabel=f"{target} (val)")
        axis.grid(alpha=0.3)
    axes.flat[-1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(plt, figure)


def _scatter(card: Scorecard, x: str, y: str) -> bytes:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for k, name in enumerate(card.selectors):
        (a, b), marker = (card.measures[x][k], card.measures[y][k]), _marker(k)
        present = np.isfinite(a) & np.isfinite(b)
        if present.any():
            dots = axis.scatter(a[present], b[present], s=16, marker=marker, alpha=0.4)
            axis.scatter(
                a[present].mean(), b[present].mean(), s=70, marker=marker, label=name, color=dots.get_facecolor()[0][:3]
            )
    axis.set(xlabel=WORDS[x], ylabel=WORDS[y], title="small: seeds; large: their mean")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(plt, figure)


def _heat(card: Scorecard) -> bytes:
    """For every selector: the performance on each task after each stage, relative to before the first."""
    plt, n = pyplot(), len(card.selectors)
    change = np.array([_mean_over_seeds(card.matrices[k]) for k in range(n)])
    change = change[:, 1:] - change[:, :1]
    limit = float(np.nanmax(np.abs(change))) if np.isfinite(change).any() else 1.0
    across = min(n, 4)
    down = -(-n // across)
    figure, axes = plt.subplots(down, across, figsize=(3.1 * across + 0.8, 2.5 * down + 0.5), squeeze=False,
                                layout="constrained")  # fmt: skip
    image: Any = None
    for k, axis in enumerate(axes.flat):
        if k >= n:
            axis.axis("off")
            continue
        image = axis.imshow(change[k], cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(change[k]):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * limit
                axis.text(
                    j, i, f"{value:+.2g}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
                )
        axis.set_xticks(
            range(len(card.stages)), [target for _, target in card.stages], rotation=30, ha="right", fontsize=8
        )
        axis.set_yticks(range(len(card.stages)), [f"after {name}" for name, _ in card.stages], fontsize=8)
        axis.set_title(card.selectors[k], fontsize=10)
    figure.colorbar(image, ax=axes, label="change since the start")
    return saved(plt, figure)


def _mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """Means over the first axis, ignoring NaN; NaN where no seed has a value."""
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(0) / present.sum(0)


def _marker(k: int) -> str:
    return "os^Dv<>PXh"[k % 10]


# --- the page ------------------------------------------------------------------------------------------------


def page(card: Scorecard, title: str) -> str:
    """The whole audit as one HTML file, with its figures embedded."""
    better = {**NOW, **LATER}
    measured = [name for name in better if np.isfinite(card.measures[name]).any()]
    return render(
        "audit.html",
        title=title,
        reading=reading(card),
        levels={"Now": rows(card, "now"), "Later": rows(card, "later")},
        measures={name: {"words": WORDS[name], "better": better[name]} for name in measured},
        seeds=card.seeds,
        pictures=pictures(card),
        notes=card.missing,
    )
