"""Jinja2 templates filled in: the one environment that every HTML page is made by.

Templates escape whatever they are given, so that a name or a text from a user's data is never markup. The only text
that is not escaped is a style sheet or a script of this package, see `embedded`.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent


def render(template: str, **data: Any) -> str:
    """A template of `templates/`, filled in. Raises jinja2.UndefinedError for a name that `data` lacks."""
    return _ENVIRONMENT.get_template(template).render(data)


def embedded(name: str) -> Markup:
    """A style sheet or script of this package, to be written into a page as it is.

    This is safe because these files come with the package and hold nothing of a user's. Escaping would break them:
    inside <style> and <script> a browser does not resolve `&gt;`.
    """
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def script_hash(name: str) -> str:
    """What a content-security policy calls a script that `embedded` writes: the SHA-256 of its text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(embedded(name)).encode()).digest()).decode()}"


def number(value: float, spec: str) -> str:
    """A number by Python's format specification, as in `{{ rows | number(",") }}`."""
    return format(value, spec)


def plain(value: Any) -> str:
    """A value as on the command line: lists separated by spaces, thousands by commas, numbers to four digits."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def png(picture: bytes) -> str:
    """A PNG picture as an address that contains the whole of it."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


# StrictUndefined: a misspelled name in a template is an error, not an empty cell.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(embedded=embedded, script_hash=script_hash)
_ENVIRONMENT.filters.update(number=number, plain=plain, png=png)
