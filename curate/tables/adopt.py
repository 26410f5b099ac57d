"""Vouching again for a part of the pool whose record was lost: a sample's id is made from its content, so that the
part's rows can be checked against themselves."""

from __future__ import annotations

from typing import Any

from curate.errors import CurateError
from curate.hashing import content_id
from curate.store.commits import described
from curate.store.encoding import digest, parquet_of, size
from curate.store.schema import CONTENT, POOL
from curate.store.workspace import Workspace


def adopted(ws: Workspace, name: str) -> dict[str, Any]:
    """The record of a part of the pool, made from its file. What only the record had is lost: how far the input files
    were read (they count as new), and which files of copies and rejects belong to it.

    Raises CurateError if the file is no table of samples, or a row is not what its id says.
    """
    path = ws.pool.path(name)
    data = path.read_bytes()
    try:
        table = parquet_of(data)
        rows = table.select([column for column in ("id", *CONTENT) if column in table.column_names]).to_pylist()
    except Exception as error:  # Arrow's errors are of many types; all mean the same  # noqa: BLE001
        raise CurateError(f"{path} is no table that can be read ({type(error).__name__}); restore a copy.") from None
    if lacking := [column for column in POOL.names[:7] if column not in table.column_names]:
        raise CurateError(f"{path} has no column {lacking[0]}: it is no part of a pool.")
    for row in rows:
        sample_id = row.pop("id")
        if content_id(**row) != sample_id:
            raise CurateError(f"{path}: the sample {sample_id} is not what its id says; restore a copy.")
    pool = ws.path / "pool"
    folders = {"rejects": ws.path / "rejects", "copies": pool / "copies", "meta": pool / "meta"}
    files = {kind: folder / f"{name}.parquet" for kind, folder in folders.items()}
    beside = {kind: digest(file.read_bytes()) for kind, file in files.items() if size(file)}
    n_chars = int(sum(table["n_chars"].to_pylist()))
    described_as = {"rows": table.num_rows, "schema": described(table.schema), "n_chars": n_chars}
    return {"sha256": digest(data), "bytes": len(data), **described_as, "files": {}, "beside": beside}
