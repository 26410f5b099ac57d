"""The server behind the page: for one reader, on this machine alone.

What protects it: it listens on 127.0.0.1. A request must name this machine as its host (else a page elsewhere could
reach it under a name of its own, by DNS rebinding), and must not come from another page. Every request for data carries
a random token, which stands in the address that `curate explore` prints, behind the #, which no browser sends. The page
itself loads nothing from elsewhere and runs no script but its own, see POLICY.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from aiohttp import web

from curate.errors import CurateError
from curate.results import plain
from curate.store.manifests import manifest_recipe
from curate.store.marks import read_marks, set_marks
from curate.store.recipes import MixtureRecipe
from curate.store.workspace import Workspace
from curate.verbs.diff import diff
from curate.verbs.show import Sample, show
from curate.web.keep import keep
from curate.web.lists import Choice, Lists, sortable
from curate.web.shown import listed, whole

TOKEN = "X-Curate-Token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOSTS = ("127.0.0.1", "localhost")  # with any port, which a tunnel may have changed
_FILES = {
    "/": ("index.html", "text/html"),
    "/explore.js": ("explore.js", "text/javascript"),
    "/render.js": ("render.js", "text/javascript"),
    "/explore.css": ("explore.css", "text/css"),
}
_PAGE = Path(__file__).parent / "page"
_MOST = 200  # samples of one request
_BODY = 1 << 20  # bytes of a request

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(ws: Workspace, token: str) -> web.Application:
    """The server's application. token: what requests for data must carry in the header TOKEN."""
    site = _Site(ws)
    app = web.Application(middlewares=[_guard(token), _sentences], client_max_size=_BODY)
    app.add_routes([web.get(path, _file(*what)) for path, what in _FILES.items()])
    reads = {"workspace": site.workspace, "list": site.list, "samples": site.samples, "sample": site.sample,
             "diff": site.diff}  # fmt: skip
    app.add_routes([web.get(f"/api/{name}", _answer(read)) for name, read in reads.items()])
    writes = {"mark": site.mark, "keep": site.keep}
    app.add_routes([web.post(f"/api/{name}", _answer(write)) for name, write in writes.items()])
    return app


