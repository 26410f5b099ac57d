"""`curate head`: the first samples of the pool, of a manifest, of a target, or by a score, as a reader sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, nearest
from curate.results import Result
from curate.store.manifests import read_manifest
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.chats import as_read, contents_at


@dataclass
class Head(Result):
    """The first samples. of: what they are the first of, in words. total: how many there are. samples: as
    `curate.tables.chats.as_read` has them; of a manifest with rank, weight and repeats, by a score with its value."""

    of: str
    total: int
    samples: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def _tables(self) -> dict[str, Any]:
        rows = [{"id": s["id"], "source": s["source"], "text": _line(s)} for s in self.samples]
        return {"samples": rows} if rows else {}


def head(ws: AnyWorkspace, name: str | None = None, *, where: str | None = None, n: int = 5) -> Head:
    """The first n samples: of the pool, in its order; of a manifest, by rank; of a target, as stored; of a score, the
    highest.

    where: an SQL condition over `samples` that those of the pool, a manifest or a score must satisfy. Raises
    CurateError for a name that is none of these, invalid SQL, or a condition on a target.
    """
    ws = workspace_of(ws, pinned=True)
    if n < 1:
        raise CurateError(f"-n {n}: a number of samples is 1 or more.")
    if name in ws.target_names() and name not in (*ws.manifest_names(), *ws.score_names()):
        return _of_target(ws, name, where, n)
    ws.require_pool()
    condition = f"WHERE ({where}\n)" if where else ""  # the newline ends an SQL comment in the condition
    of = f" where {where}" if where else ""
    if name is None:
        return _of_query(ws, f"the pool{of}", f"SELECT row FROM samples {condition}", "ORDER BY row", n)
    if name in ws.manifest_names():
        read_manifest(ws, name)
        inner = f"JOIN (SELECT row AS _row, rank, weight, repeats FROM {name}) m ON m._row = s.row"
        query = f"SELECT row, rank, weight, repeats FROM (SELECT * FROM samples {condition}) s {inner}"
        return _of_query(ws, f"the manifest {name}{of}", query, "ORDER BY rank", n)
    if name in ws.score_names():
        query = f"SELECT row, {name} AS value FROM samples {condition}"
        return _of_query(ws, f"the pool{of}, by {name}", query, f"ORDER BY {name} DESC NULLS LAST, id", n)
    known = [*ws.manifest_names(), *ws.target_names(), *ws.score_names()]
    raise CurateError(f"{ws.path} has no manifest, target or score '{name}': {nearest(name, known)}")


def _of_query(ws: Workspace, of: str, query: str, order: str, n: int) -> Head:
    total = next(sql.rows(ws, f"SELECT count(*) AS n FROM ({query}\n)"))["n"]
    found = list(sql.rows(ws, f"{query} {order} LIMIT {n}"))
    contents = contents_at(ws, [row["row"] for row in found])
    return Head(of, total, [{**sample, **row} for sample, row in zip(contents, found, strict=True)])


def _of_target(ws: Workspace, name: str, where: str | None, n: int) -> Head:
    if where:
        raise CurateError(f"--where is a condition on samples of the pool, and '{name}' is a target; leave one out.")
    table = ws.target_rows(name)
    return Head(f"the target {name}", table.num_rows, [as_read(row) for row in table.slice(0, n).to_pylist()])


def _line(sample: dict[str, Any]) -> str:
    text = sample["text"] if sample["text"] is not None else " ".join(turn["content"] for turn in sample["turns"])
    return " ".join(text[:400].split())
