"""Metadata that came later: a known sample read again with other fields, where `ingest --meta` lets it replace them.

Shards are immutable, and scores are tied to them, so what came later is stored beside: pool/meta/PART.parquet has the
ids and whole new `meta` of samples of earlier shards, certified by the record of the part as copies are. Of several the
last one holds.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import polars as pl
import pyarrow as pa

from curate import exact_json
from curate.store.encoding import read_table
from curate.store.object_store import Location
from curate.store.workspace import Workspace

MetaRule: TypeAlias = Literal["keep", "replace", "merge"]
RULES: tuple[MetaRule, ...] = ("keep", "replace", "merge")
SCHEMA = pa.schema([("id", pa.string()), ("meta", pa.string())])


def meta_path(ws: Workspace, part: str) -> Location:
    """The file beside a part of the pool."""
    return ws.path / "pool" / "meta" / f"{part}.parquet"


def meta_files(ws: Workspace) -> list[Location]:
    """All such files, the oldest first."""
    return [meta_path(ws, part) for part, record in sorted(ws.pool.records().items()) if "meta" in record["beside"]]


def with_later_meta(ws: Workspace, table: pa.Table) -> pa.Table:
    """Rows of the pool (columns: id and meta among them) with the metadata that came later."""
    files = meta_files(ws)
    if not files or "meta" not in table.column_names:
        return table
    later = pl.concat([pl.DataFrame(read_table(file, SCHEMA.names)) for file in files]).unique("id", keep="last")
    ids = pl.DataFrame(table.select(["id"]))
    found = ids.join(later, on="id", how="left", maintain_order="left")["meta"]
    meta = pl.Series(table["meta"])
    merged = pl.select(pl.coalesce(found, meta).alias("meta"))["meta"].to_arrow().cast(pa.string())
    return table.set_column(table.column_names.index("meta"), "meta", merged)


def stored_meta(ws: Workspace, ids: set[str]) -> dict[str, str]:
    """The present metadata of stored samples, by id. Reads the ids of the pool, shard by shard."""
    found: dict[str, str] = {}
    for shard in ws.shards():
        table = read_table(shard.path, ["id"])
        positions = pl.Series(table["id"]).is_in(list(ids)).arg_true()
        if len(positions):
            rows = read_table(shard.path, ["id", "meta"]).take(positions.to_arrow())
            rows = with_later_meta(ws, rows)
            found |= dict(zip(rows["id"].to_pylist(), rows["meta"].to_pylist(), strict=True))
    return found


def combined(old: str, new: str, rule: MetaRule) -> str | None:
    """The metadata of a sample that had `old` and was read again with `new`; None if that changes nothing.

    keep: the old one; replace: the new one; merge: the fields of both, of a field in both the new value.
    """
    if old == new:
        return None
    before, after = exact_json.loads(old), exact_json.loads(new)
    result = after if rule == "replace" else {**before, **after}
    return None if result == before else exact_json.dumps(result)


def meta_notes(n: int, rule: MetaRule) -> list[str]:
    """What to say of n known samples that came with other fields."""
    if not n:
        return []
    done = {"keep": "kept", "replace": "replaced", "merge": "merged with the new ones"}[rule]
    hint = "; --meta replace or merge takes the new ones" if rule == "keep" else ""
    return [f"{n:,} known samples came with other fields; those in the pool were {done}{hint}"]
