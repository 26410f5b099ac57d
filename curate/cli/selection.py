"""select, weigh, mask, export: choosing samples and parameters, and writing files for trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

import curate
from curate.cli.console import notes, say, show_json
from curate.cli.options import (
    as_json_option,
    dry_run_option,
    pairs,
    replace_option,
    set_option,
    workspace,
)
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import counted, one_line, table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option(
    "--by",
    metavar="SQL",
    help="Expression over `samples` to rank by, higher is better; selectors that do not rank by it only leave out "
    "samples without a value.",
)
@click.option("--where", metavar="SQL", help="Condition that candidates must satisfy.")
@click.option("--top", type=int, metavar="N", help="Budget in samples.")
@click.option("--frac", type=float, metavar="F", help="Budget as a fraction of the candidates; see --frac-of.")
@click.option(
    "--frac-of",
    type=click.Choice(["candidates", "valued"]),
    default="candidates",
    show_default=True,
    help="What --frac is a fraction of: all that pass --where, or those of them that have a value, too.",
)
@click.option("--tokens", type=float, metavar="N", help="Budget in tokens; see --token-count.")
@click.option(
    "--token-count",
    metavar="SQL",
    help="Number of tokens of a sample.  [default: with --tokens, the score `tokens`, or NAME_tokens of another score "
    "by a model, if every sample has it; else a guess, n_chars / 4.0]",
)
@click.option(
    "--per",
    metavar="GROUP",
    help="source or subtask: the budget applies to each group, in order of name; no sample is selected twice.",
)
@click.option(
    "--one-per",
    metavar="SQL",
    help="Of each group, as near_dup_cluster, only one sample is a candidate; those without a group all are.",
)
@click.option(
    "--keep",
    default="first",
    show_default=True,
    metavar="RULE",
    help="Which one of --one-per: first (in the pool), longest, shortest, best:SQL (the highest), source:A,B,….",
)
@click.option("--vectors", metavar="NAME", help="The vectors of selectors that use some, such as kcenter.")
@click.option("--target", metavar="NAME", help="The target of selectors that use one, such as round_robin.")
@click.option(
    "--history",
    metavar="NAME,…",
    help="Manifests, or targets, of earlier training data, for selectors that use it (uds, lhas).",
)
@click.option(
    "--selector",
    "selector_name",
    metavar="METHOD",
    help="See `curate methods selector`.  [default: top; random without --by]",
)
@set_option
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--null", is_flag=True, help="Control run: shuffle the values of --by at random before selecting.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@click.option(
    "--fresh", is_flag=True, help="Replace a manifest of that name that was made otherwise, or that others need."
)
@click.option("--replay", "replayed", metavar="FILE", help="Repeat the selection recorded in a manifest's JSON.")
@dry_run_option
@as_json_option
def select(
    ws: Workspace,
    name: str,
    by: str | None,
    where: str | None,
    top: int | None,
    frac: float | None,
    frac_of: Literal["candidates", "valued"],
    tokens: float | None,
    token_count: str | None,
    per: str | None,
    one_per: str | None,
    keep: str,
    vectors: str | None,
    target: str | None,
    history: str | None,
    selector_name: str | None,
    settings: tuple[str, ...],
    seed: int,
    null: bool,
    allow_stale: bool,
    fresh: bool,
    replayed: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Select samples under a budget, as the manifest NAME."""
    if replayed:
        other_options = (
            by,
            where,
            top,
            frac,
            tokens,
            token_count,
            per,
            one_per,
            vectors,
            target,
            history,
            selector_name,
            settings,
            seed,
            null,
            dry_run,
        )
        if any(other_options):
            raise CurateError("--replay repeats a selection as it was; it cannot be combined with other options.")
        r = curate.replay(ws, name, replayed, allow_stale=allow_stale, fresh=fresh)
    else:
        from curate.verbs.select import SelectionSpec

        method = selector_name or ("top" if by else "random")
        selector = registry.make("selector", method, pairs(settings, "--set"))
        spec = SelectionSpec(
            by,
            where,
            top,
            frac,
            tokens,
            per,
            token_count,
            seed,
            allow_stale,
            vectors,
            target,
            null,
            history,
            frac_of,
            one_per,
            keep,
        )
        r = curate.select(ws, name, selector, spec, dry_run=dry_run, fresh=fresh)
    from curate.tables.lookup import TOKENS

    columns = {
        "source": "source",
        "selected": "selected",
        "share": "share",
        "candidates": "candidates",
        "mean_value": "mean value",
    }
    opening = "Would select" if dry_run else f"Manifest {name}:"
    about = "about " if r.counted_by == TOKENS else ""
    by = "" if r.counted_by == TOKENS else f" (by {r.counted_by})"
    head = f"{opening} {r.rows:,} of {counted(r.candidates, 'candidate')}, {about}{r.tokens:,.0f} tokens{by}."
    no_value = f"\nnote: {r.without_value:,} candidates without a value are never selected" if r.without_value else ""
    say(r, as_json, f"{head}\n{table(r.by_source, columns)}{no_value}{notes(r.warnings)}")


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--mask", "mask_name", required=True, metavar="METHOD", help="See `curate methods mask`.")
@click.option("--frac", type=float, required=True, metavar="F", help="Budget as a fraction of the model's parameters.")
@click.option(
    "--model", "model_name", metavar="MODEL", help="The model, for methods that use its weights (magnitude_small, …)."
)
@click.option("--score", metavar="NAME", help="The score, for methods that rank parameters by one (dualsft).")
@set_option
@click.option("--allow-stale", is_flag=True, help="Use a score that is stale or incomplete.")
@replace_option
@as_json_option
def mask(
    ws: Workspace,
    name: str,
    mask_name: str,
    frac: float,
    model_name: str | None,
    score: str | None,
    settings: tuple[str, ...],
    allow_stale: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Choose which of a model's parameters to train, as the mask NAME (`curate train RUN --mask NAME`)."""
    method = registry.make("mask", mask_name, pairs(settings, "--set"))
    r = curate.mask(ws, name, method, frac, model=model_name, score=score, allow_stale=allow_stale, fresh=fresh)
    head = f"Mask {name}: {r.selected:,} of {counted(r.parameters, 'parameter')}."
    columns = {"kind": "kind", "parameters": "parameters", "selected": "selected", "share": "share"}
    end = [f"its warm-up ended with {r.checkpoint}, which training can start from (--model)"] if r.checkpoint else []
    say(r, as_json, f"{head}\n{table(r.by_kind, columns)}{notes([*end, *r.warnings])}")


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--by", required=True, metavar="SQL", help="Expression over `samples`: the column to weight by.")
@click.option(
    "--weighting",
    "weighting_name",
    default="adapt_static",
    show_default=True,
    metavar="METHOD",
    help="See `curate methods weighting`.",
)
@click.option("--manifest", metavar="NAME", help="Weight the samples of this manifest.  [default: the whole pool]")
@click.option(
    "--repeats",
    type=click.IntRange(min=0),
    metavar="N",
    help="Approximate the weights by repeating rows, N rows in all; 0: as many as there are samples.",
)
@set_option
@click.option("--seed", default=0, show_default=True, help="Random seed of the rounding to repeats.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@click.option(
    "--fresh", is_flag=True, help="Replace a manifest of that name that was made otherwise, or that others need."
)
@as_json_option
def weigh(
    ws: Workspace,
    name: str,
    by: str,
    weighting_name: str,
    manifest: str | None,
    repeats: int | None,
    settings: tuple[str, ...],
    seed: int,
    allow_stale: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Weight samples by a column, as the manifest NAME, for any trainer."""
    weighting = registry.make("weighting", weighting_name, pairs(settings, "--set"))
    r = curate.weigh(
        ws, name, weighting, by, manifest=manifest, repeats=repeats, seed=seed, allow_stale=allow_stale, fresh=fresh
    )
    spread = ", ".join(f"{q:.3f}" for q in r.quantiles)
    head = f"Manifest {name}: {counted(r.rows, 'sample')}, effective sample size {r.effective_rows:,.0f}."
    lines = [head, f"Quantiles (0, 5, 25, 50, 75, 95, 100 %) before division by the mean {r.mean:.3f}: {spread}."]
    lines += [f"Then {r.lowered}."] if r.lowered else []
    columns = {"source": "source", "rows": "samples", "share": "share", "weighted_share": "share by weight"}
    no_value = [f"{counted(r.without_value, 'sample')} have no value and were left out"] if r.without_value else []
    say(r, as_json, "\n".join([*lines, table(r.by_source, columns)]) + notes([*no_value, *r.warnings]))


@click.command()
@click.argument("manifest")
@workspace()
@click.option("--to", "fmt", required=True, metavar="FORMAT", help="See `curate methods export`.")
@click.option("-o", "--output", metavar="DIR", help="The folder to write, new or empty.")
@click.option(
    "--preview",
    "count",
    type=click.IntRange(min=0),
    metavar="N",
    help="Print N rows as the trainer will see them; writes files only with -o.",
)
@click.option("--skip-unfit", is_flag=True, help="Leave out, and report, samples that the format cannot represent.")
@set_option
@as_json_option
def export(
    ws: Workspace,
    manifest: str,
    fmt: str,
    output: str | None,
    count: int | None,
    skip_unfit: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the samples of a manifest as files for a trainer."""
    ws.require("manifest", manifest)
    exporter = registry.make("export", fmt, pairs(settings, "--set"))
    if count is not None:
        for row in curate.preview(ws, manifest, exporter, count, skip_unfit=skip_unfit):
            show_json(row, None if as_json else 1)
    if output is None:
        if count is None:
            raise CurateError("say where to write: -o DIR (a new or empty folder), or --preview N to look first.")
        return
    r = curate.export(ws, manifest, exporter, output, skip_unfit=skip_unfit)
    skipped = "".join(f"\nnote: left out: {one_line(reason)}" for reason in r.skipped[:5])
    lowered = f"\nnote: {r.lowered}" if r.lowered else ""
    total_note = f"\nnote: {counted(len(r.skipped), 'sample')} were left out in all" if r.skipped else ""
    assumed = f"\n{r.assumes}" if r.assumes else ""
    special = (
        f"\nnote: {counted(r.special, 'row')} with control tokens of models in the texts, which scores here read as "
        "text and a trainer whose tokenizer knows them does not; ingest with --strip-special, or export tokens"
        if r.special
        else ""
    )
    say(
        r,
        as_json,
        f"{counted(r.rows, 'row')} written for {fmt}:\n"
        + "\n".join(f"  {one_line(str(f))}" for f in r.files)
        + assumed
        + lowered
        + special
        + skipped
        + total_note,
    )
