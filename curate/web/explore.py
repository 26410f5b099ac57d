"""`curate explore`: looking at samples in a browser, and marking them, by a server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.store.workspace import Workspace
from curate.web.server import application

ADDRESS = "127.0.0.1"


def explore(ws: AnyWorkspace, *, port: int = 0, browser: bool = True, announce: Callable[[str], None] = print) -> None:
    """Serve a workspace to a browser on this machine, until it is interrupted (SIGINT, SIGTERM).

    port: 0 takes a free one. browser: whether to open one, where there is a screen. announce: is given the address,
    which has a token in it. Marks are stored as they are made. Raises CurateError if the port is taken.
    """
    ws = workspace_of(ws)

    async def run() -> None:
        async with served(ws, port) as address:
            announce(address)
            if browser and _has_screen():
                webbrowser.open(address)
            await _interrupted()

    asyncio.run(run())


@asynccontextmanager
async def served(ws: Workspace, port: int = 0) -> AsyncIterator[str]:
    """Serve a workspace while the body runs; gives the address of the page. Raises CurateError if the port is taken."""
    token = secrets.token_urlsafe(24)
    runner = web.AppRunner(application(ws, token), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, ADDRESS, port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise CurateError(
                f"--port {port}: {ADDRESS} does not have it free ({error}); name another, or 0 for any."
            ) from None
        yield f"http://{ADDRESS}:{runner.addresses[0][1]}/#{token}"
    finally:
        await runner.cleanup()


async def _interrupted() -> None:
    """Wait until the process is asked to end."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):  # in a thread, and on Windows
            loop.add_signal_handler(number, asked.set)
    await asked.wait()


def _has_screen() -> bool:
    """Whether a browser would open a window, and not take the terminal."""
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
