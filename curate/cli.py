"""The command line: the one place where names become objects. Every command is a thin layer over a library verb."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

import curate
from curate import method as kinds
from curate.console import notes, run, say, table
from curate.errors import CurateError, nearest
from curate.models.load import ModelChoice
from curate.workspace import Workspace, open_workspace


class _Commands(click.Group):
    """Commands in the order of work, and the nearest one where a name is not known."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise CurateError(f"there is no command '{args[0]}': {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(curate.__version__, prog_name="curate")
def cli() -> None:
    """Which samples to train a language model on, with what weight, and what it cost to find out.

    \b
    curate ingest -w WS data/*.jsonl                    files in
    curate target -w WS math val.jsonl                  what "good" means
    curate score  -w WS bm25 --target math              a column of scores
    curate select -w WS best --by bm25_math --frac .05  a selection
    curate export -w WS best --to trl -o out            your trainer's files

    Every command works in a workspace: -w WS, or the variable CURATE_WORKSPACE.
    """


# --- what commands share ---------------------------------------------------------------------------------


def _workspace(create: bool = False) -> Callable[[Any], Any]:
    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Workspace:
        if not value:
            raise CurateError("say which workspace: -w FOLDER, or set CURATE_WORKSPACE.")
        return open_workspace(value, create=create)

    return click.option(
        *("-w", "--workspace", "ws"),
        envvar="CURATE_WORKSPACE",
        metavar="WS",
        callback=convert,
        help="The workspace's folder" + (", made where there is none." if create else "."),
    )


_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
_map = click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="OURS=THEIRS,…",
    help="Field names, as in prompt=question,completion=answer. OURS: " + "prompt, completion, system, messages, text, "
    "instruction, input, output, history, source, subtask, split.",
)
_format = click.option(
    "--format",
    "fmt",
    default="auto",
    metavar="FORMAT",
    help="auto (record by record), messages, sharegpt, prompt-completion, alpaca, question-answer or text.",
)
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A setting of the method; see `curate methods`.",
)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """The key=value pairs of a repeatable option whose values may also stand behind commas."""
    pairs = {}
    for text in texts:
        for item in text.split(",") if option == "--map" else [text]:
            key, equals, value = item.partition("=")
            if not (key and equals and (value or option == "--set")):
                raise CurateError(f"{option} {item}: write it as KEY=VALUE.")
            pairs[key.strip()] = value.strip()
    return pairs


