"""The base of all methods, whatever their kind: a name, settings, and a docstring that serves as help."""

from __future__ import annotations

import dataclasses
from abc import ABC
from typing import Any, ClassVar


class Method(ABC):
    """The base class of all methods. Its fields are the settings; its docstring is the help text."""

    version: ClassVar[int] = 1  # incremented when the same settings give different results
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def settings(self) -> dict[str, Any]:
        """The settings of this method: field -> value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
