"""explore: a workspace in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import curate
from curate.cli.console import show
from curate.cli.options import workspace

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@workspace()
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), metavar="P",
              help="Port on 127.0.0.1; 0: any that is free.")  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def explore(ws: Workspace, port: int, no_browser: bool) -> None:
    """Look at samples in a browser: filter by SQL, sort by any score, read chats, mark them, compare selections.

    Serves this machine alone, and only whoever has the address, which has a random token in it. From elsewhere, by a
    tunnel: `ssh -L 8000:127.0.0.1:8000 HOST curate explore -w WS --port 8000 --no-browser`. Marks are stored in the
    workspace as they are made.
    """

    def announce(address: str) -> None:
        show(f"Open {address}\nIt serves {ws.path} until Ctrl-C.")

    curate.explore(ws, port=port, browser=not no_browser, announce=announce)
