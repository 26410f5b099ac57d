"""The tables of docs/results/gpu.md, from the lines that `prove` wrote.

    python -m tests.gpu.page FILE        takes the lines of FILE into tests/bench/results/gpu.jsonl

That file has one line for each figure on a GPU and one in a rehearsal; a line with a value is only replaced by another
with a value. Lines of the smallest size are of no use to a reader.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.figures import FIGURES, PARTS, Figure

KEPT = Path(__file__).parents[1] / "bench/results/gpu.jsonl"
PAGE = Path(__file__).parents[2] / "docs/results/gpu.md"
PRICED = {"c.tokens": "`nll` and what shares its pass", "d.tokens": "features of `less`, a checkpoint"}
Lines = Sequence[Mapping[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none if there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def merged(kept: Lines, new: Lines) -> list[Mapping[str, Any]]:
    """A line for each figure and device, the newest with a value, in the order of the figures."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in [*kept, *new]:
        key = line["figure"], line["on"]
        if line["size"] != "smallest" and (line["value"] is not None or found.get(key, {}).get("value") is None):
            found[key] = line
    order = [(figure.name, on) for figure in FIGURES for on in ("cuda", "cpu")]
    return [found[key] for key in order if key in found]


def stamped(text: str, lines: Lines) -> str:
    """The page's text with command, date, commit and device of the newest lines, a GPU's if there are any."""
    made = [x for x in lines if x["value"] is not None]
    newest = max(made, key=lambda x: (x["on"] == "cuda", x["date"]))
    device = f"{newest['device'].rpartition(', ')[2].replace(' cores', ' CPU cores')}"
    device = newest["device"] if newest["on"] == "cuda" else device
    command = "python tests/gpu/prove.py" + ("" if newest["on"] == "cuda" else " --on cpu")
    told = {"command": f"`{command}`", "date": newest["date"], "commit": newest["commit"].rstrip("+"), "device": device}
    for name, value in told.items():
        text = re.sub(rf"^\| {name} \| .* \|$", f"| {name} | {value} |", text, flags=re.M)
    return text


def tables(lines: Lines) -> str:
    """The page's tables in Markdown."""
    found = {(line["figure"], line["on"]): line for line in lines}
    parts = [*_machines(lines)]
    for letter, heading in PARTS.items():
        parts += [f"## {heading}", "| what | wanted | on a GPU | rehearsed on a CPU |\n|---|---|---|---|"]
        rows = [
            f"| {f.what} | {f.goal()} | {_cell(f, found.get((f.name, 'cuda')))} | {_rehearsed(f, found)} |"
            for f in FIGURES
            if f.name[0] == letter
        ]
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join([*parts, "## The price", *_price(found)])


def _machines(lines: Lines) -> Iterator[str]:
    for on, where in (("cuda", "On a GPU"), ("cpu", "Rehearsed")):
        made = {(x["device"], x["date"], x["commit"], x["versions"]["torch"]) for x in lines if x["on"] == on}
        each = [f"{device}, {date}, commit {commit}, torch {torch}" for device, date, commit, torch in sorted(made)]
        yield f"{where}: {'; '.join(each) or 'untried'}."


def _cell(figure: Figure, line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "untried"
    if line["value"] is None:
        return f"untried: {line['why']}" if line["holds"] is None else f"**failed**: {line['why']}"
    missed = " **missed**" if line["holds"] is False else ""
    return f"{said(line['value'], figure.unit)}{missed}"


def _rehearsed(figure: Figure, found: Mapping[Any, Any]) -> str:
    line = found.get((figure.name, "cpu"))
    if line is not None and line["value"] is None and line["holds"] is None:
        return "cannot be"
    return _cell(figure, line)


def said(value: float, unit: str) -> str:
    """A value with its unit: 2.91x, 55.3 %, 1.3e-06, 176,000 tokens/s."""
    value = 100 * value if unit == "%" else value
    if value == int(value) and abs(value) < 1e6:
        shown = f"{int(value):,}"
    elif abs(value) < 1e-2:
        shown = f"{value:.1e}"
    else:
        shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown}{'' if unit in ('', 'x') else ' '}{unit}"


def _price(found: Mapping[Any, Any]) -> Iterator[str]:
    yield "GPU-hours of samples as long as those that were measured, by the tokens a second above, on one such GPU."
    rows = ["| score | tokens a sample | 10⁶ samples | 10⁸ samples |", "|---|---|---|---|"]
    for name, what in PRICED.items():
        line = found.get((name, "cuda"))
        if line is None or line["value"] is None:
            rows.append(f"| {what} | untried | untried | untried |")
            continue
        hours = line["tokens_per_sample"] / line["value"] / 3600
        cells = [what, f"{line['tokens_per_sample']:.0f}", said(1e6 * hours, "h"), said(1e8 * hours, "h")]
        rows.append(f"| {' | '.join(cells)} |")
    yield "\n".join(rows)


def main(path: Path) -> None:
    """Take new lines into the file that the page is made of."""
    if not path.exists():
        raise SystemExit(f"{path}: there are no lines; python tests/gpu/prove.py --to {path} makes some.")
    lines = merged(read(KEPT), read(path))
    KEPT.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    PAGE.write_text(stamped(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    on_gpu = sum(line["on"] == "cuda" and line["value"] is not None for line in lines)
    print(f"{on_gpu} of {len(FIGURES)} figures are of a GPU, {len(lines)} lines in all")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "build/gpu.jsonl"))
