"""status, ledger, verify, report, sql, drop, methods: inspecting a workspace."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import curate
from curate.cli.console import notes, say, show, show_json
from curate.cli.options import (
    as_json_option,
    settings_text,
    workspace,
)
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import counted, folded, one_line, table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@workspace()
@as_json_option
def status(ws: Workspace, as_json: bool) -> None:
    """Show the workspace's contents, and what is stale or incomplete."""
    s = curate.status(ws)
    lines = [
        f"{s.path}: {counted(s.rows, 'sample')} in {counted(s.shards, 'shard')} ({s.copies:,} with copies), "
        f"{counted(s.rejects, 'reject')}."
    ]
    tables = [
        (s.sources, {"source": "source", "rows": "samples", "copies": "with copies", "chars": "characters"}),
        (s.targets, {"target": "target", "val": "val", "test": "test", "subtasks": "sub-tasks"}),
        (
            s.scores,
            {
                "name": "score",
                "method": "method",
                "target": "target",
                "rows": "scored",
                "nulls": "null",
                "state": "state",
            },
        ),
        (
            s.vectors,
            {
                "name": "vectors",
                "method": "method",
                "model": "model",
                "targets": "targets",
                "rows": "encoded",
                "nulls": "null",
                "index": "index",
                "state": "state",
            },
        ),
        (s.manifests, {"name": "manifest", "made_by": "made by", "by": "by", "rows": "samples"}),
        (s.masks, {"name": "mask", "made_by": "made by", "model": "model", "frac": "share", "selected": "parameters"}),
        (
            s.runs,
            {
                **{key: key for key in ("name", "model", "manifest", "weighting", "mask", "seed", "steps", "state")},
                "name": "run",
            },
        ),
        (
            s.trials,
            {
                **{key: key for key in ("model", "target", "subsets", "trainings", "state")},
                "name": "trial",
            },
        ),
        (s.tokens, {"name": "tokens", "model": "model", "samples": "samples", "tokens": "tokens", "bytes": "bytes"}),
    ]
    lines += [table(rows, columns) for rows, columns in tables if rows]
    lines += [one_line(row["note"]) for row in s.runs if row["note"]]
    lines += map(one_line, s.damaged)
    lines += (
        [f"{counted(s.leftovers, 'file')} of killed commands: `curate verify` removes them."] if s.leftovers else []
    )
    incomplete = [row for row in [*s.scores, *s.vectors] if row["command"]]
    lines += [one_line(f"{row['name']} {row['state']}: run `{row['command']}`.") for row in incomplete]
    say(s, as_json, "\n\n".join(lines))


@click.command()
@workspace()
@as_json_option
def ledger(ws: Workspace, as_json: bool) -> None:
    """Show the cost of every pass: samples, FLOPs, seconds."""
    rows = curate.ledger(ws)
    keys = ("stage", "methods", "name", "phase", "runs", "samples", "flops", "seconds")
    columns = {**{key: key for key in keys}, "flops": "FLOPs"}
    if as_json:
        show_json(rows)
    else:
        show(table(rows, columns) if rows else "Nothing was spent yet.")


@click.command()
@workspace(writes=True)
@click.option("--repair", is_flag=True, help="Recompute damaged parts where possible.")
@click.option("--adopt", is_flag=True, help="Vouch again for whole parts of the pool that lost their commit record.")
@as_json_option
def verify(ws: Workspace, repair: bool, adopt: bool, as_json: bool) -> None:
    """Check every file against what was recorded of it: bytes, rows, ids in the pool's order, and that all is there.

    The exit status is 1 while something is damaged. --repair recomputes scores and their intermediate results, and
    writes lost records again; for data that came from outside, and for runs, the remedy is printed.
    """
    r = curate.verify(ws, repair=repair, adopt=adopt)
    remaining = [d for d in r.damaged if not d.repaired]
    head = f"{counted(r.parts, 'part')} checked ({r.bytes:,} bytes), {len(r.damaged):,} damaged"
    lines = [f"{head}{', ' + str(len(r.damaged) - len(remaining)) + ' repaired' if repair else ''}."]
    for d in r.damaged:
        lines.append(one_line(f"{d.kind} {d.name}: {d.part} {d.what}; {_REPAIRED if d.repaired else d.remedy}."))
    if r.leftovers:
        lines.append(
            f"note: {counted(len(r.leftovers), 'file')} of killed commands, removed, or to be removed by the next one."
        )
    say(r, as_json, "\n".join(lines))
    if remaining:
        raise SystemExit(1)


