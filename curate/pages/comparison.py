"""A comparison as an HTML page: findings in words, tables, and a figure of quality against total FLOPs."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from typing import Any

from curate.numerics.statistics import Mean, pareto
from curate.verbs.compare import Arm, Compared

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; font-weight: 600; }
td.good { color: #00642c; } td.bad { color: #a01818; }
img { max-width: 100%; } .aside { color: #666; }
"""


def page(found: Compared, title: str) -> str:
    """The whole comparison as one HTML file, with its figure embedded."""
    picture = base64.b64encode(plot(found)).decode()
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in reading(found)),
        f'<img alt="quality against all FLOPs" src="data:image/png;base64,{picture}">',
        "<h2>Quality</h2>",
        _quality(found),
        *_differences(found),
        "<h2>Cost</h2>",
        _costs(found),
        '<p class="aside">preparation: the full cost of everything the selection is based on; marginal: without what '
        "an arm above has paid for; online: anchors, second forward passes and losses of the base model; papers': by "
        "the papers' convention of 2N FLOPs a token forward, 6N in training, and 2,048 tokens a sample.</p>",
        *(f"<p>note: {html.escape(warning)}</p>" for warning in found.warnings),
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return "\n".join([head, *parts])


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
            f"{key} ({domain}, {measure['better']} is better): {best.name} reaches {best.quality[key]}"
            f"{_sureness(best.beyond_null.get(key), 'its own control')}. {_against(arms, key, sign, found.against)}"
            f"Nothing is both cheaper and better than {', '.join(arms[i].name for i in front)}."
        )
    return lines


def _against(arms: Sequence[Arm], key: str, sign: float, other: str | None) -> str:
    """Which arms differ significantly, over seeds, from the one that all are compared with."""
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "not significantly different": []}
    for arm in arms:
        if interval := arm.against[key].interval() if key in arm.against else None:
            low, high = sorted(sign * bound for bound in interval)
            kind = "better" if low > 0 else "worse" if high < 0 else "not significantly different"
            kinds[kind].append(arm.name)
    said = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    return f"Against {other}, {'; '.join(said)}. " if said else ""


def _sureness(difference: Mean | None, other: str | None) -> str:
    if difference is None:
        return ""
    interval = difference.interval()
    if interval is None:
        return f"; {difference.mean:+.3g} from {other}, by one seed"
    sure = "" if interval[0] > 0 or interval[1] < 0 else ", not significant"
    return f"; {difference.mean:+.3g} from {other} (95 %: {interval[0]:+.3g} to {interval[1]:+.3g}{sure})"


# --- tables ----------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"


def _name(arm: Arm) -> str:
    return _cell(f"{arm.name} (control of {arm.null_of})" if arm.null_of else arm.name)


def _quality(found: Compared) -> str:
    head = ["arm", "seeds", "samples"]
    head += [f"{key} ({'in' if m['in_domain'] else 'out of'} domain)" for key, m in found.measures.items()]
    rows = []
    for arm in found.arms:
        told = [str(arm.quality[key]) if key in arm.quality else "" for key in found.measures]
        rows.append([_name(arm), _cell(str(len(arm.runs))), _cell(f"{arm.samples:,.0f}"), *map(_cell, told)])
    return _table(head, rows)


def _differences(found: Compared) -> list[str]:
    """Tables of paired differences: from the arm that all are compared with, and from each arm's control."""
    parts = []
    for title, which in (
        (f"Differences from {found.against}", "against"),
        ("Differences from its own control", "beyond_null"),
    ):
        arms = [arm for arm in found.arms if getattr(arm, which)]
        if arms:
            rows = [
                [_name(arm), *(_difference(getattr(arm, which).get(k), m) for k, m in found.measures.items())]
                for arm in arms
            ]
            parts += [f"<h2>{html.escape(title)}</h2>", _table(["arm", *found.measures], rows)]
    return (
        [
            *parts,
            '<p class="aside">Over shared seeds, with Student\'s 95 % interval; coloured where that excludes 0.</p>',
        ]
        if parts
        else []
    )


def _difference(difference: Mean | None, measure: dict[str, Any]) -> str:
    if difference is None:
        return _cell("")
    interval = difference.interval()
    if interval is None:
        return _cell(f"{difference.mean:+.3g}")
    sign = 1.0 if measure["better"] == "higher" else -1.0
    low, high = sorted(sign * bound for bound in interval)
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    return _cell(f"{difference.mean:+.3g} ({interval[0]:+.3g} to {interval[1]:+.3g})", kind)


def _costs(found: Compared) -> str:
    head = "arm,preparation,marginal preparation,train,online,total,marginal total,papers',counted,seconds"
    head += ",samples seen,padding"
    rows = []
    for arm in found.arms:
        c = arm.cost
        flops = [c.prep, c.prep_marginal, c.train, c.online, c.total, c.marginal, c.paper]
        counted = f"{c.counted:.3g}" if c.counted is not None else ""
        told = [*(f"{f:.3g}" for f in flops), counted, f"{c.seconds:.1f}", f"{c.samples_seen:,.0f}", f"{c.padding:.0%}"]
        rows.append([_name(arm), *map(_cell, told)])
    return _table(head.split(","), rows)


# --- the figure ------------------------------------------------------------------------------------------


def plot(found: Compared) -> bytes:
    """Quality against total FLOPs, a panel per measure, as PNG: means with standard errors, and the Pareto front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures = list(found.measures.items()) or [("", {"better": "lower", "in_domain": True})]
    columns = min(len(measures), 2)
    rows = -(-len(measures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2 * columns, 5.0 * rows), squeeze=False, layout="constrained")
    short = _short([arm.name for arm in found.arms])
    look = _look(found.arms, plt.get_cmap("tab10").colors)  # type: ignore[attr-defined]
    for panel, (key, measure) in zip(axes.flat, measures, strict=False):
        arms = [arm for arm in found.arms if key in arm.quality]
        for arm in arms:
            value, (color, marker) = arm.quality[key], look[arm.name]
            how = {"fmt": marker, "color": color, "capsize": 3, "markersize": 8, "alpha": 0.85}
            panel.errorbar(arm.cost.total, value.mean, yerr=value.error, label=short[arm.name], **how)
        real = [arm for arm in arms if not arm.null_of]
        front = pareto([a.cost.total for a in real], [a.quality[key].mean for a in real], measure["better"])
        if points := [(real[i].cost.total, real[i].quality[key].mean) for i in front]:
            panel.step(*zip(*points, strict=True), where="post", color="#888", linewidth=1, zorder=0)
        domain = "in domain" if measure["in_domain"] else "out of domain"
        panel.set(title=f"{key}, {domain}", xlabel="all FLOPs", ylabel=f"{measure['better']} is better")
        if spent := [arm.cost.total for arm in arms if arm.cost.total]:
            panel.set_xscale("symlog", linthresh=min(spent))
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(measures) :]:
        panel.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, max(1, len(labels))), frameon=False)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    plt.close(figure)
    return made.getvalue()


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names without their common prefix."""
    shared = os.path.commonprefix(list(names)) if len(names) > 1 else ""
    cut = shared.rfind("_") + 1
    return {name: name[cut:] for name in names}


def _look(arms: Sequence[Arm], colors: Sequence[Any]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of every arm; a control has its arm's colour."""
    real = [arm.name for arm in arms if not arm.null_of]
    look = {name: (colors[i % len(colors)], "os^Dv"[i // len(colors) % 5]) for i, name in enumerate(real)}
    return look | {arm.name: (look.get(arm.null_of, ("#444", ""))[0], "x") for arm in arms if arm.null_of}