# --- the pool --------------------------------------------------------------------------------------------


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@_workspace(create=True)
@click.option("--source", metavar="NAME", help="The domain of all rows. Default: each path's name without endings.")
@_format
@_map
@click.option("--shard-size", default=32, show_default=True, metavar="MIB", help="Text per shard of the pool, in MiB.")
@_dry_run
@_json
def ingest(
    ws: Workspace,
    paths: tuple[str, ...],
    source: str | None,
    fmt: str,
    maps: tuple[str, ...],
    shard_size: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add samples from files, folders, globs or hub ids.

    JSONL, JSON arrays, both packed with gzip or zstd, Parquet, Arrow, told by their bytes; `save_to_disk` folders; hub
    ids as owner/name[:split]. Files already in the pool are skipped; equal samples are kept once and counted in
    `copies`; lines that hold no sample go to the table `rejects`.
    """
    if shard_size <= 0:
        raise CurateError(f"--shard-size is a number of MiB above 0, not {shard_size}.")
    r = curate.ingest(
        ws,
        paths,
        source=source,
        fmt=fmt,
        mapping=_pairs(maps, "--map"),
        shard_bytes=shard_size << 20,
        dry_run=dry_run,
    )
    if dry_run:
        text = f"Would read {len(r.files_planned)} files: {', '.join(r.files_planned) or 'all are in the pool'}."
        say(r, as_json, text + notes(r.warnings))
        return
    seen = ", ".join(f"{name} {n:,}" for name, n in r.formats.items()) or "none"
    lines = [
        f"{r.read:,} rows read: {r.added:,} samples added, {r.copies:,} copies of known ones, {r.rejected:,} rejected.",
        f"Formats seen: {seen}" + (" (another reading: --format, --map)." if fmt == "auto" and not maps else "."),
        f"The pool has {r.pool_rows:,} samples in {r.shards} shards.",
    ]
    if r.files_skipped:
        lines.insert(
            0,
            f"{len(r.files_skipped)} files skipped, they are in the pool: {', '.join(r.files_skipped[:3])}…",
        )
    if r.sources:
        lines.append(
            table(
                [{"source": s, "added": n} for s, n in r.sources.items()],
                {"source": "source", "added": "added"},
            )
        )
    for reason, n in sorted(r.reasons.items(), key=lambda item: -item[1])[:10]:
        lines.append(f"  rejected {n:,}: {reason}")
    say(r, as_json, "\n".join(lines) + notes(r.warnings))


@cli.command()
@click.argument("name")
@click.argument("path")
@_workspace(create=True)
@click.option("--subtask", metavar="FIELD", help="The field that names each row's sub-task.")
@click.option(
    "--split",
    type=click.Choice(["val", "test"]),
    default="val",
    show_default=True,
    help="val chooses, test judges.",
)
@_format
@_map
@_json
def target(
    ws: Workspace,
    name: str,
    path: str,
    subtask: str | None,
    split: str,
    fmt: str,
    maps: tuple[str, ...],
    as_json: bool,
) -> None:
    """Store good examples as the target NAME.

    Replaces the given split of that target; scores that used an edited val split are stale from then on.
    """
    r = curate.target(ws, name, path, subtask=subtask, split=split, fmt=fmt, mapping=_pairs(maps, "--map"))
    rows = ", ".join(f"{n:,} {s}" for s, n in sorted(r.rows.items(), reverse=True))
    sub = f", {len(r.subtasks)} sub-tasks" if r.subtasks else ""
    text = f"Target {name}: {rows} samples{sub}; formats seen: {', '.join(r.formats)}."
    say(
        r,
        as_json,
        text + (f"\nnote: {r.rejected} rows were rejected; see the table rejects" if r.rejected else ""),
    )


@cli.command()
@click.argument("method_names", nargs=-1, required=True, metavar="METHOD…")
@_workspace()
@click.option("--target", "target_name", metavar="NAME", help="The target of methods that use one.")
@click.option(
    "--name",
    "given_names",
    multiple=True,
    metavar="N | METHOD=N",
    help="The score's name. Default: METHOD, or METHOD_TARGET.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[METHOD.]FIELD=VALUE",
    help="A setting; see `curate methods score`. Of the executor: local.timeout=60, ray.gpus=1. Of the model: "
    "model.dtype=float32, model.batch_tokens=8192, model.context=1024, …",
)
@click.option(
    "--model",
    "model_names",
    multiple=True,
    metavar="MODEL | ROLE=MODEL",
    help="The model of methods that use one: a folder, a .gguf file, a hub id, or tiny, smollm2-135m, minilm. Without "
    "a ROLE it is the base model; of embed, asked for alone, the encoder.",
)
@click.option(
    "--vectors",
    "vectors_names",
    multiple=True,
    metavar="N | METHOD=N",
    help="The name of the vectors of methods that store some (embed, embed_lm). Default: METHOD.",
)
@click.option("--executor", "executor_name", default="local", show_default=True, help="See `curate methods executor`.")
@click.option("--workers", type=int, metavar="N", help="Worker processes, or actors.  [default: the executor's]")
@click.option("--fresh", is_flag=True, help="Compute beside the table there is, and swap when complete.")
@_dry_run
@_json
def score(
    ws: Workspace,
    method_names: tuple[str, ...],
    target_name: str | None,
    given_names: tuple[str, ...],
    settings: tuple[str, ...],
    model_names: tuple[str, ...],
    vectors_names: tuple[str, ...],
    executor_name: str,
    workers: int | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score every sample by one or more METHODs.

    Only what is missing is computed, so a killed run is repeated by the same command; a stale score is computed
    anew beside the old one. Methods that use the same model are computed in one pass through it.
    """
    own = _by_owner([*method_names, executor_name, "model"], method_names, settings)
    methods = [kinds.make("score", name, own[name]) for name in method_names]
    given = {"workers": str(workers)} if workers is not None else {}
    executor = kinds.make("executor", executor_name, {**given, **own[executor_name]})
    names = dict(_score_name("--name", given, method_names) for given in given_names)
    vectors = dict(_score_name("--vectors", given, method_names) for given in vectors_names)
    results = curate.score(
        ws,
        *methods,
        target=target_name,
        names=names,
        vectors=vectors,
        fresh=fresh,
        executor=executor,
        models=_models(model_names, own["model"]),
        dry_run=dry_run,
    )
    say(results, as_json, "\n".join(_scored(r, dry_run) for r in results))


def _by_owner(owners: Sequence[str], method_names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings meant for each owner: OWNER.FIELD=VALUE, or FIELD=VALUE where there is one method only."""
    mine: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for key, value in _pairs(settings, "--set").items():
        owner, dot, field = key.rpartition(".")
        if not dot and len(method_names) > 1:
            raise CurateError(
                f"--set {key}={value}: with several methods say whose, as in --set {owners[0]}.{key}={value}."
            )
        if dot and owner not in owners:
            raise CurateError(f"--set {key}={value} is for '{owner}': {nearest(owner, owners)}")
        mine[owner or method_names[0]][field] = value
    return mine


def _models(given: Sequence[str], settings: dict[str, str]) -> dict[str, ModelChoice]:
    """Role -> model; a MODEL without a role is the first of each method's."""
    found = {}
    for text in given:
        role, equals, name = text.partition("=")
        role, name = (role, name) if equals and role.isidentifier() else ("", text)
        found[role] = kinds.with_settings(ModelChoice, {"name": name, **settings}, "the model")
    if settings and not found:
        raise CurateError(f"--set model.{next(iter(settings))}=…: say which model, by --model.")
    return found


def _score_name(option: str, given: str, method_names: Sequence[str]) -> tuple[str, str]:
    owner, equals, name = given.partition("=")
    if equals:
        return owner, name
    if len(method_names) > 1:
        raise CurateError(
            f"{option} {given}: with several methods say whose, as in {option} {method_names[0]}={given}."
        )
    return method_names[0], given


def _scored(r: Any, dry_run: bool) -> str:
    if dry_run:
        columns = {
            "pass": "pass",
            "shards": "shards",
            "units": "units",
            "rows": "rows",
            "text_chars": "characters",
            "flops": "FLOPs",
        }
        before = f"{_scored(r.vectors, dry_run)}\n" if r.vectors else ""
        return f"{before}{r.name} would run\n" + table(r.planned, columns)
    nulls = f", {r.nulls:,} of them null (see {r.name}.error)" if r.nulls else ""
    cut = f", {r.cut:,} of those done now cut to the model's context" if r.cut else ""
    if r.kind == "vectors":
        done = f"vectors {r.name}: {r.computed:,} samples encoded now, {r.reused:,} were"
        aim = f"; {r.cut_of_target:,} of the target's examples cut to it" if r.cut_of_target else ""
        return f"{done}; {r.rows:,} in all{nulls}{cut}{aim}; {r.index}."
    before = f"{_scored(r.vectors, dry_run)}\n" if r.vectors else ""
    return f"{before}{r.name}: {r.computed:,} samples scored now, {r.reused:,} were; {r.rows:,} in all{nulls}{cut}."


# --- looking ---------------------------------------------------------------------------------------------


@cli.command()
@_workspace()
@_json
def status(ws: Workspace, as_json: bool) -> None:
    """Show what there is, and what is stale or missing."""
    s = curate.status(ws)
    lines = [f"{s.path}: {s.rows:,} samples in {s.shards} shards ({s.copies:,} with copies), {s.rejects:,} rejects."]
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
        (s.manifests, {"name": "manifest", "selector": "selector", "by": "by", "rows": "samples"}),
    ]
    lines += [table(rows, columns) for rows, columns in tables if rows]
    troubled = [row for row in [*s.scores, *s.vectors] if row["command"]]
    lines += [f"{row['name']} {row['state']}: run `{row['command']}`." for row in troubled]
    say(s, as_json, "\n\n".join(lines))


@cli.command()
@_workspace()
@_json
def ledger(ws: Workspace, as_json: bool) -> None:
    """Show what every pass cost."""
    rows = curate.ledger(ws)
    columns = {key: key for key in ("stage", "methods", "name", "phase", "runs", "samples", "flops", "seconds")}
    click.echo(json.dumps(rows, indent=1) if as_json else table(rows, columns) if rows else "Nothing was spent yet.")


@cli.command()
@_workspace()
@click.option("--repair", is_flag=True, help="Compute again what is damaged and can be computed.")
@_json
def verify(ws: Workspace, repair: bool, as_json: bool) -> None:
    """Check every part against its commit record: bytes, rows, ids in the pool's order.

    The exit status is 1 while something is damaged. Scores and what they prepared are computed again by --repair;
    for what came from outside, the remedy is said.
    """
    r = curate.verify(ws, repair=repair, find=kinds.find)
    left = [d for d in r.damaged if not d.repaired]
    head = f"{r.parts:,} parts looked at ({r.bytes:,} bytes), {len(r.damaged):,} damaged"
    lines = [f"{head}{', ' + str(len(r.damaged) - len(left)) + ' repaired' if repair else ''}."]
    for d in r.damaged:
        lines.append(f"{d.kind} {d.name}: {d.part} {d.what}; {'repaired' if d.repaired else d.remedy}.")
    say(r, as_json, "\n".join(lines))
    if left:
        raise SystemExit(1)


@cli.command()
@click.argument("query")
@_workspace()
@click.option(
    "--format",
    "fmt",
    default="table",
    show_default=True,
    metavar="FORMAT",
    help="table, csv, json or parquet.",
)
@click.option("-o", "--output", metavar="FILE", help="Write to a file.")
def sql(ws: Workspace, query: str, fmt: str, output: str | None) -> None:
    """Run one SELECT (DuckDB's SQL) over the workspace.

    \b
    pool, targets, rejects, ledger, runs   what they say
    samples                                the pool with every score: NAME, and NAME_COLUMN for its other columns
    NAME                                   the own table of a score, vectors or a manifest

    Original fields: meta->>'field'.
    """
    from curate.stages.sql import write_sql

    text = write_sql(ws, query, fmt, output)
    click.echo(text, nl=bool(text))


@cli.command()
@click.argument("vectors")
@_workspace()
@click.option("--text", metavar="WORDS", help="What to be near to: a text, which goes through the vectors' model.")
@click.option("--id", "sample", metavar="ID", help="Or a sample of the pool.")
@click.option("-k", "count", default=10, show_default=True, metavar="N", help="How many.")
@_json
def neighbors(ws: Workspace, vectors: str, text: str | None, sample: str | None, count: int, as_json: bool) -> None:
    """Show the samples most like a text or another sample, by VECTORS (`curate score embed` makes some)."""
    r = curate.neighbors(ws, vectors, text=text, id=sample, k=count, find=kinds.find)
    lines = [{**row, "text": " ".join(row["text"].split())[:80]} for row in r.found]
    columns = {"similarity": "cosine", "id": "id", "source": "source", "text": "text"}
    say(r, as_json, (table(lines, columns) if lines else "There is none.") + notes(r.warnings))


@cli.command()
@click.argument("name")
@_workspace()
def drop(ws: Workspace, name: str) -> None:
    """Remove a score, vectors, a manifest or a target."""
    click.echo(f"Removed the {curate.drop(ws, name)} {name}.")


@cli.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@_json
def methods(kind: str | None, name: str | None, as_json: bool) -> None:
    """List the methods; with KIND and NAME, explain one.

    KIND is score, selector, export or executor.
    """
    if kind and name:
        click.echo(_method_help(kind, name))
        return
    found = curate.methods(kind)
    click.echo(
        json.dumps(found, indent=1) if as_json else table(found, {"kind": "kind", "name": "name", "summary": "summary"})
    )


def _method_help(kind: str, name: str) -> str:
    settings = "".join(
        f"\n  {field['name']}={field['default']!r}  ({field['type']})\n      {field['note']}"
        for field in kinds.settings_help(kind, name)
    )
    return f"{kinds.help_text(kind, name)}\n\nSettings (--set FIELD=VALUE):{settings or ' none'}"


# --- choosing --------------------------------------------------------------------------------------------


@cli.command()
@click.argument("name")
@_workspace()
@click.option(
    "--by",
    metavar="SQL",
    help="Expression over `samples` to rank by, higher is better; a selector that ranks otherwise only leaves out what "
    "has no value.",
)
@click.option("--where", metavar="SQL", help="Condition a candidate must meet.")
@click.option("--top", type=int, metavar="N", help="Budget in samples.")
@click.option("--frac", type=float, metavar="F", help="Budget as a fraction of the candidates that have a value.")
@click.option("--tokens", type=float, metavar="N", help="Budget in tokens; see --token-count.")
@click.option("--token-count", metavar="SQL", help="Tokens of a sample.  [default: n_chars / 4.0]")
@click.option(
    "--per",
    metavar="GROUP",
    help="source or subtask: the budget is each group's; what a group took, no later one (by name) takes.",
)
@click.option("--vectors", metavar="NAME", help="The vectors of selectors that work on some, as kcenter.")
@click.option("--target", metavar="NAME", help="The target of selectors that work on one, as round_robin.")
@click.option(
    "--selector",
    "selector_name",
    metavar="METHOD",
    help="See `curate methods selector`.  [default: top; random without --by]",
)
@_set
@click.option("--seed", default=0, show_default=True, help="Of every random choice.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@click.option("--replay", "replayed", metavar="FILE", help="Repeat the selection of a manifest's JSON.")
@_dry_run
@_json
def select(
    ws: Workspace,
    name: str,
    by: str | None,
    where: str | None,
    top: int | None,
    frac: float | None,
    tokens: float | None,
    token_count: str | None,
    per: str | None,
    vectors: str | None,
    target: str | None,
    selector_name: str | None,
    settings: tuple[str, ...],
    seed: int,
    allow_stale: bool,
    replayed: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Choose samples under a budget, as the manifest NAME."""
    if replayed:
        given = (
            by,
            where,
            top,
            frac,
            tokens,
            token_count,
            per,
            vectors,
            target,
            selector_name,
            settings,
            seed,
            dry_run,
        )
        if any(given):
            raise CurateError("--replay repeats a selection as it was; it goes with no other choice.")
        r = curate.replay(ws, name, replayed, kinds.find, allow_stale=allow_stale)
    else:
        from curate.stages.select import TOKENS, Choice

        method = selector_name or ("top" if by else "random")
        selector = kinds.make("selector", method, _pairs(settings, "--set"))
        counted = token_count or TOKENS
        choice = Choice(by, where, top, frac, tokens, per, counted, seed, allow_stale, vectors, target)
        r = curate.select(ws, name, selector, choice, dry_run=dry_run)
    columns = {
        "source": "source",
        "selected": "selected",
        "share": "share",
        "candidates": "candidates",
        "mean_value": "mean value",
    }
    said = "Would select" if dry_run else f"Manifest {name}:"
    head = f"{said} {r.rows:,} of {r.candidates:,} candidates, about {r.tokens:,.0f} tokens."
    null = f"\nnote: {r.without_value:,} candidates have no value and were not considered" if r.without_value else ""
    say(r, as_json, f"{head}\n{table(r.by_source, columns)}{null}{notes(r.warnings)}")


@cli.command()
@click.argument("manifest")
@_workspace()
@click.option("--to", "fmt", required=True, metavar="FORMAT", help="See `curate methods export`.")
@click.option("-o", "--output", metavar="DIR", help="A new or empty folder.")
@click.option(
    "--preview",
    "count",
    type=click.IntRange(min=0),
    metavar="N",
    help="Print N rows as the trainer will see them; writes nothing without -o.",
)
@click.option("--skip-unfit", is_flag=True, help="Leave out, and report, samples the format cannot hold.")
@_set
@_json
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
    """Write the samples of a manifest as a trainer's files."""
    ws.require("manifest", manifest)
    exporter = kinds.make("export", fmt, _pairs(settings, "--set"))
    if count is not None:
        for row in curate.preview(ws, manifest, exporter, count, skip_unfit=skip_unfit):
            click.echo(json.dumps(row, ensure_ascii=False, indent=None if as_json else 1))
    if output is None:
        if count is None:
            raise CurateError("say where to write: -o DIR (a new or empty folder), or --preview N to look first.")
        return
    r = curate.export(ws, manifest, exporter, output, skip_unfit=skip_unfit)
    skipped = "".join(f"\nnote: left out: {why}" for why in r.skipped[:5])
    more = f"\nnote: {len(r.skipped):,} samples were left out in all" if r.skipped else ""
    say(
        r,
        as_json,
        f"{r.rows:,} rows written for {fmt}:\n" + "\n".join(f"  {f}" for f in r.files) + skipped + more,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `curate`."""
    run(cli, arguments)


if __name__ == "__main__":
    main()
