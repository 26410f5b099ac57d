"""Rows of JSON text: lines, or the elements of one array, in memory of little more than one row.

A row that is broken or too long is Unreadable, and those after it are read: lines end where they end, and the end of an
array's element is found by its brackets and quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from curate import exact_json
from curate.store.input_formats import RAW_CUT, Unreadable
from curate.store.input_limits import InputLimits
from curate.store.packed import BROKEN

_CHUNK = 1 << 20
_DEEPEST = 1 << 20  # open brackets that are kept track of
_SPACE, _SEPARATOR, _OPENING = re.compile(r"\s*"), re.compile(r"[\s,]*"), re.compile(r"\s*\[\s*")
_MARK = re.compile(r'["\\\n\[\]{},]')


def json_lines(stream: IO[bytes], limits: InputLimits, skip: int = 0) -> Iterator[tuple[int, Any]]:
    """The records of a JSON Lines stream, which need not be a file: (line number, record or Unreadable)."""
    return ((number, parsed(line)) for number, line in unparsed_lines(stream, limits, skip))


def unparsed_lines(stream: IO[bytes], limits: InputLimits, skip: int = 0) -> Iterator[tuple[int, bytes | Unreadable]]:
    """The lines of a JSON Lines stream that are not blank, for `parsed`: (line number, line or Unreadable)."""
    number, longest = 0, limits.row
    try:
        while line := stream.readline(longest + 1):
            number += 1
            if len(line) > longest and not line.endswith(b"\n"):
                size = len(line) + _rest_of_line(stream)
                if number > skip:
                    yield number, Unreadable(limits.too_long(size, "bytes"), _readable(line))
            elif number > skip and not line.isspace():
                yield number, line
    except BROKEN as error:
        yield number + 1, damaged(error)


def _rest_of_line(stream: IO[bytes]) -> int:
    """Reads to the end of a line, and returns how many bytes there were."""
    size = 0
    while piece := stream.readline(_CHUNK):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def parsed(line: bytes | Unreadable) -> Any:
    """The record in a line; Unreadable if there is none."""
    if isinstance(line, Unreadable):
        return line
    line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return exact_json.loads(line)
    except ValueError as error:
        return Unreadable(f"is not JSON ({error})", _readable(line))


def _readable(text: bytes) -> str:
    return text[:RAW_CUT].decode("utf-8", "replace")


def damaged(error: Exception) -> Unreadable:
    """What stands for the rest of a file that is cut or damaged."""
    return Unreadable(f"the file is cut or damaged from here on ({first_line(error)})")


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def json_array(stream: IO[str], limits: InputLimits) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON array: (number from 1, element or Unreadable)."""
    array = _Array(stream, limits)
    number = 0
    try:
        while array.at_element():
            number += 1
            yield number, array.element(number)
        if array.complaint:
            yield number + 1, array.complaint
    except BROKEN as error:
        yield number + 1, damaged(error)


