"""show, head, diff: looking at samples, at what a workspace holds, and at two selections side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.chat_text import chat, meta_lines
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, workspace
from curate.results import plain
from curate.text_table import cell, one_line, table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@click.argument("name", metavar="ID|NAME")
@workspace()
@click.option("-n", "count", default=5, show_default=True, metavar="N", help="Rows of an object to show.")
@as_json_option
def show(ws: Workspace, name: str, count: int, as_json: bool) -> None:
    """Show one sample, or what an object of the workspace was made of, and its first rows.

    ID is a sample's id, or its first digits if no other begins so: the chat with its calls and tools, its scores, the
    manifests that contain it. NAME is a score, vectors, a manifest, a mask, a target, a run or a trial: its
    recipe in words, the command that makes it again, its state.
    """
    r = curate.show(ws, name, n=count)
    say(_plain(r), as_json, _sample(r) if hasattr(r, "turns") else _described(r))


@click.command()
@click.argument("name", required=False)
@workspace()
@click.option("--where", metavar="SQL", help="Condition over `samples` that they must satisfy.")
@click.option("-n", "count", default=5, show_default=True, metavar="N", help="Number of samples.")
@click.option("--cut", default=400, show_default=True, metavar="N", help="Characters shown of each text.")
@as_json_option
def head(ws: Workspace, name: str | None, where: str | None, count: int, cut: int, as_json: bool) -> None:
    """Show the first samples as chats: of the pool, or of NAME.

    NAME is a manifest (by rank), a target, or a score (highest first).
    """
    r = curate.head(ws, name, where=where, n=count)
    shown = [f"{_line(sample)}\n{chat(sample, cut)}" for sample in r.samples]
    of = one_line(r.of)
    first = f"{len(r.samples):,} of {r.total:,} samples of {of}:" if r.samples else f"{of} has no samples."
    say(_plain(r), as_json, "\n\n".join([first, *shown]))


@click.command()
@click.argument("manifest")
@click.argument("other")
@workspace()
@as_json_option
def diff(ws: Workspace, manifest: str, other: str, as_json: bool) -> None:
    """Compare two manifests: what they share, by source, and the means of every score in each."""
    r = curate.diff(ws, manifest, other)
    say(r, as_json, compared_manifests(r) + notes(r.warnings))


def compared_manifests(r: Any) -> str:
    """What `curate.diff` found, in words and tables."""
    overlap = (
        f"{r.both:,} in both, {r.only_a:,} only in {r.a}, {r.only_b:,} only in {r.b}; Jaccard index {r.jaccard:.3f}."
    )
    sizes = {"manifest": "manifest", "samples": "samples", "tokens": "tokens", "effective": "effective samples"}
    ends = {"a": r.a, "b": r.b}
    only = {"only_a": f"only {r.a}", "only_b": f"only {r.b}"}
    text = [
        overlap,
        "",
        table(r.manifests, sizes),
        "",
        table(r.by_source, {"source": "source", **ends, "both": "both", **only}),
    ]
    if r.scores:
        means = table(r.scores, {"score": "mean of", **ends, "difference": "difference", **only})
        text += ["", means]
    return "\n".join(text)


def _line(sample: dict[str, Any]) -> str:
    """What a sample is known by, in a line."""
    told = [f"{key} {sample[key]}" for key in ("subtask", "split") if sample.get(key)]
    told += [f"rank {sample['rank']:,}"] if "rank" in sample else []
    told += [f"{key} {cell(sample[key])}" for key in ("weight", "repeats") if sample.get(key, 1) != 1]
    told += [f"value {cell(sample['value'])}"] if sample.get("value") is not None else []
    return one_line(" · ".join([f"── {sample['id']}", sample["source"], f"{sample['n_chars']:,} characters", *told]))


def _sample(r: Any) -> str:
    row, mark = f"row {r.row:,}", f"marked {r.mark}" if r.mark else ""
    copies = f"{r.copies:,} copies" if r.copies > 1 else ""
    told = [f"{r.id}", f"source {r.source}", row, f"{r.n_chars:,} characters", copies, mark]
    parts = [one_line(", ".join(filter(None, told))) + ".", "", chat(vars(r))]
    if lines := meta_lines(r.meta):
        parts += ["", "meta:", *(f"  {line}" for line in lines)]
    if r.scores:
        rows = [{**one, "value": one["value"], "more": _more(one)} for one in r.scores]
        columns = {"score": "score", "value": "value", "more": ""}
        columns |= {"state": "state"} if any(one["state"] != "complete" for one in r.scores) else {}
        parts += ["", table(rows, columns)]
    if r.manifests:
        parts += [
            "",
            table(r.manifests, {"name": "in the manifest", "rank": "rank", "weight": "weight", "repeats": "repeats"}),
        ]
    return "\n".join(parts)


def _more(score: dict[str, Any]) -> str:
    told = {key: value for key, value in score.items() if key not in ("score", "value", "state")}
    return one_line(", ".join(f"{key} {cell(plain(value))}" for key, value in told.items()))[:70]


def _described(r: Any) -> str:
    state = "" if r.state == "complete" else f" {r.state[0].upper()}{r.state[1:].rstrip('.')}."
    lines = [f"{r.kind} {r.name}: {one_line(r.about)}{state}"]
    lines += [f"made by: {one_line(r.command)}"] if r.command else []
    if r.rows:
        rows = [{key: _short(value) for key, value in row.items()} for row in r.rows]
        lines += ["", table(rows, {key: key for key in rows[0] if any(row.get(key) is not None for row in rows)})]
    return "\n".join(lines) + notes(r.warnings)


def _short(value: Any) -> Any:
    value = plain(value)
    if value is None or isinstance(value, int | float):
        return value
    line = one_line(" ".join(str(value).split()))
    return line if len(line) <= 80 else f"{line[:79]}…"


def _plain(result: Any) -> dict[str, Any]:
    """The result with values that JSON can represent."""
    return plain(vars(result))
