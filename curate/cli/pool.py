"""ingest, target: adding samples and targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import (
    as_json_option,
    choice_answer_option,
    dry_run_option,
    format_option,
    limit_option,
    map_option,
    pairs,
    turn_key_option,
    workspace,
)
from curate.errors import CurateError
from curate.store.meta_rules import RULES, MetaRule
from curate.text_table import counted, one_line, table

if TYPE_CHECKING:
    from curate.store.input_limits import InputLimits
    from curate.store.workspace import Workspace


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@workspace(create=True)
@click.option(
    "--source", metavar="NAME", help="Source of all rows.  [default: each path's name without extensions; stdin]"
)
@click.option("--split", metavar="NAME", help="Split of folders and datasets that have several.  [default: train]")
@format_option
@map_option
@turn_key_option
@choice_answer_option
@limit_option
@click.option(
    "--meta",
    type=click.Choice(RULES),
    default="keep",
    show_default=True,
    help="What becomes of the fields of a known sample that comes with others.",
)
@click.option(
    "--strip-special", is_flag=True, help="Leave models' control tokens (<|endoftext|>, </s> …) out of texts."
)
@click.option(
    "--workers", type=int, metavar="N", help="Processes that parse rows.  [default: one per core for large files]"
)
@click.option("--shard-size", default=32, show_default=True, metavar="MIB", help="Text per shard of the pool, in MiB.")
@dry_run_option
@as_json_option
def ingest(
    ws: Workspace,
    paths: tuple[str, ...],
    source: str | None,
    split: str | None,
    fmt: str,
    maps: tuple[str, ...],
    turn_keys: tuple[str, ...],
    choice_answer: Literal["letter", "text"],
    limits: InputLimits,
    meta: MetaRule,
    strip_special: bool,
    workers: int | None,
    shard_size: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add samples from files, folders, globs or hub ids, or, as -, from standard input.

    Reads JSONL and JSON arrays, Parquet and Arrow, detected by content; CSV and TSV with a header, by their ending; all
    text plain, gzip or zstd; folders written by `save_to_disk`; hub datasets as owner/name[:CONFIG][@REVISION][#SPLIT].
    Standard input is JSON Lines, plain, gzip or zstd; as it has no name, every row of it that is known is a copy.
    Of a folder or dataset with several splits only train is read, or --split. Files already in the pool are skipped;
    duplicate samples are kept once and counted in `copies`; lines without a valid sample go to the table `rejects`.
    """
    if shard_size <= 0:
        raise CurateError(f"--shard-size is a number of MiB above 0, not {shard_size}.")
    r = curate.ingest(
        ws,
        paths,
        source=source,
        split=split,
        fmt=fmt,
        mapping=pairs(maps, "--map"),
        turn_keys=turn_keys,
        choice_answer=choice_answer,
        limits=limits,
        meta=meta,
        strip_special=strip_special,
        shard_bytes=shard_size << 20,
        workers=workers,
        dry_run=dry_run,
    )
    if dry_run:
        listed = ", ".join(map(one_line, r.files_planned)) or "all are in the pool"
        text = f"Would read {counted(len(r.files_planned), 'file')}: {listed}."
        say(r, as_json, text + notes(r.warnings))
        return
    formats = ", ".join(f"{name} {n:,}" for name, n in r.formats.items()) or "none"
    lines = [
        f"{counted(r.read, 'row')} read: {counted(r.added, 'sample')} added, {r.copies:,} copies of known ones, "
        f"{r.rejected:,} rejected.",
        f"Formats seen: {formats}" + (" (to change: --format, --map)." if fmt == "auto" and not maps else "."),
        f"The pool has {counted(r.pool_rows, 'sample')} in {counted(r.shards, 'shard')}.",
    ]
    for name, example in r.examples.items():
        fields = one_line(", ".join(r.meta_fields[name]))
        lines.append(f"The first of {one_line(name)}, as a model sees it{f' (to meta: {fields})' if fields else ''}:")
        lines += [f"  | {one_line(line)}" for line in example]
    if r.files_skipped:
        lines.insert(
            0,
            f"{counted(len(r.files_skipped), 'file')} skipped, as known: {one_line(', '.join(r.files_skipped[:3]))}"
            + ("…" if len(r.files_skipped) > 3 else "."),
        )
    if r.sources:
        lines.append(
            table(
                [{"source": s, "added": n} for s, n in r.sources.items()],
                {"source": "source", "added": "added"},
            )
        )
    for reason, n in sorted(r.reasons.items(), key=lambda item: -item[1])[:10]:
        lines.append(f"  rejected {n:,}: {one_line(reason)}")
    say(r, as_json, "\n".join(lines) + notes(r.warnings))


@click.command()
@click.argument("name")
@click.argument("path")
@workspace(create=True)
@click.option("--subtask", metavar="FIELD", help="Input field with each row's sub-task.")
@click.option(
    "--split",
    type=click.Choice(["val", "test"]),
    default="val",
    show_default=True,
    help="val: for selection; test: for evaluation.",
)
@format_option
@map_option
@turn_key_option
@choice_answer_option
@limit_option
@as_json_option
def target(
    ws: Workspace,
    name: str,
    path: str,
    subtask: str | None,
    split: str,
    fmt: str,
    maps: tuple[str, ...],
    turn_keys: tuple[str, ...],
    choice_answer: Literal["letter", "text"],
    limits: InputLimits,
    as_json: bool,
) -> None:
    """Store examples of what the model should learn, of a file or - (standard input), as the target NAME.

    Replaces the given split of that target; scores that used a changed val split become stale.
    """
    r = curate.target(
        ws,
        name,
        path,
        subtask=subtask,
        split=split,
        fmt=fmt,
        mapping=pairs(maps, "--map"),
        turn_keys=turn_keys,
        choice_answer=choice_answer,
        limits=limits,
    )
    rows = ", ".join(f"{n:,} {s}" for s, n in sorted(r.rows.items(), reverse=True))
    rejected = [f"{counted(r.rejected, 'row')} were rejected; see the table rejects"] if r.rejected else []
    subtasks_note = f", {len(r.subtasks)} sub-tasks" if r.subtasks else ""
    text = f"Target {name}: {rows} samples{subtasks_note}; formats seen: {', '.join(r.formats)}."
    say(
        r,
        as_json,
        text + notes([*rejected, *r.warnings]),
    )
