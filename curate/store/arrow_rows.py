"""Rows of Arrow tables as Python objects: JSON columns decoded, and tools without the nulls that structs add.

Arrow's structs have the same members in every row: where one tool has a parameter that another lacks, that one gets it
as null, which a chat template would print. Columns of `arrow.json`, as `datasets` writes its Json features, are texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pyarrow as pa

from curate import exact_json
from curate.store.input_formats import Unreadable

Change: TypeAlias = Callable[[Any], Any]

_TOOLS = frozenset(("tools", "functions", "tool_calls", "function_call"))


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of a batch. Raises what `to_pylist` does for a value that Python cannot represent."""
    return list(_changed(batch.to_pylist(), batch.schema, False))


def decoded_rows(rows: Iterable[Any], schema: pa.Schema) -> Iterable[Any]:
    """Rows of a table of that schema that are Python objects, with their JSON decoded, already."""
    return _changed(rows, schema, True)


def _changed(rows: Iterable[Any], schema: pa.Schema, decoded: bool) -> Iterable[Any]:
    found = {f.name: _change_of(f.type, f.name in _TOOLS, decoded) for f in schema}
    changes = {name: change for name, change in found.items() if change is not None}
    return (_with(row, changes) for row in rows) if changes else rows


def _with(row: Any, changes: dict[str, Change]) -> Any:
    for name, change in changes.items():
        if isinstance(row, dict) and name in row:
            row[name] = change(row[name])
    return row


def readable_rows(batch: pa.RecordBatch | pa.Table) -> Iterable[Any]:
    """The rows of a batch; one that Python cannot represent (invalid UTF-8, the year 10,000) is Unreadable."""
    try:
        _refuse_unsound(batch)
        return python_rows(batch)
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            return [Unreadable(f"has a value that cannot be read ({reason})")]
    return [row for i in range(batch.num_rows) for row in readable_rows(batch.slice(i, 1))]


def _refuse_unsound(batch: pa.RecordBatch | pa.Table) -> None:
    """Raises ArrowInvalid, a ValueError, for offsets that point elsewhere, which Arrow would follow."""
    for column in batch.columns:
        for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            _check(array)


def _check(array: Any) -> None:
    """As `validate`, but for texts that are no UTF-8: these do no harm, and cost only their rows."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        _check(array.storage)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).validate(full=True)
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _check(array.field(i))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        array.validate()
        type(array).from_arrays(array.offsets, pa.nulls(len(array.values))).validate(full=True)
        _check(array.values)
    else:
        array.validate(full=True)


def _change_of(kind: pa.DataType, in_tools: bool, decoded: bool) -> Change | None:
    """How values of a type are changed; None where they stay as they are. in_tools: whether null members go. decoded:
    whether JSON is decoded already."""
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return None if decoded else _decoded
        return _change_of(kind.storage_type, in_tools, decoded)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        change = _change_of(kind.value_type, in_tools, decoded)
        return None if change is None else lambda values: None if values is None else [change(v) for v in values]
    if not pa.types.is_struct(kind):
        return None
    fields = {f.name: _change_of(f.type, in_tools or f.name in _TOOLS, decoded) for f in kind}
    changes = {name: change for name, change in fields.items() if change is not None}
    return (lambda value: _members(value, changes, in_tools)) if changes or in_tools else None


def _members(value: Any, changes: dict[str, Change], in_tools: bool) -> Any:
    if value is None:
        return None
    kept = {name: changes[name](v) if name in changes else v for name, v in value.items()}
    return {name: v for name, v in kept.items() if v is not None} if in_tools else kept


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return exact_json.loads(value)
    except ValueError:
        return value
