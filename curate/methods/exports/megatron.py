from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, part_file

_MOST_PARTS = 32_766  # Megatron-LM numbers its datasets with an int16
_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}  # as its IndexedDataset knows them


@dataclass(frozen=True)
class Megatron(Export):
    """Megatron-LM and NeMo: tokens as `.bin` and `.idx` for every part, and the `--data-path` that blends them.

    Format: `NAME_LABEL.bin` and `.idx` (an IndexedDataset: one document a sample, its end marked by the tokenizer's
    end-of-text; uint16 where the vocabulary is below 65,500, else int32); `NAME.args` with the argument
    `--data-path WEIGHT PREFIX …`; `NAME.nemo.json` with the same list under `data_prefix`. A chat is rendered by the
    tokenizer's chat template. A part's weight is its share of the tokens that are drawn, times 100.

    Cost: tokenising; 1,024 rows in memory, and 40 bytes per sample.

    Departures: Megatron trains on all tokens of a document: which are the assistant's is not kept. Rows of different
    weights become parts of similar weight (weights=strata). Megatron allows fewer than 32,767 parts.

    Reference: NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py and `--data-path` of its arguments.

    >>> Megatron(tokenizer="tiny").example(Row.of("an apple"))["tokens"]
    4
    """

    blends: ClassVar[bool] = True

    tokenizer: str = ""
    """Whose tokenizer: a folder, a hub id, or tiny, smollm2-135m."""
    end: bool = True
    """Whether every document ends with the end-of-text token (Megatron's --append-eod)."""
    special_tokens: Literal["text", "parse"] = "text"
    """Control tokens of the model in a sample's texts are text, or parsed, as in a model's setting."""
    weights: Literal["refuse", "repeats", "strata"] = "strata"
    """If weights differ: make strata; repeat rows in proportion, keeping the total number of rows; or refuse them."""
    strata: int = 8
    """How many parts of similar weight, by quantiles, weights=strata makes of each source."""

    @cached_property
    def _tokenizer(self) -> Any:
        from curate.models.choice import ModelChoice
        from curate.models.load import load_tokenizer

        return load_tokenizer(ModelChoice(self.tokenizer))

    def holds_tokens(self) -> bool:
        return True

    def check(self) -> None:
        if not self.tokenizer:
            raise CurateError("Megatron's files hold tokens: say whose, by --set tokenizer=MODEL (a folder or hub id).")
        if self.end and self._tokenizer.eos_token_id is None:
            raise CurateError(f"the tokenizer '{self.tokenizer}' has no end-of-text token; take --set end=false.")

    def example(self, row: Row) -> dict[str, Any]:
        (ids,) = self._tokens([row])
        return {"tokens": len(ids), "text": self._tokenizer.decode(ids)}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        writers: dict[str, _Indexed] = {}
        while batch := list(islice(rows, 1024)):
            documents: dict[str, list[np.ndarray]] = {}
            for row, ids in zip(batch, self._tokens(batch), strict=True):
                documents.setdefault(part_file(name, row.part), []).append(ids)
            for prefix, group in documents.items():
                writer = writers.setdefault(prefix, _Indexed(folder / f"{prefix}.bin", self._dtype))
                writer.add(group)
        for prefix, writer in writers.items():
            writer.index(folder / f"{prefix}.idx")
        return [folder / f"{prefix}{ending}" for prefix in writers for ending in (".bin", ".idx")]

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        if len(parts) > _MOST_PARTS:
            raise CurateError(f"Megatron blends fewer than 32,767 files, not {len(parts):,}; take fewer strata.")
        size = self._dtype.itemsize
        mean = [(folder / f"{part.file(name)}.bin").stat().st_size / size / part.rows for part in parts]
        mass = np.array([part.share * tokens for part, tokens in zip(parts, mean, strict=True)])
        weights = [f"{weight:.8g}" for weight in 100 * mass / mass.sum()]
        prefixes = [str(final / part.file(name)) for part in parts]
        blend = [word for pair in zip(weights, prefixes, strict=True) for word in pair]
        arguments, nemo = folder / f"{name}.args", folder / f"{name}.nemo.json"
        arguments.write_text(shlex.join(["--data-path", *blend]) + "\n", encoding="utf-8")
        nemo.write_text(json.dumps({"data_prefix": blend}, indent=2) + "\n", encoding="utf-8")
        return [arguments, nemo]

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if len(self._tokenizer) < 65_500 else np.int32)

    def _tokens(self, rows: Sequence[Row]) -> list[np.ndarray]:
        from curate.models.tokens import encode

        for row in rows:
            row.refuse_preferences("a file of Megatron's documents")
        samples = [{"messages": row.messages, "text": row.text, "template_kwargs": row.template_kwargs} for row in rows]
        encoded = encode(self._tokenizer, samples, 1 << 40, add_eos_token=self.end, special_tokens=self.special_tokens)
        for row, sample in zip(rows, encoded, strict=True):
            if sample.error:
                raise CurateError(f"sample {row.id} {sample.error}, so it is no document of Megatron's.")
        end = [self._tokenizer.eos_token_id] if self.end else []
        return [
            np.append(sample.ids, [] if self._has_ended(sample.ids) else end).astype(self._dtype) for sample in encoded
        ]

    def _has_ended(self, ids: np.ndarray) -> bool:
        """Whether nothing but white space is behind the last end-of-text token, as after many chat templates' turns."""
        last = np.flatnonzero(ids[-8:] == self._tokenizer.eos_token_id)
        return bool(len(last)) and not self._tokenizer.decode(ids[-8:][last[-1] + 1 :]).strip()


class _Indexed:
    """Documents written to a .bin, and what its .idx has to record about them."""

    def __init__(self, file: Path, dtype: np.dtype[Any]):
        self.file, self.dtype = file, dtype
        self.lengths: list[int] = []

    def add(self, documents: Sequence[np.ndarray]) -> None:
        with self.file.open("ab") as f:
            f.writelines(ids.tobytes() for ids in documents)
        self.lengths += map(len, documents)

    def index(self, path: Path) -> None:
        lengths = np.array(self.lengths, np.int32)
        starts = (np.cumsum(lengths, dtype=np.int64) - lengths) * self.dtype.itemsize
        documents = np.arange(len(lengths) + 1, dtype=np.int64)
        head = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, _CODES[self.dtype])
        counts = struct.pack("<QQ", len(lengths), len(documents))
        path.write_bytes(b"".join([head, counts, lengths.tobytes(), starts.tobytes(), documents.tobytes()]))
