"""A workspace as one offline HTML page: its figures, its best and worst samples, and a search over samples."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curate.pages.audit import pictures
from curate.pages.audit import reading as audit_reading
from curate.pages.comparison import plot
from curate.pages.comparison import reading as runs_reading
from curate.verbs.report import BINS, Chosen, Report, Shown, Spread

_HERE = Path(__file__).parent
_MOST_SOURCES = 12  # shown in a figure or a table; the others are aggregated
# The page embeds everything, and this policy makes the browser fetch nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(its: Report, title: str) -> str:
    """The whole report as one HTML file."""
    sections = {
        "Pool": _pool(its),
        "Scores": _scores(its),
        "Selections": _selections(its),
        "Best and worst": _ends(its),
        "Samples": _search(its),
        "Runs": _runs(its),
        "Audits": _audits(its),
        "Cost": _cost(its),
    }
    there = {name: body for name, body in sections.items() if body}
    links = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in there)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{text}</section>' for name, text in there.items())
    notes = "".join(f'<p class="aside">note: {html.escape(line)}</p>' for line in its.warnings)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>',
            f"<style>{(_HERE / 'report.css').read_text(encoding='utf-8')}</style></head><body>",
            '<a class="skip" href="#samples">to the samples</a>',
            f"<header><h1>{html.escape(title)}</h1><p class=aside>{_summary(its)}</p></header>",
            f'<nav aria-label="sections"><ul>{links}</ul></nav><main>{body}{notes}</main>',
            f'<script type="text/plain" id="samples-data">{_packed(its)}</script>',
            f"<script>{(_HERE / 'report.js').read_text(encoding='utf-8')}</script></body></html>",
        ]
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _summary(its: Report) -> str:
    s = its.status
    flops = sum(row["flops"] or 0.0 for row in its.spent)
    seconds = sum(row["seconds"] or 0.0 for row in its.spent)
    return (
        f"{s.rows:,} samples ({s.copies:,} with copies) of {len(s.sources):,} sources, {s.rejects:,} lines rejected; "
        f"{len(s.scores)} scores, {len(s.manifests)} manifests, {len(s.runs)} runs; "
        f"{flops:.3g} FLOPs and {seconds / 60:,.1f} minutes spent."
    )


# --- tables ----------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are HTML, headings plain text."""
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(c if c.startswith('<td') else f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """An HTML table of plain values, formatted as on the command line."""
    return _table(list(columns.values()), [[html.escape(_value(row.get(key))) for key in columns] for row in rows])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _bar(share: float, text: str, most: float = 1.0) -> str:
    return f'<span class="bar" style="width:{8 * share / most if most else 0:.2f}rem"></span>{text}'


# --- sections --------------------------------------------------------------------------------------------


def _pool(its: Report) -> str:
    s, whole = its.status, max(1, its.status.rows)
    most = max((row["rows"] / whole for row in s.sources), default=1.0)
    rows = [
        [
            html.escape(row["source"]),
            f"{row['rows']:,}",
            _bar(row["rows"] / whole, f"{row['rows'] / whole:.1%}", most),
            f"{row['copies']:,}",
            f"{row['chars']:,}",
        ]
        for row in s.sources[:40]
    ]
    more = f'<p class="aside">and {len(s.sources) - 40} more sources</p>' if len(s.sources) > 40 else ""
    parts = [_table(["source", "samples", "share", "with copies", "characters"], rows), more]
    if s.targets:
        columns = {"target": "target", "val": "val", "test": "test", "subtasks": "sub-tasks"}
        parts += ["<h3>Targets</h3>", _plain(s.targets, columns)]
    return "".join(parts)


def _scores(its: Report) -> str:
    if not its.spreads:
        return ""
    names = [spread.name for spread in its.spreads]
    figures = "".join(_ridges(spread) for spread in its.spreads)
    return (
        '<p class="aside">Where a score has a direction, higher is better. Each line is a source, all of one height; '
        "the outermost bars hold what lies beyond the middle 99 %. The line marks the median.</p>"
        f'<div class="grid">{figures}</div><h3>Rank correlation</h3>'
        '<p class="aside">Spearman\'s, over the samples that both have.</p>'
        f"{_heat(names, its.correlation)}"
    )


def _ridges(its: Spread) -> str:
    """Histograms of a score by source, one below the other, as SVG."""
    sources = [name for name, counts in its.counts.items() if counts.sum()]
    shown = sources[:_MOST_SOURCES]
    rows = [(name, its.counts[name], its.quantiles[name][2]) for name in shown]
    if rest := sources[_MOST_SOURCES:]:
        rows.append((f"{len(rest)} others", np.sum([its.counts[name] for name in rest], axis=0), float("nan")))
    left, width, step = 104, 320, 26
    height = step * len(rows) + 22
    drawn = []
    low, high = float(its.edges[0]), float(its.edges[-1])
    for i, (name, counts, median) in enumerate(rows):
        base, top = step * (i + 1), counts.max()
        points = [f"M{left} {base}"]
        for k, count in enumerate(counts):
            y = base - (step - 5) * float(count) / top
            points.append(f"L{left + width * k / BINS:.1f} {y:.1f}L{left + width * (k + 1) / BINS:.1f} {y:.1f}")
        points.append(f"L{left + width} {base}Z")
        label = html.escape(name if len(name) <= 15 else f"{name[:14]}…")
        drawn.append(
            f'<text x="{left - 6}" y="{base - 3}" text-anchor="end">{label}<title>{html.escape(name)}</title></text>'
        )
        drawn.append(f'<path d="{"".join(points)}"/><line x1="{left}" x2="{left + width}" y1="{base}" y2="{base}"/>')
        if median == median:
            x = left + width * min(1.0, max(0.0, (median - low) / (high - low)))
            drawn.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base - step + 5}" y2="{base}" style="stroke:var(--ink)"/>'
            )
    ends = f'<text x="{left}" y="{height - 6}">{low:.4g}</text>'
    ends += f'<text x="{left + width}" y="{height - 6}" text-anchor="end">{high:.4g}</text>'
    of = f" of {html.escape(its.target)}" if its.target else ""
    nulls = f"{its.nulls:,} without a value" if its.nulls else ""
    state = html.escape(its.state) if its.state != "complete" else ""
    told = "; ".join(part for part in (f"{html.escape(its.method)}{of}", nulls, state) if part)
    alt = html.escape(f"distribution of {its.name} by source")
    svg = f'<svg viewBox="0 0 {left + width + 8} {height}" role="img" aria-label="{alt}">{"".join(drawn)}{ends}</svg>'
    caption = f'{html.escape(its.name)} <span class="aside">{told}</span>'
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _heat(names: Sequence[str], values: np.ndarray) -> str:
    rows = []
    for name, line in zip(names, values, strict=True):
        cells = [html.escape(name)]
        for value in line:
            size, text = (abs(value), f"{value:.2f}") if value == value else (0.0, "–")
            kind = "heat minus" if value < 0 else "heat"
            cells.append(f'<td class="{kind}" style="--v:{size:.2f}">{text}</td>')
        rows.append(cells)
    return _table(["", *names], rows)


