"""`ledger` and `compare` with 10,000 entries: in a file each, as earlier versions kept them, and merged.

    python -m tests.bench.ledger [ENTRIES]

Limit: reading one Parquet file of as many rows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import curate
from curate.store.encoding import parquet, read_table
from curate.store.ledger_files import append, names_of, read_entries
from curate.store.schema import LEDGER
from tests.bench.timing import machine, ratio, told
from tests.conftest import qa, write_jsonl


def build(folder: Path) -> None:
    """A workspace with one run and its few entries."""
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, write_jsonl(folder / "pool.jsonl", qa(8)))
    curate.train(ws, "run", model="tiny", steps=1, batch_size=2)


def copied(ledger: Path, entries: int) -> None:
    """Copies of one entry under other names, which no list names."""
    data = parquet(read_table(ledger / f"{names_of(ledger)[0]}.parquet", LEDGER.names))
    for i in range(entries):
        (ledger / f"part-{i:08d}-1.parquet").write_bytes(data)


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    machine("duckdb", "pyarrow")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        for folder in (one, other):
            build(Path(folder))
            copied(Path(folder) / "ws/ledger", entries)
        many, few = Path(one) / "ws", Path(other) / "ws"
        append(few, "part-99999999-1", read_entries(few).table.to_pylist()[0])
        kept = read_entries(few).table.num_rows
        print(f"{kept:,} entries in {len(names_of(many / 'ledger')):,} and in {len(names_of(few / 'ledger'))} files")
        for name, command in {"ledger": curate.ledger, "compare": curate.compare}.items():
            found = ratio(lambda c=command: c(many), lambda c=command: c(few), pairs=2)
            told(f"{name}: a file for each entry / merged", found, "> 2x", found[0] > 2)


if __name__ == "__main__":
    main()