class _Site:
    """What is answered: each method is given a request's fields, and runs in a thread of its own."""

    def __init__(self, ws: Workspace):
        self.ws, self.lists = ws, Lists(ws)

    def workspace(self, _: dict[str, Any]) -> dict[str, Any]:
        """What the page offers: columns to sort by, selections, counts of marks."""
        marks = list(read_marks(self.ws).values())
        return {
            "name": self.ws.path.absolute().name,
            "rows": self.ws.n_rows(),
            "columns": sortable(self.ws),
            "manifests": _of_samples(self.ws),
            "targets": self.ws.target_names(),
            "good": marks.count("good"),
            "bad": marks.count("bad"),
        }

    def list(self, given: dict[str, Any]) -> dict[str, Any]:
        """The number of samples of a choice, and the rows and values of a page of them."""
        found = self.lists.listed(_choice(given))
        start, count = _number(given, "start", 0), min(_number(given, "count", 20), _MOST)
        rows, values = found.rows[start : start + count], found.values[start : start + count]
        return {"total": len(found.rows), "start": start, "rows": rows.tolist(), "values": plain(values.tolist())}

    def samples(self, given: dict[str, Any]) -> dict[str, Any]:
        """The samples at some rows, as in a list."""
        rows = [int(row) for row in str(given.get("rows", "")).split(",") if row.isdigit()][:_MOST]
        marks = read_marks(self.ws)
        return {"samples": [listed(s, marks.get(s["id"], ""), float("nan")) for s in self.lists.contents(rows)]}

    def sample(self, given: dict[str, Any]) -> dict[str, Any]:
        """A whole sample, by its id or the first digits of it."""
        (found,) = self.lists.contents([_number(given, "row", 0)]) if "row" in given else (None,)
        its = show(self.ws, found["id"] if found else str(given.get("id", "")))
        if not isinstance(its, Sample):
            raise CurateError(f"'{given.get('id')}' is no sample, but a {its.kind}.")
        return plain(whole(vars(its)))

    def diff(self, given: dict[str, Any]) -> dict[str, Any]:
        """Two manifests side by side."""
        return plain(asdict(diff(self.ws, str(given.get("a", "")), str(given.get("b", "")))))

    def mark(self, given: dict[str, Any]) -> dict[str, Any]:
        """Mark samples; what is marked is on the disk when this is answered."""
        ids, mark = given.get("ids"), given.get("mark")
        if not isinstance(ids, list) or not all(isinstance(one, str) and len(one) == 16 for one in ids):
            raise CurateError("ids is a list of samples' ids, of 16 hex digits each.")
        marks = list(set_marks(self.ws, ids, mark).values())
        return {"good": marks.count("good"), "bad": marks.count("bad")}

    def keep(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep the marked samples as a manifest or a target."""
        name, kind, mark, split = (str(given.get(key, "")) for key in ("name", "kind", "mark", "split"))
        replace = given.get("replace") is True
        return {"said": keep(self.ws, name, kind, mark=mark, split=split, replace=replace)}


def _of_samples(ws: Workspace) -> list[str]:
    """The manifests of samples; a mixture lists none."""
    return [name for name in ws.manifest_names() if not isinstance(manifest_recipe(ws, name), MixtureRecipe)]


def _choice(given: dict[str, Any]) -> Choice:
    texts = {f.name: str(given[f.name]) for f in fields(Choice) if f.name in given and f.name != "descending"}
    return Choice(**texts, descending=given.get("descending") != "0")


def _number(given: dict[str, Any], key: str, usual: int) -> int:
    text = str(given.get(key, usual))
    if not text.isdigit() or len(text) > 15:
        raise CurateError(f"{key} is a number of 0 or more, not '{text}'.")
    return int(text)


# --- requests --------------------------------------------------------------------------------------------


def _file(name: str, kind: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=(_PAGE / name).read_bytes(), content_type=kind, charset="utf-8")

    return answer


def _answer(respond: Callable[[dict[str, Any]], dict[str, Any]]) -> Handler:
    """A handler that gives a request's fields (of its address, or its JSON) to a function, in a thread."""

    async def answer(request: web.Request) -> web.StreamResponse:
        given: Any = dict(request.query)
        if request.method == "POST":
            if request.content_type != "application/json":
                raise CurateError("a request that writes is JSON (Content-Type: application/json).")
            given = _json(await request.read())
        return _said(200, await asyncio.to_thread(respond, given))

    return answer


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CurateError("a request that writes is a JSON object.")
    return value


def _said(status: int, value: dict[str, Any]) -> web.Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return web.Response(body=text.encode("utf-8", "replace"), content_type="application/json", status=status)


def _guard(token: str) -> Any:
    """Refuses requests that are not of this page, and gives every answer its headers."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, token)
        response = _said(403, {"error": refusal}) if refusal else await handler(request)
        response.headers.update(_HEADERS)
        return response

    return guard


def _refusal(request: web.Request, token: str) -> str | None:
    """Why a request is refused, as a sentence; None if it is not."""
    host = request.headers.get("Host", "")
    if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
        return f"this server answers under {' and '.join(_HOSTS)} only, and was asked as '{host}'."
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        return "this server answers its own page only."
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and request.path != "/":
        return "this server answers its own page only."
    given = request.headers.get(TOKEN, "").encode("utf-8", "replace")
    if request.path.startswith("/api/") and not hmac.compare_digest(given, token.encode()):
        return "the token is missing or of another start; open the address that `curate explore` has printed."
    return None


@web.middleware
async def _sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as one sentence, in JSON."""
    try:
        return await handler(request)
    except CurateError as error:
        return _said(400, {"error": str(error)})
    except web.HTTPException as error:
        return _said(error.status, {"error": f"{request.method} {request.path}: {error.reason}."})
    except OSError as error:
        return _said(500, {"error": f"{error.filename or 'the workspace'}: {error.strerror or error}."})
    except Exception as error:  # noqa: BLE001  the server goes on
        return _said(500, {"error": f"unexpected {type(error).__name__}: {error} (a bug)."})