@click.command()
@workspace()
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="The HTML file to write, or a folder for report.html.",
)
@click.option("--score", "scores", multiple=True, metavar="NAME", help="Score to show.  [default: the first 12]")
@click.option(
    "--manifest", "manifests", multiple=True, metavar="NAME", help="Manifest to show.  [default: the first 12]"
)
@click.option("--samples", default=50_000, show_default=True, metavar="N", help="Number of searchable samples.")
@click.option("--cut", default=300, show_default=True, metavar="N", help="Characters shown per sample.")
@click.option("--title", metavar="TEXT", help="Title of the page.  [default: the workspace's folder]")
@as_json_option
def report(
    ws: Workspace,
    path: Path,
    scores: tuple[str, ...],
    manifests: tuple[str, ...],
    samples: int,
    cut: int,
    title: str | None,
    as_json: bool,
) -> None:
    """Write a report of the workspace as one HTML page: scores, selections, samples, runs, audits, and their cost.

    The page is self-contained and loads nothing from the network.
    """
    started = time.perf_counter()
    r = curate.report(ws, scores=scores, manifests=manifests, samples=samples, cut=cut)
    from curate.pages.report import page

    if path.is_dir():
        path = path / "report.html"
    if not path.parent.is_dir():
        raise CurateError(f"{path.parent} is no folder; name a file in an existing one.")
    path.write_text(page(r, title or ws.path.absolute().name), encoding="utf-8")
    summary = {"file": str(path), "bytes": path.stat().st_size, "samples": len(r.shown.id), "warnings": r.warnings}
    seconds = time.perf_counter() - started
    samples_shown = counted(len(r.shown.id), "sample")
    text = f"Written: {path}, {summary['bytes'] / 1e6:.1f} MB with {samples_shown}, in {seconds:.1f} s."
    say(summary, as_json, text + notes(r.warnings))


@click.command()
@click.argument("query")
@workspace()
@click.option(
    "--format",
    "fmt",
    metavar="FORMAT",
    help="table, csv, json, jsonl or parquet.  [default: by FILE's ending; else a table on a terminal, csv in a pipe]",
)
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of standard output.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give the query up after this time.  [default: never]")
@click.option(
    "--allow-files", multiple=True, metavar="PATH", help="A folder or file outside the workspace that SQL may read."
)
def sql(
    ws: Workspace,
    query: str,
    fmt: str | None,
    output: str | None,
    timeout: float | None,
    allow_files: tuple[str, ...],
) -> None:
    """Run one SELECT (DuckDB's SQL) over the workspace.

    A query reads, and of files those of the workspace alone: it writes none, loads no extension, changes no setting.

    \b
    pool, targets, rejects, ledger, runs   the workspace's own tables
    metrics                                of runs: a row per step
    trained                                of runs: a row per sample and step, with its loss and weight
    evaluations                            of runs: a row per evaluation
    samples                                the pool with every score: NAME, and NAME_COLUMN for its other columns
    NAME                                   the table of a score, vectors or a manifest

    Fields of the input records: meta->>'field'.
    """
    from curate.verbs.sql import write_sql

    terminal = sys.stdout.isatty()
    text = write_sql(ws, query, fmt, output, terminal=terminal, timeout=timeout, allow_files=allow_files)
    click.echo(text, nl=bool(text))  # visible already, or a machine's format


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--force", is_flag=True, help="Remove it also if something was made from it.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and what was made from it.")
@as_json_option
def drop(ws: Workspace, name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Remove a score, vectors, a manifest, a mask, a target, a run, a trial, or tokens (tokens/FINGERPRINT).

    What something was made from is not removed, unless you say --force; a manifest that runs were trained on is then
    kept in manifests/replaced while these are there.
    """
    from curate.tables.dependents import named

    r = curate.drop(ws, name, force=force, dry_run=dry_run)
    made = f" Made from it: {named(r.dependents)}." if r.dependents else ""
    kept = " A copy is kept in manifests/replaced." if r.kept else ""
    say(
        r,
        as_json,
        f"{'Would remove' if dry_run else 'Removed'} the {r.kind} {name.removeprefix('tokens/')}.{made}{kept}",
    )


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the list as Markdown.")
@as_json_option
def methods(kind: str | None, name: str | None, markdown: bool, as_json: bool) -> None:
    """List the methods; with KIND and NAME, describe one and its settings.

    KIND is score, selector, weighting, mixer, mask, pruner, metric, export or executor; a NAME alone will do.
    """
    if kind and not name and kind not in registry.KINDS:
        kinds = [row["kind"] for row in registry.list_methods() if row["name"] == kind]
        if kinds:
            show("\n\n".join(f"{k} {kind}\n\n{_method_help(k, kind)}" for k in kinds))
            return
    if kind and name:
        show(_method_help(kind, name))
        return
    listed = registry.list_methods(kind)
    if markdown:
        for method_kind in dict.fromkeys(row["kind"] for row in listed):
            rows = [row for row in listed if row["kind"] == method_kind]
            show(folded(f"{len(rows)} {method_kind}s", rows, {"name": method_kind, "summary": "what it does"}))
        return
    if as_json:
        show_json(listed)
    else:
        show(table(listed, {"kind": "kind", "name": "name", "summary": "summary"}))


_REPAIRED = "it was removed, and computed again"


def _method_help(kind: str, name: str) -> str:
    settings = settings_text(registry.settings_help(kind, name))
    return f"{registry.help_text(kind, name)}\n\nSettings (--set FIELD=VALUE):{settings or ' none'}"
