"""attach: columns and vectors that other tools made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, workspace
from curate.errors import CurateError
from curate.kinds.column_names import plain_name
from curate.text_table import counted, one_line

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@click.argument("name")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@workspace(writes=True)
@click.option(
    "--score", metavar="COLUMN", help="The column that is the score.  [default: score, NAME, or the only one]"
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="[OWN=]COLUMN",
    help="A further column, NAME_OWN in SQL.  [default of OWN: as it is called, in small letters]",
)
@click.option("--vector", metavar="COLUMN", help="A column of lists of numbers, to be attached as vectors instead.")
@click.option(
    "--by",
    metavar="KEY",
    help="How rows find their samples: id; row, a column of that name or else the order of the rows; or a field of the "
    "samples' metadata that is a column, too.  [default: id if there is such a column, else row]",
)
@click.option("--ignore-unknown", is_flag=True, help="Leave out rows of no sample, instead of refusing the file.")
@click.option("--flops", type=float, default=0.0, metavar="N", help="What it cost to make, for the ledger.")
@click.option("--fresh", is_flag=True, help="Replace what was attached, or computed, under that name.")
@as_json_option
def attach(
    ws: Workspace,
    name: str,
    files: tuple[str, ...],
    score: str | None,
    columns: tuple[str, ...],
    vector: str | None,
    by: str | None,
    ignore_unknown: bool,
    flops: float,
    fresh: bool,
    as_json: bool,
) -> None:
    """Attach a column of FILEs that another tool made as the score NAME, or vectors, like any other.

    FILEs are Parquet, Arrow, CSV, TSV or JSON Lines, plain or gzip. Samples that have no row, or no finite number, are
    NULL, with the reason in NAME_error. `curate sql "SELECT id, NAME FROM samples" -o FILE` is the way back.
    """
    if flops < 0:
        raise CurateError(f"--flops {flops:g}: a cost is 0 or more.")
    named = [column.rpartition("=") for column in columns]
    r = curate.attach(
        ws,
        name,
        files,
        score=score,
        columns={own or plain_name(column): column for own, _, column in named},
        vector=vector,
        by=by,
        ignore_unknown=ignore_unknown,
        flops=flops,
        fresh=fresh,
    )
    what = {"score": f"Score {name}", "vectors": f"Vectors {name}"}[r.kind]
    lines = [f"{what}: {r.column}, matched by {r.by}, of {r.matched:,} of {counted(r.rows, 'sample')}."]
    lines += [f"Further columns: {', '.join(f'{name}_{own}' for own in r.columns)}."] * bool(r.columns)
    lines += [f"Index: {one_line(r.index)}."] * bool(r.index)
    missing = f"\nnote: {counted(r.missing, 'sample')} without a row are NULL" if r.missing else ""
    say(r, as_json, "\n".join(lines) + missing + notes(r.warnings))
