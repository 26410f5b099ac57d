"""Columns of tables that other tools wrote (Parquet, Arrow, CSV, TSV, JSON Lines), read in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds

from curate.errors import CurateError, nearest
from curate.store.input_files import find_inputs
from curate.store.json_rows import first_line
from curate.store.separated_values import DELIMITERS

_PIECE = 1 << 20


@dataclass(frozen=True)
class ForeignTable:
    """The files of one table, all of one kind (as curate.store.input_files has it) and with the same columns. texts:
    columns of CSV that are read as text although they may look like numbers, such as ids."""

    files: tuple[Path, ...]
    kind: str
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Sequence[str], texts: Sequence[str] = ()) -> ForeignTable:
        """The table in some files, folders or globs. Raises CurateError if one is none of these formats."""
        inputs = [one for path in paths for one in find_inputs(path).inputs]
        for one in inputs:
            if one.kind not in ("parquet", "arrow", "jsonl", *DELIMITERS):
                raise CurateError(
                    f"{one.path} is {_KINDS.get(one.kind, one.kind)}; what is attached is Parquet, Arrow, CSV, TSV or "
                    "JSON Lines, in files of its own."
                )
        kinds = sorted({one.kind for one in inputs})
        if not kinds:
            raise CurateError("name at least one file to attach.")
        if len(kinds) > 1:
            raise CurateError(f"the files are of several formats ({', '.join(kinds)}); attach those of one.")
        return cls(tuple(Path(one.path) for one in inputs), kinds[0], tuple(texts))

    def schema(self) -> pa.Schema:
        """The columns and their types. Raises CurateError if the files cannot be read, or differ in their columns."""
        schemas = [self._dataset(file).schema for file in self.files]
        for file, schema in zip(self.files[1:], schemas[1:], strict=True):
            if schema.names != schemas[0].names:
                raise CurateError(f"{file} has other columns than {self.files[0]}; attach them one by one.")
        return schemas[0]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns, batch by batch, in the order of the files. Raises CurateError for a damaged file."""
        for file in self.files:
            try:
                data = self._dataset(file)
                fields = {column: pc.field(*_path(column, data.schema)) for column in columns}
                yield from data.scanner(columns=fields, use_threads=True).to_batches()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise CurateError(f"{file} cannot be read ({first_line(error)}).") from None

    def digests(self) -> dict[str, str]:
        """File -> its SHA-256."""
        return {str(file): _digest(file) for file in self.files}

    def require(self, column: str, schema: pa.Schema) -> pa.Field:
        """A column, or with dots a field in one. Raises CurateError if there is none of that name."""
        found, path = None, _path(column, schema)
        for name in path:
            inside = list(schema) if found is None else _fields(found.type)
            found = next((one for one in inside if one.name == name), None)
            if found is None:
                raise CurateError(
                    f"{self.files[0]} has no column '{column}': {nearest(name, [f.name for f in inside])}"
                )
        assert found is not None
        return found.with_name(column)

    def _dataset(self, file: Path) -> ds.Dataset:
        try:
            return ds.dataset(file, format=self._format())
        except (pa.ArrowException, OSError, ValueError) as error:
            kind = self.kind.removeprefix(".")
            raise CurateError(f"{file} cannot be read as {kind} ({first_line(error)}).") from None

    def _format(self) -> str | ds.FileFormat:
        if self.kind in DELIMITERS:
            as_text = {name: pa.string() for name in self.texts}
            return ds.CsvFileFormat(
                parse_options=pa_csv.ParseOptions(delimiter=DELIMITERS[self.kind], newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(column_types=as_text),
            )
        return {"parquet": "parquet", "arrow": "ipc", "jsonl": "json"}[self.kind]


_KINDS = {
    "json": "a JSON array (write one object per line)",
    "dataset": "a folder that datasets saved (name its Arrow files)",
    "hub": "a dataset of the hub (download its files)",
    "empty": "empty",
}


def _path(column: str, schema: pa.Schema) -> list[str]:
    """The names that lead to a column: itself, or a column's, and those of fields within, which have dots between."""
    names, rest, inside = list[str](), column, list(schema)
    while rest:
        whole = [field for field in inside if rest == field.name or rest.startswith(f"{field.name}.")]
        if not whole:
            return [*names, rest]
        longest = max(whole, key=lambda field: len(field.name))
        names.append(longest.name)
        rest, inside = rest[len(longest.name) + 1 :], _fields(longest.type)
    return names


def _fields(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
