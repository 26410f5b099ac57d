"""Files and streams that may be packed by gzip or zstd, as the bytes that they hold, within limits."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from curate.errors import CurateError
from curate.store.input_limits import InputLimits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)
_BUFFER = 1 << 17
_OTHERS = {
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"\x04\x22\x4d\x18": "lz4",
}


def open_input(path: Path, limits: InputLimits) -> IO[bytes]:
    """A file's bytes, unpacked."""
    file = path.open("rb")
    head = file.read(4)
    file.seek(0)
    return unpacked(head, file, limits, str(path))


def unpacked(head: bytes, stream: IO[bytes], limits: InputLimits, label: str) -> IO[bytes]:
    """What a stream holds, unpacked if it is gzip or zstd. head: its first four bytes, which it still gives.

    label: what it is, for the CurateError that is raised when it unpacks to more than the limits.
    """
    unpack = _unpacking(head)
    return io.BufferedReader(_Bounded(stream, unpack, limits, label), _BUFFER) if unpack else stream


def other_packing(head: bytes) -> str:
    """The name of the packing of a file that begins so and cannot be read; '' for none."""
    return next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "")


def _unpacking(head: bytes) -> Callable[..., Any] | None:
    """What opens a file that begins so, if it is packed."""
    if head.startswith(b"\x1f\x8b"):
        return gzip.open
    if head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # a skippable frame
        return zstd.open
    return None


class _Counted(io.RawIOBase):
    """A stream that counts the bytes it has given."""

    def __init__(self, stream: IO[bytes]):
        self._stream, self.given = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Bounded(io.RawIOBase):
    """The unpacked bytes of a stream, counted against those that it read."""

    def __init__(self, stream: IO[bytes], unpack: Callable[..., Any], limits: InputLimits, label: str):
        self._packed = _Counted(stream)
        self._stream = unpack(io.BufferedReader(self._packed, _BUFFER), "rb")
        self._limits, self._label, self._given = limits, label, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # not read, which loses what came before damage
        buffer[: len(data)] = data
        self._given += len(data)
        if exceeded := self._limits.exceeded(self._packed.given, self._given):
            raise CurateError(f"{self._label} {exceeded}.")
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._packed.close()
        super().close()
