from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow.parquet as pq

from curate.kinds.export import Export, Part, Row
from curate.store.schema import EXPORTED


@dataclass(frozen=True)
class Litdata(Export):
    """litdata: a folder of Parquet with its index for every part, and the weights that draw from them.

    Format: a folder `LABEL` (or `all`) for every part with `part-0.parquet` (columns as in `parquet`) and litdata's
    `index.json`; `NAME.litdata.json` with `folders` and `weights`:

        told = json.load(open("NAME.litdata.json"))
        parts = [StreamingDataset(f, item_loader=ParquetLoader(), shuffle=True) for f in told["folders"]]
        mixed = CombinedStreamingDataset(parts, weights=told["weights"], iterate_over_all=False)

    An epoch of it ends where the first part does. Without `shuffle=True` every epoch would show the first rows again.

    Cost: one read of the selected shards; of every part 1,024 rows in memory, and an open file (at most 900).

    Departures: Parquet, which litdata streams as it is, instead of its own chunks, whose layout changes with its
    versions. Rows of different weights become parts of similar weight (weights=strata); with `iterate_over_all=True`,
    its default, litdata refuses weights.

    Reference: Lightning-AI/litdata, README (Parquet; combine datasets) and src/litdata/streaming/combined.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Litdata().example(Row.of(said))["source"]
    'memory'
    """

    blends: ClassVar[bool] = True

    weights: Literal["refuse", "repeats", "strata"] = "strata"
    """If weights differ: make strata; repeat rows in proportion, keeping the total number of rows; or refuse them."""
    strata: int = 8
    """How many parts of similar weight, by quantiles, weights=strata makes of each source."""

    def example(self, row: Row) -> dict[str, Any]:
        return {name: getattr(row, name) for name in EXPORTED.names}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        files = self.write_parquets(rows, EXPORTED, lambda part: folder / (part or "all") / "part-0.parquet")
        return [file for path in files for file in (path, _index(path))]

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        config = {
            "folders": [str(final / (part.label or "all")) for part in parts],
            "weights": [part.share for part in parts],
        }
        path = folder / f"{name}.litdata.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return [path]


def _index(path: Path) -> Path:
    """The index that litdata makes of a folder of Parquet, for a folder of one file."""
    rows, size = pq.read_metadata(path).num_rows, path.stat().st_size
    chunk = {"chunk_bytes": size, "chunk_size": rows, "dim": None, "filename": path.name}
    unset = dict.fromkeys(("chunk_bytes", "chunk_size", "compression", "data_spec", "encryption"))
    schema = [str(kind) for kind in pq.read_schema(path).types]
    index = {
        "chunks": [chunk],
        "config": {**unset, "data_format": schema, "item_loader": "ParquetLoader"},
        "updated_at": "0",
    }
    file = path.with_name("index.json")
    file.write_text(json.dumps(index), encoding="utf-8")
    return file
