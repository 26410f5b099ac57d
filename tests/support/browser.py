"""A real browser, driven over its debugging protocol: for pages that a server gives, with keys, sizes and pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp


class Browser:
    """One page of a headless chromium. complaints: errors and warnings of the page's console."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse):
        self._loop, self._socket, self._sent = loop, socket, 0
        self.complaints: list[str] = []

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        return self._loop.run_until_complete(self._command(method, parameters))

    async def _command(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._sent += 1
        await self._socket.send_str(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            told = json.loads((await asyncio.wait_for(self._socket.receive(), 60)).data)
            if told.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(told["params"]))
            if told.get("id") == self._sent:
                assert "error" not in told, told
                return told["result"]

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address in a window of some size, light or dark; below 600 as on a phone."""
        phone = width < 600
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url="about:blank")
        self.command("Page.navigate", url=address)

    def told(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        for _ in range(int(seconds / 0.05)):
            # While a page is on its way there may be no element yet.
            if self.told(f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"):
                return
            self._loop.run_until_complete(asyncio.sleep(0.05))
        raise AssertionError(f"never true: {expression}; the page says {self.told('document.body.innerText')[:500]}")

    def key(self, key: str) -> None:
        """Press a key."""
        code = {"Escape": 27, "Enter": 13, "ArrowUp": 38, "ArrowDown": 40}.get(key, 0)
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """A picture of what the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Browser]:
    """A headless chromium whose files are in a folder."""
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    loop = asyncio.new_event_loop()
    try:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        session = loop.run_until_complete(_session())
        socket = loop.run_until_complete(_page(session, address))
        browser = Browser(loop, socket)
        for domain in ("Page", "Runtime", "Log"):
            browser.command(f"{domain}.enable")
        try:
            yield browser
        finally:
            loop.run_until_complete(socket.close())
            loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        process.stderr.close()
        loop.close()


async def _session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession()


async def _page(session: aiohttp.ClientSession, address: str) -> aiohttp.ClientWebSocketResponse:
    """The first page's socket; address: the browser's."""
    host = address.split("/")[2]
    async with session.get(f"http://{host}/json") as answer:
        pages = [page for page in await answer.json() if page["type"] == "page"]
    return await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
