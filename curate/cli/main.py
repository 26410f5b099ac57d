"""The command line: with its commands the one place where names become objects. Each is a thin layer over a verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from curate.cli import audit, inspect, mixing, pool, scoring, selection, training
from curate.cli.console import run
from curate.errors import CurateError, nearest


class _Commands(click.Group):
    """Commands in the order of work, and the nearest one where a name is not known."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise CurateError(f"there is no command '{args[0]}': {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="curate", prog_name="curate")
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


for command in (
    *(pool.ingest, pool.target, scoring.score, inspect.status, inspect.ledger, inspect.verify, inspect.sql),
    *(
        scoring.neighbors,
        scoring.explain,
        inspect.drop,
        inspect.methods,
        selection.select,
        selection.weigh,
        mixing.mix,
        selection.mask,
        selection.export,
    ),
    *(training.train, training.prune, training.evaluate, training.compare, audit.audit, inspect.report),
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `curate`."""
    run(cli, arguments)
