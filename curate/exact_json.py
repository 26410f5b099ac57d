"""JSON that comes out as it went in: keys in their order, and integers of any size.

orjson is fast, but reads integers of more than 64 bits as floats and writes none; Python's own parser reads and writes
them exactly, and is used where there are any.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_LONG = re.compile(r"(?<![\d.])\d{19}")  # an integer that may need more than 64 bits, or a text like one
_LONG_BYTES = re.compile(_LONG.pattern.encode())


def loads(text: str | bytes) -> Any:
    """A value from JSON. Raises ValueError."""
    long = _LONG_BYTES.search(text) if isinstance(text, bytes) else _LONG.search(text)
    return json.loads(text) if long else orjson.loads(text)


def dumps(value: Any) -> str:
    """A value as JSON without white space; NaN and infinities become null, bytes base64, other objects their text.

    Raises TypeError for text that is not valid Unicode.
    """
    try:
        return orjson.dumps(value, default=_as_json, option=_OPTIONS).decode()
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return json.dumps(_finite(value), default=_as_json, ensure_ascii=False, separators=(",", ":"))


def canonical(text: str) -> str:
    """JSON with sorted keys and without white space; a text that is no JSON as it is."""
    try:
        if _LONG.search(text):
            return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    except ValueError:
        return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_json(value: Any) -> Any:
    """Values that JSON cannot represent: bytes as base64, anything else as str(value)."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
