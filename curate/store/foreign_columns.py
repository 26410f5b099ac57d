"""Columns of tables that other tools wrote (Parquet, Arrow, CSV, TSV, JSON Lines), read in batches."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
import pyarrow.json as pa_json

from curate.errors import CurateError, nearest
from curate.store.input_files import find_inputs
from curate.store.json_rows import first_line
from curate.store.separated_values import DELIMITERS

_PIECE = 1 << 20
_LOOKED_AT = 1_000  # lines of JSON whose columns have several types
_BLOCK = 64 << 20  # bytes of text that are parsed at once: a row is no longer


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

    @cached_property
    def schemas(self) -> list[pa.Schema]:
        """The columns of each file and their types. Raises CurateError if one cannot be read, or they differ in their
        columns."""
        schemas = [self._schema(file) for file in self.files]
        for file, schema in zip(self.files[1:], schemas[1:], strict=True):
            if schema.names != schemas[0].names:
                raise CurateError(f"{file} has other columns than {self.files[0]}; attach them one by one.")
        return schemas

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns, batch by batch, in the order of the files. Raises CurateError for a damaged file."""
        for file in self.files:
            try:
                yield from self._scanner(file, columns).to_batches()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise CurateError(
                    f"{file} cannot be read ({first_line(error)}); write it as Parquet, with one type for each column."
                ) from None

    def digests(self) -> dict[str, str]:
        """File -> its SHA-256."""
        return {str(file): _digest(file) for file in self.files}

    def require(self, column: str) -> list[pa.Field]:
        """A column of each file, or with dots a field in one. Raises CurateError if there is none of that name."""
        return [self._field(column, schema) for schema in self.schemas]

    def _field(self, column: str, schema: pa.Schema) -> pa.Field:
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

    def _schema(self, file: Path) -> pa.Schema:
        """A file's columns. Of lines of JSON in which a column has several types Arrow tells none: then by the first
        lines, and such a column is a text."""
        try:
            return self._dataset(file).schema
        except CurateError:
            if self.kind != "jsonl":
                raise
        with pa.input_stream(file, compression="detect") as opened, io.TextIOWrapper(opened, "utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, _LOOKED_AT) if line.strip()]
        names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
        return pa.schema([(name, _type_of([row.get(name) for row in rows])) for name in names])

    def _scanner(self, file: Path, columns: Sequence[str]) -> ds.Scanner:
        """What reads these columns of a file; of lines of JSON no others are parsed."""
        schema = self.schemas[self.files.index(file)]
        paths = {column: _path(column, schema) for column in columns}
        fields = {column: pc.field(*path) for column, path in paths.items()}
        if self.kind != "jsonl":
            return self._dataset(file).scanner(columns=fields, use_threads=True)
        wanted = pa.schema([schema.field(name) for name in dict.fromkeys(path[0] for path in paths.values())])
        parsing = pa_json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
        lines = pa.input_stream(file, compression="detect")
        reader = pa_json.open_json(lines, pa_json.ReadOptions(block_size=_BLOCK), parsing)
        return ds.Scanner.from_batches(reader, columns=fields)

    def _dataset(self, file: Path) -> ds.Dataset:
        try:
            return ds.dataset(file, format=self._format())
        except (pa.ArrowException, OSError, ValueError) as error:
            kind = self.kind.removeprefix(".")
            raise CurateError(
                f"{file} cannot be read as {kind} ({first_line(error)}); write it as Parquet, with one type for each "
                "column."
            ) from None

    def _format(self) -> str | ds.FileFormat:
        if self.kind in DELIMITERS:
            as_text = {name: pa.string() for name in self.texts}
            return ds.CsvFileFormat(
                read_options=pa_csv.ReadOptions(block_size=_BLOCK),
                parse_options=pa_csv.ParseOptions(delimiter=DELIMITERS[self.kind], newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(column_types=as_text),
            )
        if self.kind == "jsonl":
            return ds.JsonFileFormat(read_options=pa_json.ReadOptions(block_size=_BLOCK))
        return {"parquet": "parquet", "arrow": "ipc"}[self.kind]


_KINDS = {
    "json": "a JSON array (write one object per line)",
    "dataset": "a folder that datasets saved (name its Arrow files)",
    "hub": "a dataset of the hub (download its files)",
    "empty": "empty",
}


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.infer_type(values)
    except (pa.ArrowException, OverflowError):
        return pa.string()


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
