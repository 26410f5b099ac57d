"""The methods that a verb is given: objects, or their names, for which the registry has the classes."""

from __future__ import annotations

from typing import Any, TypeVar

from curate.errors import CurateError, nearest
from curate.kinds import registry
from curate.kinds.method import Method

M = TypeVar("M", bound=Method)


def method(kind: str, name: str, /, **settings: Any) -> Any:
    """A method by the kind and the name that `curate methods` lists, with settings: method("score", "bm25", k1=1.2).

    A setting is a value of its field's type, or its text as `--set` has it. Raises CurateError for a kind, a name or
    a setting that there is not, suggesting the nearest, and for a value of another type.
    """
    if kind not in registry.KINDS:
        raise CurateError(f"there is no kind of method '{kind}': {nearest(kind, registry.KINDS)}")
    return registry.make(kind, name, settings)


def method_of(kind: type[M], given: M | str) -> M:
    """The method itself, or that of a name, with its default settings. kind: Score, Selector, ….

    Raises CurateError for a name that there is not, suggesting the nearest, and for what is no such method.
    """
    if isinstance(given, kind):
        return given
    name = next(name for name in registry.KINDS if registry.base(name) is kind)
    if isinstance(given, str):
        return registry.make(name, given)
    told = f"the class {given.__name__}" if isinstance(given, type) else f"{repr(given)[:60]} ({type(given).__name__})"
    raise CurateError(
        f"a {name} is given by its name, or as an object such as curate.method('{name}', NAME), not as {told}; "
        f"`curate methods {name}` lists the names."
    )