class _Array:
    """The text of an array, of which the part that is looked at is in memory."""

    def __init__(self, stream: IO[str], limits: InputLimits):
        self._stream, self._limits = stream, limits
        self._text, self._place, self._before = "", 0, 0  # _before: characters that were let go
        self._ended, self._opened, self._over = False, False, False
        self.complaint: Unreadable | None = None  # about the end of the array, once that is reached

    def _more(self) -> None:
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._place))  # doubles: linear in an element's size
        self._before += self._place
        self._text, self._place, self._ended = self._text[self._place :] + chunk, 0, not chunk

    def at_element(self) -> bool:
        """Go to the next element; False at the end of the array, with a complaint if that is not as it should be."""
        while not self._over:
            self._place = _end(_SEPARATOR if self._opened else _OPENING, self._text, self._place)
            self._opened = self._opened or self._place > 0
            if self._place < len(self._text):
                break
            if self._ended:
                self.complaint = Unreadable("the JSON array cannot be read from here on (it has no closing bracket)")
                return False
            self._more()
        if self._over or self._text[self._place] != "]":
            return not self._over
        trailing = (self._text[self._place + 1 :] + self._stream.read(RAW_CUT)).lstrip()
        if trailing:
            self.complaint = Unreadable("more text stands behind the end of the JSON array", _encodable(trailing))
        return False

    def element(self, number: int) -> Any:
        """The element here, and go behind it; one that cannot be read is Unreadable."""
        while True:
            try:
                found, end = _element(self._text, self._place, self._ended)
                if end - self._place > self._limits.row:
                    return self._broken(number, "")
                self._place = end
                return found
            except json.JSONDecodeError as error:
                end, broken = self._lenient_end(error)
                if end or self._ended or not _unfinished(broken, len(self._text)):
                    return self._broken(number, error.msg, end)
            except RecursionError:
                return self._broken(number, "it is nested too deeply")
            if len(self._text) - self._place > self._limits.row:
                return self._broken(number, "")
            self._more()

    def _lenient_end(self, error: json.JSONDecodeError) -> tuple[int | None, json.JSONDecodeError]:
        """The end of an element with which nothing is wrong but a line's end within a string, or what else is wrong."""
        if not error.msg.startswith("Invalid control character"):
            return None, error
        try:
            end = exact_json.end_at(self._text, self._place)
            return _followed(self._text, end, self._ended), error
        except json.JSONDecodeError as other:
            return None, other

    def _broken(self, number: int, reason: str, end: int | None = None) -> Unreadable:
        """Go behind an element that cannot be read. reason: '' for one that is too long. end: where it ends, if that is
        known."""
        at, raw = self._before + self._place, _encodable(self._text[self._place : self._place + RAW_CUT])
        self._place = end or self._place
        whole = end is not None or self._skip()
        size = self._before + self._place - at
        if not whole:
            self._over = True
            return Unreadable(
                f"the JSON array cannot be read from its element {number:,} on, at character {at:,} "
                f"({reason or 'it does not end'}); mend the file there",
                raw,
            )
        if not reason:
            return Unreadable(self._limits.too_long(size, "characters"), raw)
        return Unreadable(f"is not JSON ({reason}; element {number:,} of the array, at character {at:,})", raw)

    def _skip(self) -> bool:
        """Go to the comma or bracket behind an element by its brackets and quotes; whether there is one."""
        scan = _Scan()
        while True:
            end = scan.end_in(self._text, self._place)
            self._place = len(self._text) if end is None else end
            if end is not None or self._ended or scan.too_deep:
                return end is not None
            self._more()


class _Scan:
    """Follows the brackets and quotes of text that is no JSON, piece by piece. A line's end ends a quote."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._counts = {"[": 0, "{": 0}
        self._quoted, self._escaped = False, -1  # _escaped: the place that a backslash is about
        self.too_deep = False

    def end_in(self, text: str, start: int) -> int | None:
        """The place of the comma or bracket that ends the element; None if it is not in this text."""
        for match in _MARK.finditer(text, start):
            place, mark = match.start(), match[0]
            if place == self._escaped:
                continue
            if self._quoted:
                self._in_quotes(place, mark)
            elif self._ends(mark):
                return place
            if self.too_deep:
                break
        self._escaped -= len(text)  # 0 if the first character of the next piece is escaped
        return None

    def _in_quotes(self, place: int, mark: str) -> None:
        if mark == "\\":
            self._escaped = place + 1
        elif mark in '"\n':
            self._quoted = False

    def _ends(self, mark: str) -> bool:
        if mark == '"':
            self._quoted = True
        elif mark in "[{":
            self._open.append(mark)
            self._counts[mark] += 1
            self.too_deep = len(self._open) > _DEEPEST
        elif mark in "]}":
            return self._close("[" if mark == "]" else "{")
        return mark == "," and not self._open

    def _close(self, opening: str) -> bool:
        """Close the innermost bracket of a kind and what is open within it; whether it is the array's own."""
        if not self._counts[opening]:
            return opening == "["
        closed = ""
        while closed != opening:
            closed = self._open.pop()
            self._counts[closed] -= 1
        return False


def _element(text: str, place: int, last: bool) -> tuple[Any, int]:
    """The element at a place and its end, which is certain only if a comma or bracket follows."""
    element, end = exact_json.loads_at(text, place)
    return element, _followed(text, end, last)


def _followed(text: str, end: int, last: bool) -> int:
    """The end of an element, if a comma or bracket follows. Raises JSONDecodeError if not."""
    following = _end(_SPACE, text, end)
    if text[following : following + 1] not in (",", "]") and not (last and following == len(text)):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, following)
    return end


def _unfinished(error: json.JSONDecodeError, length: int) -> bool:
    """Whether more input could fix the error: it is inside a string, or within an escape's length of the end."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of a pattern's match at a place; the place itself if there is no match."""
    match = pattern.match(text, place)
    return match.end() if match else place


def _encodable(text: str) -> str:
    return text[:RAW_CUT].encode("utf-8", "replace").decode()
