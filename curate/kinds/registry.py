"""The kinds of methods, and the lookup of a method by name: one method is one file.

    curate/methods/scores/bm25.py      class Bm25(Score)       ->  curate score bm25
    curate/methods/selectors/top.py    class Top(Selector)     ->  curate select --selector top

The file's name is the name that users type. Its one public class is a frozen dataclass whose fields are its settings;
the string below each field documents it. Other packages add methods through the entry-point group
`curate.methods`, as KIND.NAME. Verbs take objects, or names that `curate.arguments` converts to objects.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import kinds
from curate.errors import CurateError, nearest
from curate.kinds.fields import fields_help, with_settings

if TYPE_CHECKING:
    from curate.kinds.method import Method

KINDS = {  # the kinds, and the names of their abstract classes in curate.kinds, which are loaded on first use
    "score": "Score",
    "selector": "Selector",
    "weighting": "Weighting",
    "mixer": "Mixer",
    "mask": "Mask",
    "pruner": "Pruner",
    "metric": "Metric",
    "export": "Export",
    "executor": "Executor",
}


def base(kind: str) -> type[Method]:
    """The abstract class of the methods of a kind."""
    return getattr(kinds, KINDS[kind])


def names(kind: str) -> list[str]:
    """The names of the methods of a kind, built-in and from other packages, sorted."""
    return sorted({*_own(kind), *_foreign(kind)})


def find(kind: str, name: str) -> Any:
    """The class of a method. Raises CurateError, suggesting the most similar name, if there is none."""
    own, foreign = _own(kind), _foreign(kind)
    if name in foreign:
        if name in own:
            raise CurateError(
                f"the {kind} '{name}' is curate's own; the package {foreign[name].value} may not take it."
            )
        return foreign[name].load()
    if name not in own:
        raise CurateError(f"there is no {kind} '{name}': {nearest(name, [*own, *foreign])}")
    module = importlib.import_module(f"curate.methods.{kind}s.{name}")
    (method_class,) = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, base(kind))
    ]
    return method_class


def make(kind: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A method with settings given as text (`--set field=value`) or as values. Raises CurateError for unknown ones, and
    invalid ones."""
    return with_settings(find(kind, name), settings or {}, f"the {kind} '{name}'")


def list_methods(kind: str | None = None) -> list[dict[str, str]]:
    """Every method: kind, name, summary. Reads the docstrings without importing the methods."""
    if kind is not None and kind not in KINDS:
        every = [row["name"] for each in KINDS for row in list_methods(each)]
        guess = nearest(kind, [*KINDS, *every])
        raise CurateError(
            f"there is no kind of method, and no method, '{kind}': "
            f"{guess if guess.startswith('did you') else nearest(kind, KINDS)}"
        )
    return [
        {"kind": k, "name": name, "summary": help_text(k, name).split("\n")[0]}
        for k in ([kind] if kind else KINDS)
        for name in names(k)
    ]


def help_text(kind: str, name: str) -> str:
    """The docstring of a method's class."""
    if name in _own(kind):
        spec = importlib.util.find_spec(f"curate.methods.{kind}s.{name}")
        assert spec is not None and spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        return ast.get_docstring(classes[0]) or "" if classes else ""
    return inspect.getdoc(find(kind, name)) or ""


def settings_help(kind: str, name: str) -> list[dict[str, Any]]:
    """Every setting of a method: name, type, default and the string below its field."""
    return fields_help(find(kind, name))


def _own(kind: str) -> list[str]:
    folder = importlib.import_module(f"curate.methods.{kind}s")
    return [m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_")]


def _foreign(kind: str) -> dict[str, Any]:
    from importlib.metadata import entry_points  # reads mail, which only this needs

    prefix = f"{kind}."
    return {e.name.removeprefix(prefix): e for e in entry_points(group="curate.methods") if e.name.startswith(prefix)}
