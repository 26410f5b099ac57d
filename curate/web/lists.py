"""Lists of samples for the page: which rows of the pool, in which order, and their contents; kept while they hold.

A list is computed once, as the row numbers of all its samples, so that any of its pages is a slice. At a million
samples that takes 16 MB, and less time than reading the samples of one page.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.errors import CurateError, nearest
from curate.store.manifests import manifest_recipe, read_manifest
from curate.store.marks import MARKS, read_marks
from curate.store.schema import VIEWS
from curate.store.workspace import Workspace, pool_fingerprint
from curate.tables import sql
from curate.tables.chats import contents_at
from curate.tables.inputs import sample_columns, score_recipe
from curate.tables.lookup import scores_of
from curate.tables.views import literal

PATIENCE = 20.0  # seconds after which a query is given up
_LISTS = 12  # kept
_SAMPLES = 600  # whose contents are kept
_WORD = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Choice:
    """Which samples, in which order.

    where: an SQL condition over `samples`; '': all. words: what a text of theirs contains, in any case. by: a numeric
    column of `samples`; '': the pool's order, or a manifest's. inside, within, outside: manifests that contain them
    (both), or do not. marked: good, bad, any or none.
    """

    where: str = ""
    words: str = ""
    by: str = ""
    descending: bool = True
    inside: str = ""
    within: str = ""
    outside: str = ""
    marked: str = ""


@dataclass(frozen=True)
class Listed:
    """Rows of the pool, int64 [n], in the order asked for, and the values that it is by, float64 [n] (NaN without)."""

    rows: np.ndarray
    values: np.ndarray


class Lists:
    """The lists of one workspace; safe to use from several threads."""

    def __init__(self, ws: Workspace):
        self.ws = ws
        self._lock = threading.Lock()
        self._lists: OrderedDict[Hashable, Listed] = OrderedDict()
        self._samples: OrderedDict[Hashable, dict[str, Any]] = OrderedDict()

    def listed(self, choice: Choice) -> Listed:
        """The samples of a choice. Raises CurateError for invalid SQL, an unknown column or manifest, or a query that
        takes longer than PATIENCE."""
        key = (choice, self._stamp(choice))
        with self._lock:
            found = self._lists.get(key)
        if found is None:
            found = self._compute(choice)
        self._keep(self._lists, key, found, _LISTS)
        return found

    def contents(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at some rows, in that order."""
        pool = pool_fingerprint(self.ws.shards())
        with self._lock:
            known = {row: self._samples[pool, row] for row in rows if (pool, row) in self._samples}
        for sample in contents_at(self.ws, [row for row in rows if row not in known]):
            known[sample["row"]] = sample
            self._keep(self._samples, (pool, sample["row"]), sample, _SAMPLES)
        return [known[row] for row in rows if row in known]

    def _keep(self, kept: OrderedDict[Hashable, Any], key: Hashable, value: Any, most: int) -> None:
        with self._lock:
            kept[key] = value
            kept.move_to_end(key)
            while len(kept) > most:
                kept.popitem(last=False)

    def _stamp(self, choice: Choice) -> Hashable:
        """What the list depends on apart from the choice; never the same twice if that is not known."""
        words = set(_WORD.findall(choice.where.lower()))
        if words & {*VIEWS, *self.ws.vectors_names()} - {"samples", "pool"}:
            return time.monotonic_ns()
        scores = [(s.name, s.recipe.fingerprint, s.rows) for s in scores_of(self.ws, choice.where, choice.by)]
        named = {choice.inside, choice.within, choice.outside, *words} & set(self.ws.manifest_names())
        manifests = [(name, manifest_recipe(self.ws, name).sha256) for name in sorted(named)]
        own = [(name, score_recipe(self.ws, name).fingerprint) for name in sorted(words & set(self.ws.score_names()))]
        marks = tuple(read_marks(self.ws).items()) if choice.marked else ()
        return pool_fingerprint(self.ws.shards()), tuple(scores), tuple(manifests), tuple(own), marks

    # --- which rows, in which order ----------------------------------------------------------------------

    def _compute(self, choice: Choice) -> Listed:
        conditions = [f"({choice.where}\n)"] if choice.where.strip() else []  # the newline ends an SQL comment
        conditions += [_containing(choice.words)] if choice.words else []
        conditions += self._marked(choice.marked)
        column = self._column(choice.by)
        condition = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        table = sql.fetch(self.ws, f"SELECT row, {column}::DOUBLE AS value FROM samples {condition}", PATIENCE)
        rows, values = table["row"].to_numpy(), table["value"].to_numpy()
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order].astype(np.float64)
        for name, wanted in ((choice.within, True), (choice.outside, False)):
            if name:
                kept = np.isin(rows, self._manifest(name)) == wanted
                rows, values = rows[kept], values[kept]
        if choice.inside:
            rows, values = _by_rank(rows, values, self._manifest(choice.inside))
        if choice.by:
            order = np.argsort(-values if choice.descending else values, kind="stable")  # NaN comes last
            rows, values = rows[order], values[order]
        return Listed(rows, values)

    def _column(self, by: str) -> str:
        if not by:
            return "NULL"
        known = sortable(self.ws)
        if by not in known:
            raise CurateError(f"there is no numeric column '{by}' to sort by: {nearest(by, known)}")
        return f'"{by}"'

    def _marked(self, marked: str) -> list[str]:
        if not marked:
            return []
        if marked not in (*MARKS, "any", "none"):
            raise CurateError(f"marked is good, bad, any or none, not '{marked}'.")
        ids = [key for key, mark in read_marks(self.ws).items() if marked in (mark, "any", "none")]
        listed = ", ".join(map(literal, ids)) or "''"
        return [f"id {'NOT ' if marked == 'none' else ''}IN ({listed})"]

    def _manifest(self, name: str) -> np.ndarray:
        return read_manifest(self.ws, name)[0]["row"].to_numpy()


def _containing(words: str) -> str:
    """The condition that a text of a sample contains some words, in any case."""
    looked_for = literal(words.lower())
    chats = (f"len(list_filter({name}, lambda m: contains(lower(m.content), {looked_for}))) > 0"
             for name in ("messages", "rejected"))  # fmt: skip
    return f"({' OR '.join([*chats, f'contains(lower(text), {looked_for})'])})"


def _by_rank(rows: np.ndarray, values: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows (ascending) that a manifest contains, in its order."""
    _, first = np.unique(ranked, return_index=True)
    ranked = ranked[np.sort(first)]
    places = np.searchsorted(rows, ranked)
    there = places < len(rows)
    there[there] = rows[places[there]] == ranked[there]
    return rows[places[there]], values[places[there]]


def sortable(ws: Workspace) -> list[str]:
    """The numeric columns of `samples`."""
    names = ["n_chars", "copies"]
    for score in ws.score_names():
        recipe = score_recipe(ws, score)
        dtypes: Mapping[str, str] = recipe.columns or {}
        shown = sample_columns(score, recipe)
        names += [name for column, name in shown.items() if column == "score" or dtypes.get(column, "id") != "id"]
    return names
