"""The columns of every table in a workspace (Arrow schemas), and the names a user may give."""

from __future__ import annotations

import pyarrow as pa

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])

POOL = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),  # null for raw text
        ("text", pa.string()),  # null for chat
        ("copies", pa.int32()),
        ("n_chars", pa.int32()),
        ("meta", pa.string()),  # JSON of every other input field
    ]
)
TARGET = pa.schema([*POOL, ("subtask", pa.string()), ("split", pa.string())])
COPIES = pa.schema([("id", pa.string()), ("copies", pa.int32())])
REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),  # 1-based line of a JSONL file, 1-based row of any other
        ("reason", pa.string()),
        ("raw", pa.string()),  # cut
        ("into", pa.string()),  # 'pool', or 'target NAME'
    ]
)
MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("source", pa.string()),
        ("weight", pa.float32()),
        ("repeats", pa.int32()),
        ("rank", pa.int64()),
    ]
)
EXPORTED = pa.schema(  # a selected sample in the exports that have columns
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("text", pa.string()),
        ("weight", pa.float32()),
        ("rank", pa.int64()),
        ("meta", pa.string()),
    ]
)
LEDGER = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("stage", pa.string()),
        ("methods", pa.list_(pa.string())),
        ("name", pa.string()),
        ("phase", pa.string()),
        ("model", pa.string()),
        ("n_params", pa.int64()),
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("padded_tokens", pa.int64()),
        ("flops_paper", pa.float64()),
        ("flops", pa.float64()),
        ("flops_counted", pa.float64()),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("peak_bytes", pa.int64()),
        ("run", pa.string()),
    ]
)
RUNS = pa.schema([("name", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("config", pa.string())])

# Views of `curate sql`, and columns of `samples` that no score may shadow.
VIEWS = ("pool", "targets", "rejects", "ledger", "runs", "samples")
POOL_COLUMNS = (*POOL.names, "row")
