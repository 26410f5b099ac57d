"""JSON that comes out as it went in: keys in their order, integers of any size, fractions as they are spelled.

orjson reads integers of more than 64 bits as floats and writes none, and writes 1.10 as 1.1; so Python's own parser
reads, and orjson writes what it is told to.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_LONG = re.compile(r"(?<![\d.])\d{19}")  # an integer that may need more than 64 bits, or a text like one


class NotFiniteError(ValueError):
    """A number that JSON does not have: NaN, or an infinity."""


class Spelled(float):
    """A number with its spelling: a fraction, or an integer of thousands of digits, whose value is then infinite."""

    text: str

    @classmethod
    def of(cls, text: str) -> float:
        """The number, which knows its spelling if that is not the usual one."""
        value = float(text)
        if orjson.dumps(value).decode() == text:
            return value
        spelled = cls(value)
        spelled.text = text
        return spelled


def loads(text: str | bytes) -> Any:
    """A value from JSON. Raises ValueError."""
    try:
        value = orjson.loads(text)  # four times as fast, and exact but for fractions and what it reads as one
        if not _has_fraction(value) and not (b"-0" in text if isinstance(text, bytes) else "-0" in text):
            return value
    except ValueError:
        pass  # Python's parser says what is wrong, and takes what only orjson refuses
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return _read(lambda decoder: decoder.decode(text), careful="-0" in text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _has_fraction(value: Any) -> bool:
    """Whether a value has a float in it."""
    within = [value]
    while within:
        held = within.pop()
        if isinstance(held, dict):
            within.extend(held.values())
        elif isinstance(held, list):
            within.extend(held)
        elif isinstance(held, float):
            return True
    return False


def loads_at(text: str, place: int) -> tuple[Any, int]:
    """A value that begins at a place of a text, and its end. Raises JSONDecodeError, and RecursionError."""
    value, end = _read(lambda decoder: decoder.raw_decode(text, place), careful=False)
    return _OF_ANY_INTEGER.raw_decode(text, place) if text.find("-0", place, end) >= 0 else (value, end)


def end_at(text: str, place: int) -> int:
    """The end of a value at a place of a text whose strings may have line ends in them. Raises as `loads_at`."""
    return _LENIENT.raw_decode(text, place)[1]


def _read(decode: Callable[[json.JSONDecoder], Any], careful: bool) -> Any:
    if not careful:
        try:
            return decode(_DECODER)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of thousands of digits
            pass
    return decode(_OF_ANY_INTEGER)


def _any_integer(text: str) -> int | float:
    """An integer, with minus 0 and what has more digits than Python makes integers of as they are spelled."""
    if text == "-0":
        return Spelled.of(text)
    try:
        return int(text)
    except ValueError:
        spelled = Spelled("-inf" if text.startswith("-") else "inf")
        spelled.text = text
        return spelled


_DECODER = json.JSONDecoder(parse_float=Spelled.of)
_OF_ANY_INTEGER = json.JSONDecoder(parse_float=Spelled.of, parse_int=_any_integer)  # twice as slow
_LENIENT = json.JSONDecoder(strict=False, parse_float=str, parse_int=str)


def dumps(value: Any) -> str:
    """A value as JSON without white space; bytes are base64, other objects their text.

    Raises TypeError for text that is not valid Unicode, ValueError for NaN and infinities, which JSON does not have.
    """
    try:
        text = orjson.dumps(value, default=_as_json, option=_OPTIONS).decode()
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        text = orjson.dumps(_with_long(value), default=_as_json, option=_OPTIONS).decode()
    if "null" in text:  # which orjson writes for them
        _refuse_not_finite(value)
    return text


def _refuse_not_finite(value: Any, name: str = "") -> None:
    if isinstance(value, Mapping):
        for key, held in value.items():
            _refuse_not_finite(held, str(key))
    elif isinstance(value, list | tuple):
        for held in value:
            _refuse_not_finite(held, name)
    elif isinstance(value, float) and not math.isfinite(value) and not isinstance(value, Spelled):
        where = f"{name} is {value}" if name else f"{value}"
        raise NotFiniteError(f"{where}, which JSON does not have; write null, or the text '{value}'")
    elif to_list := getattr(value, "tolist", None):  # NumPy's
        _refuse_not_finite(to_list(), name)


def canonical(text: str) -> str:
    """JSON with sorted keys, numbers in their usual spelling, no white space; a text that is no JSON as it is."""
    try:
        if _LONG.search(text):
            return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    except ValueError:
        return text


def _with_long(value: Any) -> Any:
    """The same, with integers of more than 64 bits as pieces of JSON."""
    if isinstance(value, Mapping):
        return {key: _with_long(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_long(v) for v in value]
    is_long = not isinstance(value, bool) and isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return orjson.Fragment(str(value)) if is_long else value


def _as_json(value: Any) -> Any:
    """Fractions as they were spelled; of what JSON cannot represent bytes as base64, anything else as str(value)."""
    if isinstance(value, Spelled):
        return orjson.Fragment(value.text)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
