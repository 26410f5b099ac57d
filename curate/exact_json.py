"""JSON that comes out as it went in: keys in their order, integers of any size, fractions as they are spelled.

orjson reads integers of more than 64 bits as floats and writes none, and writes 1.10 as 1.1; so Python's own parser
reads, and orjson writes what it is told to.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_LONG = re.compile(r"(?<![\d.])\d{19}")  # an integer that may need more than 64 bits, or a text like one


class Spelled(float):
    """A fraction with its spelling."""

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
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return (_WITH_MINUS_0 if "-0" in text else DECODER).decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(text: str) -> int | float:
    return Spelled.of(text) if text == "-0" else int(text)


DECODER = json.JSONDecoder(parse_float=Spelled.of)
_WITH_MINUS_0 = json.JSONDecoder(parse_float=Spelled.of, parse_int=_integer)


def dumps(value: Any) -> str:
    """A value as JSON without white space; NaN and infinities become null, bytes base64, other objects their text.

    Raises TypeError for text that is not valid Unicode.
    """
    try:
        return orjson.dumps(value, default=_as_json, option=_OPTIONS).decode()
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return orjson.dumps(_with_long(value), default=_as_json, option=_OPTIONS).decode()


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
    is_long = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return orjson.Fragment(str(value)) if is_long else value


def _as_json(value: Any) -> Any:
    """Fractions as they were spelled; of what JSON cannot represent bytes as base64, anything else as str(value)."""
    if isinstance(value, Spelled):
        return orjson.Fragment(value.text)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
