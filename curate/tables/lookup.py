"""Samples of the pool by row: SQL values and contents, with one shard in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curate import exact_json
from curate.errors import CurateError
from curate.preferences import prompt_length
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.later_meta import with_later_meta
from curate.store.recipes import TableRecipe
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.state import TableState, score_state
from curate.tables.vector_table import vectors_of
from curate.tables.views import in_files

TOKENS = "n_chars / 4.0"  # tokens of a sample by the usual rule of thumb for English; --token-count overrides it
GUESSED = (
    f"the budget's tokens are a guess, {TOKENS}: `curate score tokens --model MODEL` counts those that a trainer of it "
    "will see"
)


def scores_of(ws: Workspace, *expressions: str | None) -> list[TableState]:
    """The scores that SQL expressions over `samples` use."""
    return [score_state(ws, name) for name in sql.scores_named(ws, *expressions)]


def token_count(ws: Workspace, given: str | None, is_budget: bool) -> str:
    """SQL for the tokens of a sample: what is given; else, for a budget in tokens, the first complete score `tokens`,
    or else the column `tokens` of the first complete score that counted them for every sample by a model's tokenizer
    (the answer's tokens); else TOKENS."""
    if given is None and is_budget:
        states = [score_state(ws, name) for name in ws.score_names()]
        complete = [state for state in states if not state.nulls and not state.problem() and state.recipe.models]
        columns = [state.name for state in complete if _counts_whole(state.recipe)]
        columns += [f"{state.name}_tokens" for state in complete if "tokens" in (state.recipe.columns or {})]
        return next(iter(columns), TOKENS)
    return given or TOKENS


def _counts_whole(recipe: TableRecipe) -> bool:
    return recipe.method == "tokens" and recipe.settings.get("of", "whole") == "whole"


def column_of(ws: Workspace, expression: str, rows: np.ndarray) -> np.ndarray:
    """The values of an SQL expression over `samples` at n rows of the pool, float64 [n]; NaN where it is NULL."""
    # The newline ends an SQL comment in the expression.
    table = sql.fetch(ws, f'SELECT ({expression}\n)::DOUBLE AS "value" FROM samples ORDER BY row')
    return table["value"].to_numpy()[rows]


def texts_of(ws: Workspace, expression: str, rows: np.ndarray) -> list[str | None]:
    """The values of an SQL expression over `samples` at some rows of the pool, as texts; None where it is NULL."""
    table = sql.fetch(ws, f'SELECT ({expression}\n)::VARCHAR AS "value" FROM samples ORDER BY row')
    return table["value"].take(pa.array(rows)).to_pylist()


def samples_at(
    ws: Workspace, rows: np.ndarray, ids: pa.ChunkedArray, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """The samples at some rows of the pool, in the pool's order, by shard: their positions in `rows`, and a table.

    Raises CurateError if a row does not exist, or is not the sample of that id.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    if len(rows) and (ordered[0] < 0 or ordered[-1] >= ws.n_rows()):
        raise CurateError(
            f"row {int(ordered[-1] if ordered[0] >= 0 else ordered[0])} is not in the pool, which has {ws.n_rows()}; "
            "the pool was remade, so select again."
        )
    for shard in ws.shards():
        first, stop = np.searchsorted(ordered, [shard.start, shard.start + shard.rows])
        if first == stop:
            continue
        positions = pa.array(ordered[first:stop] - shard.start)
        table = read_table(shard.path, list(dict.fromkeys(["id", *columns]))).take(positions)
        expected, actual = ids.take(pa.array(order[first:stop])), table["id"]
        differ = not expected.equals(actual)  # told without a Python string for each
        for row, expected_id, actual_id in (
            zip(ordered[first:stop], expected.to_pylist(), actual.to_pylist(), strict=True) if differ else ()
        ):
            if expected_id != actual_id:
                raise CurateError(
                    f"the sample {expected_id} is not at row {row} of the pool, where {actual_id} is; the pool was "
                    "remade, so select again."
                )
        yield order[first:stop], with_later_meta(ws, table)


def find_sample(ws: Workspace, sample_id: str) -> tuple[int, str] | None:
    """The position in the pool, and the whole id, of the only sample whose id begins so; None if there is none.

    Raises CurateError if several begin so.
    """
    beginning = sample_id.strip().lower()
    if not re.fullmatch("[0-9a-f]{1,16}", beginning):
        return None
    condition = f"id >= '{beginning}' AND id < '{beginning}g'"  # all hex digits come before a g
    if not ws.n_rows():
        return None
    found = sql.fetch(ws, f"SELECT row, id FROM ({in_files(ws, ['id'], condition)}) ORDER BY id").to_pylist()
    one = only(beginning, [row["id"] for row in found], f"samples of {ws.path}")
    return next((int(row["row"]), row["id"]) for row in found if row["id"] == one) if one else None


def only(beginning: str, ids: Sequence[str], of: str) -> str | None:
    """The only id of these, all of which begin so; None if there is none. Raises CurateError if there are several."""
    distinct = list(dict.fromkeys(ids))
    if len(distinct) > 1:
        raise CurateError(
            f"'{beginning}' begins the ids of {len(distinct):,} {of}: {', '.join(distinct[:3])}"
            f"{', …' if len(distinct) > 3 else ''}; give more of its digits."
        )
    return distinct[0] if distinct else None


def no_sample(ws: Workspace, sample_id: str) -> CurateError:
    """The error for an id that is not in the pool."""
    return CurateError(
        f"{ws.path} has no sample '{sample_id}'; ids are 16 hex digits, as `curate sql` shows them, of which the first "
        "few do if no other begins so."
    )


def vector_at(ws: Workspace, state: TableState, row: int) -> np.ndarray:
    """The unit vector of the sample at a row, float32 [1, D]. Raises CurateError if it has none."""
    parts = Parts(ws.table_folder("vectors", state.name))
    for shard in state.done:
        if shard.start <= row < shard.start + shard.rows:
            offset = row - shard.start
            vectors = vectors_of(read_table(parts.path(shard.name), None, (offset, offset + 1)))
            if vectors.there[0]:
                return vectors.unit.astype(np.float32)
            raise CurateError(f"that sample has no vector in '{state.name}': {vectors.error[0]}.")
    raise CurateError(f"{state} do not have that sample yet; run `{state.command()}`.")


def shown(ws: Workspace, places: Sequence[int]) -> Mapping[int, dict[str, Any]]:
    """Samples by position in the pool: id, source, row, and contents as one text."""
    if not places:
        return {}
    listed = ", ".join(map(str, places))
    rows = sql.rows(
        ws, f"SELECT row, id, source, messages, text, template_kwargs, rejected FROM pool WHERE row IN ({listed})"
    )
    return {r["row"]: {"id": r["id"], "source": r["source"], "row": r["row"], "text": words(r)} for r in rows}


def words(sample: Mapping[str, Any]) -> str:
    """A sample's contents as one text."""
    if sample["messages"] is None:
        return sample["text"] or ""
    kwargs = exact_json.loads(sample["template_kwargs"]) if sample.get("template_kwargs") else {}
    lines = [f"{name}: {exact_json.dumps(value)}" for name, value in kwargs.items()]
    lines += [m["content"] or "" for m in sample["messages"]]
    if rejected := sample.get("rejected"):
        lines += [f"rejected: {m['content'] or ''}" for m in rejected[prompt_length(sample["messages"], rejected) :]]
    return "\n".join(lines)