def _selections(its: Report) -> str:
    parts = []
    if its.selections:
        scores = list(dict.fromkeys(name for one in its.selections for name in one.percentile))
        head = ["selection", "made by", "samples", "effective size", "median length", "with a duplicate"]
        rows = [_selection(one, scores) for one in its.selections]
        parts += [
            '<p class="aside">Effective size: the effective sample size under the weights. Median length in '
            "characters, and the share of samples with a duplicate (equal up to digits and punctuation), each with the "
            "pool's in parentheses. For each score, the mean percentile in the pool of the selected samples: 50 is a "
            "random selection.</p>",
            _table([*head, *scores], rows),
            "<h3>Source mix</h3>",
            _mix(its.selections),
        ]
    if len(its.selections) > 1:
        names = [one.name for one in its.selections]
        parts += [
            "<h3>Overlap</h3>",
            '<p class="aside">Intersection over union of two selections (Jaccard).</p>',
            _heat(names, its.overlap),
        ]
    for name, domains in its.mixtures.items():
        columns = {"source": "domain", "weight": "weight", "rows": "draws", "tokens": "tokens"}
        columns |= {"available": "samples", "epochs": "epochs"}
        parts += [f"<h3>Mixture {html.escape(name)}</h3>", _plain(domains, columns)]
    return "".join(parts)


def _selection(one: Chosen, scores: Sequence[str]) -> list[str]:
    twins = f"{one.twins[0]:.1%} ({one.twins[1]:.1%})" if one.twins else "–"
    length = f"{one.length[0]:,.0f} ({one.length[1]:,.0f})"
    told = [html.escape(one.name), html.escape(one.made_by), f"{one.rows:,}", f"{one.effective:,.0f}", length, twins]
    return told + [f"{one.percentile[name]:.0f}" if name in one.percentile else "–" for name in scores]


