"""The base of all methods, whatever their kind: a name, settings, and a docstring that serves as help."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from curate.errors import CurateError


class Method(ABC):
    """The base class of all methods. Its fields are the settings; its docstring is the help text."""

    version: ClassVar[int] = 1  # incremented when the same settings give different results
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    @classmethod
    def again(cls, recorded: Mapping[str, Any]) -> Self:
        """The method with the settings that a recipe records. Raises CurateError if what they name, such as a file,
        says something else now."""
        fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        method = cls(**{name: value for name, value in recorded.items() if name in fields})
        beside = {name: value for name, value in method.settings().items() if name not in fields}
        if changed := [name for name, value in beside.items() if recorded.get(name, value) != value]:
            raise CurateError(f"{cls.name} was used with other contents ({changed[0]}) than its settings name now.")
        return method

    def settings(self) -> dict[str, Any]:
        """The settings of this method: field -> value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
