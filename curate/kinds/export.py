"""Exports: how the rows of a manifest become the input files of a trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.method import Method

if TYPE_CHECKING:  # a machine that only runs models has no Arrow, polars or torch to be imported here
    import pyarrow as pa


_MOST_OPEN = 900  # files that an export keeps open at once; the usual limit of a process is 1,024


@dataclass(frozen=True)
class Row:
    """One selected sample, ready to be exported to a trainer."""

    id: str
    source: str
    messages: list[dict[str, Any]] | None
    text: str | None
    meta: str = "{}"
    loss_weight: float = 1.0
    repeats: int = 1
    rank: int = 0
    part: str = ""

    @classmethod
    def of(cls, sample: str | Sequence[Mapping[str, str]]) -> Row:
        """A row from an in-memory sample: a text, or messages with role and content."""
        if isinstance(sample, str):
            return cls("0" * 16, "memory", None, sample)
        return cls("0" * 16, "memory", [{"extra": None, **m} for m in sample], None)

    def chat(self) -> list[dict[str, Any]]:
        """The messages as trainers know them: role, content and the keys kept in `extra`; [] for raw text."""
        return [
            {"role": m["role"], "content": m["content"], **(exact_json.loads(m["extra"]) if m["extra"] else {})}
            for m in self.messages or []
        ]


@dataclass(frozen=True)
class Part:
    """Rows of an export that are sampled at one rate: a domain of a mixture, or rows of similar weight.

    label: the name of the part, '' if it is the only one. rows: how many were written. share: its share of all draws.
    draws: how many draws of an epoch it receives, a whole number.
    """

    label: str
    rows: int
    share: float
    draws: int

    def file(self, name: str) -> str:
        """The name of its file, without extension, in the export of the manifest `name`."""
        return part_file(name, self.label)


def part_file(name: str, label: str) -> str:
    """The name of a part's file, without extension: NAME_LABEL, or NAME if the label is empty."""
    return f"{name}_{label}" if label else name


class Export(Method):
    """Writes the rows of a manifest as the files of one trainer.

    weighted: whether its rows can carry a weight. If not, `weights` decides what happens to a manifest with unequal
    weights: it is refused; its rows are repeated; or each source is split into `strata` parts by quantiles of the
    weights. blends: whether the trainer can draw from several parts at different rates, as a mixture requires.
    """

    weighted: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    weights: str = "refuse"
    strata: int = 0

    def check(self) -> None:
        """Raises CurateError if nothing can be written with these settings."""
        return None

    @abstractmethod
    def example(self, row: Row) -> dict[str, Any]:
        """One row as the trainer will see it. Raises CurateError if the format cannot represent it."""

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        """Write the configuration that lists the files for the trainer, and the sampling rates of the parts. final: the
        final location of `folder`, for trainers that need absolute paths. Returns the files written."""
        return []

    @abstractmethod
    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        """Write the files into an empty folder, reading one row at a time. Returns their paths."""

    def write_lines(self, path: Path, rows: Iterator[Row]) -> Path:
        """Write the examples as JSON Lines into one file."""
        with path.open("wb") as f:
            for row in rows:
                f.write(f"{exact_json.dumps(self.example(row))}\n".encode())
        return path

    def write_parts(self, rows: Iterator[Row], folder: Path, file: Callable[[Row], str]) -> list[Path]:
        """Write the examples as JSON Lines, each into FILE(row).jsonl. Returns the files."""
        buffers: dict[Path, list[bytes]] = {}
        for row in rows:
            lines = buffers.setdefault(folder / f"{file(row)}.jsonl", [])
            lines.append(f"{exact_json.dumps(self.example(row))}\n".encode())
            if len(lines) == 1024:
                _append(buffers, [folder / f"{file(row)}.jsonl"])
        _append(buffers, list(buffers))
        return list(buffers)

    def write_parquets(self, rows: Iterator[Row], schema: pa.Schema, file: Callable[[str], Path]) -> list[Path]:
        """Write the examples as Parquet, one file per part; file: from the part's label to its path."""
        import pyarrow.parquet as pq

        files: dict[Path, Any] = {}
        with ExitStack() as stack:
            for part, table in self.tables_by_part(rows, schema):
                if (path := file(part)) not in files:
                    if len(files) == _MOST_OPEN:
                        raise CurateError(f"at most {_MOST_OPEN} parts are written at once here; take fewer strata.")
                    path.parent.mkdir(exist_ok=True)
                    files[path] = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                files[path].write_table(table)
        return list(files)

    def tables(self, rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
        """The examples as tables of at most 1,024 rows."""
        for _, table in self.tables_by_part(rows, schema, parted=False):
            yield table

    def tables_by_part(
        self, rows: Iterator[Row], schema: pa.Schema, parted: bool = True
    ) -> Iterator[tuple[str, pa.Table]]:
        """The examples as tables of at most 1,024 rows of one part, with its label."""
        import pyarrow as pa

        buffers: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            buffer = buffers.setdefault(row.part if parted else "", [])
            buffer.append(self.example(row))
            if len(buffer) == 1024:
                yield row.part, pa.Table.from_pylist(buffer, schema=schema)
                buffer.clear()
        for part, remaining in buffers.items():
            if remaining:
                yield part, pa.Table.from_pylist(remaining, schema=schema)


def _append(buffers: Mapping[Path, list[bytes]], paths: Sequence[Path]) -> None:
    """Append the buffered lines to their files, which are closed again: parts may outnumber the open-file limit."""
    for path in paths:
        with path.open("ab") as f:
            f.writelines(buffers[path])
        buffers[path].clear()