def _mix(selections: Sequence[Chosen]) -> str:
    sources = list(selections[0].sources)[:_MOST_SOURCES]
    rows = []
    for source in sources:
        whole = selections[0].sources[source][1]
        cells = [html.escape(source), _bar(whole, f"{whole:.1%}")]
        rows.append(cells + [_bar(one.sources[source][0], f"{one.sources[source][0]:.1%}") for one in selections])
    return _table(["source", "pool", *(one.name for one in selections)], rows)


def _ends(its: Report) -> str:
    parts = []
    for name, best in its.best.items():
        both = "".join(
            f"<div><h3>{word} by {html.escape(name)}</h3><ol>{_listed(shown, name)}</ol></div>"
            for word, shown in (("Best", best), ("Worst", its.worst[name]))
        )
        parts.append(f'<div class="ends">{both}</div>')
    return "".join(parts)


def _listed(shown: Shown, score: str) -> str:
    items = []
    for id_, source, text, value in zip(shown.id, shown.source, shown.text, shown.scores[score], strict=True):
        head = f'<span class="tag">{html.escape(source)}</span> {value:.4g} <span class="numbers">{id_}</span>'
        items.append(f'<li>{head}<div class="said">{html.escape(text)}</div></li>')
    return "".join(items)


def _search(its: Report) -> str:
    n, rows = len(its.shown.id), its.status.rows
    if not n:
        return ""
    part = (
        f"All {rows:,} samples" if n == rows else f"{n:,} of {rows:,} samples (the best, the worst, and random others)"
    )
    return f"""<p class="aside">{part}, texts truncated. Searches for all words, or an id.</p>
<form id="search" role="search" hidden>
<label>words <input name="words" type="search" autocomplete="off"></label>
<label>source <select name="source"><option value="">any</option></select></label>
<label>in the selection <select name="chosen"><option value="">any or none</option></select></label>
<label>order <select name="order"><option value="">as in the pool</option></select></label>
</form>
<p id="says" role="status" aria-live="polite">One moment.</p>
<ul id="found"></ul>
<p><button id="back" type="button" disabled>back</button> <button id="on" type="button" disabled>on</button></p>"""


def _packed(its: Report) -> str:
    """The samples as gzipped JSON in base64: sources and selections as positions in lists of names."""
    shown = its.shown
    sources = list(dict.fromkeys(shown.source))
    place = {name: i for i, name in enumerate(sources)}
    values = [
        [None if value != value else float(f"{value:.5g}") for value in column.tolist()]
        for column in shown.scores.values()
    ]
    data = {
        "id": shown.id,
        "sources": sources,
        "source": [place[name] for name in shown.source],
        "text": shown.text,
        "scores": list(shown.scores),
        "values": values,
        "selections": [one.name for one in its.selections],
        "chosen": shown.chosen,
    }
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(plain, 6, mtime=0)).decode()


def _runs(its: Report) -> str:
    if not its.status.runs:
        return ""
    columns = {key: key for key in ("name", "model", "manifest", "weighting", "mask", "seed", "steps", "state")}
    parts = [_plain(its.status.runs[:60], {**columns, "name": "run"})]
    if len(its.status.runs) > 60:
        parts.append(f'<p class="aside">and {len(its.status.runs) - 60} more runs</p>')
    if its.runs and its.runs.measures:
        picture = base64.b64encode(plot(its.runs)).decode()
        parts += [f"<p>{html.escape(line)}</p>" for line in runs_reading(its.runs)]
        parts.append(f'<img class="plot" alt="quality against all FLOPs" src="data:image/png;base64,{picture}">')
    return "".join(parts)


def _audits(its: Report) -> str:
    parts = []
    for name, card in its.audits.items():
        parts.append(f"<h3>{html.escape(name)}</h3>")
        parts += [f"<p>{html.escape(line)}</p>" for line in audit_reading(card)]
        for what, picture in list(pictures(card).items())[:2]:
            code = base64.b64encode(picture).decode()
            parts.append(f'<img class="plot" alt="{html.escape(what)}" src="data:image/png;base64,{code}">')
    return "".join(parts)


def _cost(its: Report) -> str:
    if not its.spent:
        return ""
    keys = ("stage", "methods", "name", "phase", "runs", "samples", "tokens", "flops", "seconds")
    return _plain(its.spent, {key: key for key in keys})
