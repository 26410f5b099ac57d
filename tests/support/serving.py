"""A workspace served as `curate explore` serves it, in a thread, and requests to it as any program may make them."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from curate.store.workspace import Workspace
from curate.web.explore import served


class Served:
    """A server's address, with its token, and requests to it."""

    def __init__(self, address: str):
        self.address, self.token = address, urlsplit(address).fragment
        self.port = urlsplit(address).port

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON as its value) and headers; `_` in a header's name stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body), given)
        answer = connection.getresponse()
        content, told = answer.read(), {name: value for name, value in answer.getheaders()}
        connection.close()
        is_json = told.get("Content-Type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode(), told

    def get(self, path: str, **fields: Any) -> Any:
        """What the page would get; an error as its sentence."""
        status, value, _ = self.raw("GET", f"/api/{path}?{urlencode(fields)}", X_Curate_Token=self.token)
        return value if status == 200 else value["error"]

    def post(self, path: str, **body: Any) -> Any:
        """What the page would get for something that it writes."""
        given = {"X_Curate_Token": self.token, "Content_Type": "application/json"}
        status, value, _ = self.raw("POST", f"/api/{path}", body, **given)
        return value if status == 200 else value["error"]


@contextmanager
def serving(ws: Workspace) -> Iterator[Served]:
    """The workspace, served while the body runs."""
    loop, started, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[str] = []

    async def run() -> None:
        async with served(ws) as address:
            found.append(address)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield Served(found[0])
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
