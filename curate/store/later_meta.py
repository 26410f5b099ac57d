"""Metadata that came later: a known sample read again with other fields, where `ingest --meta` lets it replace them.

Shards are immutable, and scores are tied to them, so what came later is stored beside: pool/meta/PART.parquet has the
ids and whole new `meta` of samples of earlier shards, certified by the record of the part as copies are. Of several the
last one holds.
"""

from __future__ import annotations

import pyarrow as pa

from curate.store.encoding import read_table
from curate.store.object_store import Location
from curate.store.workspace import Workspace

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
    import polars as pl

    later = pl.concat([pl.DataFrame(read_table(file, SCHEMA.names)) for file in files]).unique("id", keep="last")
    ids = pl.DataFrame(table.select(["id"]))
    found = ids.join(later, on="id", how="left", maintain_order="left")["meta"]
    meta = pl.Series(table["meta"])
    merged = pl.select(pl.coalesce(found, meta).alias("meta"))["meta"].to_arrow().cast(pa.string())
    return table.set_column(table.column_names.index("meta"), "meta", merged)


def stored_meta(ws: Workspace, ids: set[str]) -> dict[str, str]:
    """The present metadata of stored samples, by id. Reads the ids of the pool, shard by shard."""
    import polars as pl

    found: dict[str, str] = {}
    for shard in ws.shards():
        table = read_table(shard.path, ["id"])
        positions = pl.Series(table["id"]).is_in(list(ids)).arg_true()
        if len(positions):
            rows = read_table(shard.path, ["id", "meta"]).take(positions.to_arrow())
            rows = with_later_meta(ws, rows)
            found |= dict(zip(rows["id"].to_pylist(), rows["meta"].to_pylist(), strict=True))
    return found
