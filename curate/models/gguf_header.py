"""The header of a GGUF file: names in its metadata, and the sizes of its tensors, read without reading the rest."""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

ROPE_FACTORS = "rope_freqs.weight"
_LONGEST = 1 << 16  # bytes of a key, and of a name that is read
_MOST_DIMENSIONS = 8
_ALIGNMENT = 32  # bytes, of tensors' places, unless the file says another
_UINT32 = 4
_STRING, _ARRAY = 8, 9  # types of values in the format's table
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the other types


class CutShort(ValueError):
    """The file ends within its header, or that is damaged."""


def names_in(path: Path, keys: Collection[str]) -> dict[str, str]:
    """The texts under these keys of the metadata; '' for what the file does not have. Raises CutShort."""
    found = dict.fromkeys(keys, "")
    with _opened(path) as (file, _, entries):
        for _ in range(entries):
            key, kind = _text(file), _number(file, "<I")
            if key in found and kind == _STRING:
                found[key] = _text(file)
            else:
                _skip(file, kind)
            if all(found.values()):
                break
    return found


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: how many numbers, their type (0: float32), and its first byte."""

    size: int
    kind: int
    start: int


def tensors_in(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, of which nothing is read. Raises CutShort."""
    found, alignment = dict[str, Stored](), _ALIGNMENT
    with _opened(path) as (file, tensors, entries):
        for _ in range(entries):
            key, kind = _text(file), _number(file, "<I")
            if key == "general.alignment" and kind == _UINT32:
                alignment = max(_number(file, "<I"), 1)
            else:
                _skip(file, kind)
        for _ in range(tensors):
            name, dimensions = _text(file), _number(file, "<I")
            if dimensions > _MOST_DIMENSIONS:
                raise struct.error("no tensor has so many dimensions")
            size = prod(_number(file, "<Q") for _ in range(dimensions))
            found[name] = Stored(size, _number(file, "<I"), _number(file, "<Q"))
        data = -(-file.tell() // alignment) * alignment
    return {name: replace(tensor, start=data + tensor.start) for name, tensor in found.items()}


def has_tensor(path: Path, name: str) -> bool:
    """Whether a file has a tensor of that name; no if its header is damaged, which loading says."""
    stat = path.stat()
    return name in _tensor_names(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _tensor_names(path: Path, size: int, changed: int) -> frozenset[str]:
    """As above; cached until the file's size or modification time changes."""
    try:
        return frozenset(tensors_in(path))
    except CutShort:
        return frozenset()


def float32_in(path: Path, tensor: Stored) -> np.ndarray:
    """The numbers of a float32 tensor, float32 [size]. Raises CutShort if it is of another type."""
    if tensor.kind:
        raise CutShort("it is not float32")
    return np.fromfile(path, "<f4", tensor.size, offset=tensor.start)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int, int]]:
    """The file after its counts: of tensors, and of entries in its metadata; none in version 1 and big-endian files."""
    try:
        with path.open("rb") as file:
            magic, version, tensors, entries = struct.unpack("<4sIQQ", _take(file, 24))
            known = magic == b"GGUF" and 2 <= version < 1 << 16
            yield file, tensors if known else 0, entries if known else 0
    except (struct.error, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise CutShort(str(error)) from None


def _take(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise struct.error("the file ends here")
    return data


def _number(file: IO[bytes], form: str) -> int:
    return struct.unpack(form, _take(file, struct.calcsize(form)))[0]


def _text(file: IO[bytes]) -> str:
    size = _number(file, "<Q")
    if size > _LONGEST:
        raise struct.error("no name is this long")
    return _take(file, size).decode()


def _skip(file: IO[bytes], kind: int) -> None:
    """Skip a value of that type."""
    if kind == _STRING:
        file.seek(_number(file, "<Q"), 1)
    elif kind == _ARRAY:
        kind, length = _number(file, "<I"), _number(file, "<Q")
        if kind in _SIZES:
            file.seek(_SIZES[kind] * length, 1)
        else:
            for _ in range(length):
                _skip(file, kind)
    else:
        file.seek(_SIZES[kind], 1)
