from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from curate.kinds.export import Export, Row
from curate.store.schema import EXPORTED


@dataclass(frozen=True)
class Parquet(Export):
    """One Parquet file: id, source, messages, text, loss_weight, rank, meta, template_kwargs, rejected, wanted.

    Format: `NAME.parquet`; messages list<struct<role, content, extra>> (NULL for raw text), text (NULL for chat),
    loss_weight float32, rank int64, meta a JSON text, template_kwargs a JSON text of tools, documents and
    chat_template_kwargs (NULL without). Of a preference pair `messages` is the conversation with the chosen answer and
    `rejected` the one with the other; `wanted` says whether the last answer is wanted (else both NULL). `curate
    ingest` reads it back to the same ids.

    Cost: one read of the selected shards; 1,024 rows in memory.

    Reference: read by `datasets.load_dataset("parquet", data_files=…)`, pandas, polars, DuckDB.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Parquet().example(Row.of(said))["loss_weight"]
    1.0
    """

    weighted: ClassVar[bool] = True

    def example(self, row: Row) -> dict[str, Any]:
        return {name: getattr(row, name) for name in EXPORTED.names}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        path = folder / f"{name}.parquet"
        with pq.ParquetWriter(path, EXPORTED, compression="zstd") as writer:
            for table in self.tables(rows, EXPORTED):
                writer.write_table(table)
        return [path]
