from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from curate import exact_json
from curate.kinds.export import Export, Part, Row

_COLUMNS = {
    "id": "str",
    "loss_weight": "float32",
    "messages": "json",
    "meta": "json",
    "rejected": "json",
    "source": "str",
    "template_kwargs": "json",
    "text": "str",
    "wanted": "json",
}
_SIZES = [4 if encoding == "float32" else None for encoding in _COLUMNS.values()]
_SHARD_BYTES = 1 << 26  # streaming's own default size


@dataclass(frozen=True)
class Mds(Export):
    """MosaicML Streaming: a folder of MDS shards for every part, and the streams that draw from them.

    Format: a folder `LABEL` (or `all`) for every part with `shard.00000.mds`, … and `index.json`, columns id, source,
    messages (JSON; [] for raw text), text ('' for chat), template_kwargs (JSON: tools, documents,
    chat_template_kwargs), rejected (JSON: of a preference pair the conversation with the other answer, else []), wanted
    (JSON: whether the last answer is wanted, else null), loss_weight, meta (JSON); `NAME.streams.json` with the
    arguments of each part's Stream, `local` and `choose`, the samples that an epoch takes of it:

        streams = [Stream(**one) for one in json.load(open("NAME.streams.json"))]
        mixed = StreamingDataset(streams=streams, batch_size=…)

    Cost: one read of the selected shards; of every part a shard of at most 64 MiB in memory.

    Departures: the shards are written here by the format's own layout, as the package mosaicml-streaming requires other
    versions of numpy and transformers than curate. Rows of different weights become parts of similar weight
    (weights=strata); the column `loss_weight` has a row's intended weight.

    Reference: mosaicml/streaming, docs/source/preparing_datasets/dataset_format.md and streaming/base/stream.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Mds().example(Row.of(said))["messages"][1]["content"]
    'an apple'
    """

    blends: ClassVar[bool] = True

    weights: Literal["refuse", "repeats", "strata"] = "strata"
    """If weights differ: make strata; repeat rows in proportion, keeping the total number of rows; or refuse them."""
    strata: int = 8
    """How many parts of similar weight, by quantiles, weights=strata makes of each source."""

    def example(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.id,
            "loss_weight": row.loss_weight,
            "messages": row.weighted_chat(),
            "meta": exact_json.loads(row.meta),
            "rejected": pair[0] + pair[2] if (pair := row.pair()) else [],
            "source": row.source,
            "template_kwargs": row.kwargs() if row.template_kwargs else {},
            "text": row.text or "",
            "wanted": row.wanted,
        }

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        shards: dict[Path, _Shards] = {}
        while batch := list(islice(rows, 1024)):
            for row in batch:
                writer = shards.setdefault(folder / (row.part or "all"), _Shards(folder / (row.part or "all")))
                writer.add(self.example(row))
        return [file for writer in shards.values() for file in writer.close()]

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        streams = [{"local": str(final / (part.label or "all")), "choose": part.draws} for part in parts if part.draws]
        path = folder / f"{name}.streams.json"
        path.write_text(json.dumps(streams, indent=2) + "\n", encoding="utf-8")
        return [path]


class _Shards:
    """One folder of shards, each a header (number of samples, where each begins, what the columns are), then the
    samples."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, list[Path]()
        self._told: list[dict[str, Any]] = []
        self._samples: list[bytes] = []
        self._bytes = 0

    def add(self, sample: dict[str, Any]) -> None:
        data = _encoded(sample)
        if self._samples and self._bytes + len(data) > _SHARD_BYTES:
            self._flush()
        self._samples.append(data)
        self._bytes += len(data)

    def close(self) -> list[Path]:
        self._flush()
        index = self.folder / "index.json"
        index.write_text(json.dumps({"shards": self._told, "version": 2}, sort_keys=True), encoding="utf-8")
        return [*self.files, index]

    def _flush(self) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"shard.{len(self.files):05d}.mds"
        config = {
            "column_encodings": list(_COLUMNS.values()),
            "column_names": list(_COLUMNS),
            "column_sizes": _SIZES,
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": _SHARD_BYTES,
            "version": 2,
        }
        header = json.dumps(config, sort_keys=True).encode()
        ends = np.cumsum([0, *map(len, self._samples)], dtype=np.uint64)
        begin = 4 + 4 * len(ends) + len(header)
        head = np.uint32(len(self._samples)).tobytes() + (ends + np.uint64(begin)).astype(np.uint32).tobytes()
        path.write_bytes(b"".join([head, header, *self._samples]))
        raw = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {}}
        self._told.append({**config, "raw_data": raw, "samples": len(self._samples), "zip_data": None})
        self.files.append(path)
        self._samples, self._bytes = [], 0


def _encoded(sample: dict[str, Any]) -> bytes:
    """A sample's columns in the order of their names: the sizes of those that vary, then all values."""
    values = []
    for name, encoding in _COLUMNS.items():
        value = sample[name]
        if encoding == "float32":
            values.append(np.float32(value).tobytes())
        else:
            values.append((value if encoding == "str" else exact_json.dumps(value)).encode())
    sizes = [len(v) for v, size in zip(values, _SIZES, strict=True) if size is None]
    return np.array(sizes, np.uint32).tobytes() + b"".join(values)
