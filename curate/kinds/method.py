"""What every method has, whatever its kind: a name, settings, and a docstring that is its help."""

from __future__ import annotations

import dataclasses
from abc import ABC
from typing import Any, ClassVar


class Method(ABC):
    """Anything with a name, settings and a docstring that is its help."""

    version: ClassVar[int] = 1  # goes up when equal settings give other results
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
