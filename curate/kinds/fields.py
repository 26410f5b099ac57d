"""Settings as dataclass fields: values, or text (`--set field=value`), documented by the string below each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from curate.errors import CurateError, nearest

_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def with_settings(cls: type, settings: Mapping[str, Any], what: str) -> Any:
    """An instance of a dataclass from fields given as text or as values. Raises CurateError for unknown or invalid
    ones."""
    types = get_type_hints(cls)
    fields = {f.name: types[f.name] for f in dataclasses.fields(cls)}
    values = {}
    for key, given in settings.items():
        if key not in fields:
            raise CurateError(_unknown(key, fields, what))
        values[key] = _parsed(given, fields[key], f"the setting {key} of {what}")
    return cls(**values)


def pair(text: str) -> tuple[str, str]:
    """The name and the value of NAME=VALUE or NAME:VALUE, parted at the last of these signs; no name without one."""
    place = max(text.rfind("="), text.rfind(":"))
    return (text[:place].strip(), text[place + 1 :].strip()) if place >= 0 else ("", text.strip())


def _unknown(key: str, fields: Mapping[str, Any], what: str) -> str:
    """What to say of an unknown setting: the most similar one, and all there are."""
    if not fields:
        return f"{what} has no setting '{key}'; it has none at all."
    guess = nearest(key, fields)
    listed = guess if guess.startswith("did you mean") else f"there is {', '.join(fields)}."
    return f"{what} has no setting '{key}': {listed}"


def _parsed(given: Any, field_type: Any, where: str) -> Any:
    """A field's value, from its text or itself."""
    if get_origin(field_type) is Literal:
        if given not in get_args(field_type):
            raise CurateError(f"{where} is one of {', '.join(get_args(field_type))}, not '{given}'.")
        return given
    if field_type is str and isinstance(given, str):
        return given
    value = _of_text(given) if isinstance(given, str) else given
    options = get_args(field_type) or (field_type,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not any(isinstance(value, get_origin(o) or o) and isinstance(value, bool) == (o is bool) for o in options):
        expected = " or ".join("none" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
        raise CurateError(f"{where} is a {expected}, not '{given}'.")
    return value


def _of_text(text: str) -> Any:
    """The value of a text as JSON has it, or a number as people also write it (.05, 1.); else the text itself."""
    try:
        return json.loads({"none": "null", "true": "true", "false": "false"}.get(text.lower(), text))
    except json.JSONDecodeError:
        return float(text) if _NUMBER.fullmatch(text) else text


def fields_help(cls: type) -> list[dict[str, Any]]:
    """The fields of a dataclass: name, type, default, and the string below the field as `note`."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(line.target, ast.Name):
            notes[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return [
        {"name": f.name, "type": str(f.type), "default": f.default, "note": notes.get(f.name, "")}
        for f in dataclasses.fields(cls)
    ]
