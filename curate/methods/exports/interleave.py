from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate.kinds.export import Export, Part, Row, part_file
from curate.store.schema import EXPORTED


@dataclass(frozen=True)
class Interleave(Export):
    """Parquet files for `datasets.interleave_datasets`, and the probabilities that go with them.

    Format: `NAME_LABEL.parquet` for every part (columns as in `parquet`), and `NAME.interleave.json` with `files`,
    `probabilities`, `seed` and `stopping_strategy`:

        told = json.load(open("NAME.interleave.json"))
        parts = [load_dataset("parquet", data_files=f, split="train") for f in told.pop("files")]
        mixed = interleave_datasets(parts, **told)

    Cost: one read of the selected shards; of every part 1,024 rows in memory, and an open file (at most 900).

    Departures: rows of different weights become parts of similar weight (weights=strata). The column `loss_weight` has
    a row's intended weight; a trainer that multiplies losses by it would count it twice.

    Reference: https://huggingface.co/docs/datasets, `interleave_datasets`.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Interleave().example(Row.of(said))["source"]
    'memory'
    """

    blends: ClassVar[bool] = True

    weights: Literal["refuse", "repeats", "strata"] = "strata"
    """If weights differ: make strata; repeat rows in proportion, keeping the total number of rows; or refuse them."""
    strata: int = 8
    """How many parts of similar weight, by quantiles, weights=strata makes of each source."""
    stopping_strategy: Literal["all_exhausted", "first_exhausted"] = "all_exhausted"
    """all_exhausted: parts that end start again until all have ended; first_exhausted: stop when the first ends."""
    seed: int = 0
    """Seed of the interleaving."""

    def example(self, row: Row) -> dict[str, Any]:
        return {name: getattr(row, name) for name in EXPORTED.names}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return self.write_parquets(rows, EXPORTED, lambda part: folder / f"{part_file(name, part)}.parquet")

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        config = {
            "files": [str(final / f"{part.file(name)}.parquet") for part in parts],
            "probabilities": [part.share for part in parts],
            "seed": self.seed,
            "stopping_strategy": self.stopping_strategy,
        }
        path = folder / f"{name}.interleave.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return [path]
