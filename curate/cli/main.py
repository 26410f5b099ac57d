"""The command line: resolves names of methods and models to objects. Each command is a thin layer over a verb.

A command's module is loaded when the command runs, and all of them for the list of commands: these modules import what
they show and parse, and leave the libraries that compute to the verbs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click

from curate.cli.console import run
from curate.cli.options import wait_option
from curate.errors import CurateError, nearest

_HOMES = {  # command -> the module of curate.cli that has it, in the order of use
    "ingest": "pool",
    "target": "pool",
    "score": "scoring",
    "attach": "attaching",
    "status": "inspect",
    "ledger": "inspect",
    "verify": "inspect",
    "sql": "inspect",
    "show": "looking",
    "head": "looking",
    "diff": "looking",
    "explore": "explore",
    "neighbors": "scoring",
    "explain": "scoring",
    "drop": "inspect",
    "methods": "inspect",
    "select": "selection",
    "weigh": "selection",
    "mix": "mixing",
    "mask": "selection",
    "export": "selection",
    "train": "training",
    "prune": "training",
    "evaluate": "evaluation",
    "compare": "comparing",
    "audit": "audit",
    "trial": "trial",
    "foretell": "trial",
    "combine": "trial",
    "report": "inspect",
    "doctor": "doctor",
}


class _Commands(click.Group):
    """Loads a command when it is asked for, lists them in the order of use, and suggests the nearest one for an unknown
    name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _HOMES.get(cmd_name)
        return getattr(importlib.import_module(f"curate.cli.{home}"), cmd_name) if home else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _HOMES and not args[0].startswith("-"):
            raise CurateError(f"there is no command '{args[0]}': {nearest(args[0], _HOMES)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="curate-lm", prog_name="curate")
@click.option("-w", "--workspace", metavar="WS", help="The workspace's folder, as after the command.")
@click.option(
    "--allow-files",
    multiple=True,
    metavar="PATH",
    help="A folder or file outside the workspace that SQL (--where, --by, queries) may read; before the command.",
)
@click.option("--allow-pickle", is_flag=True, help="Load models that a plan or a recipe names with allow_pickle so.")
@click.option("--allow-remote-code", is_flag=True, help="The same for allow_remote_code.")
@wait_option
def cli(workspace: str | None, allow_files: tuple[str, ...], allow_pickle: bool, allow_remote_code: bool) -> None:
    """Data selection for language models: which samples to train on, with what weight, and at what cost.

    \b
    curate ingest -w WS data/*.jsonl                    add samples to the pool
    curate target -w WS math val.jsonl                  examples of what to select for
    curate score  -w WS bm25 --target math              score every sample
    curate select -w WS best --by bm25_math --frac .05  select samples
    curate export -w WS best --to trl -o out            write files for your trainer

    Every command works in a workspace: -w WS, or the environment variable CURATE_WORKSPACE.
    """


def commands() -> dict[str, click.Command]:
    """Every command by its name, in the order of use."""
    context = click.Context(cli)
    return {name: command for name in _HOMES if (command := cli.get_command(context, name))}


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `curate`."""
    run(cli, arguments)
