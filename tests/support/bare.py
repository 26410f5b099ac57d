"""A machine that only runs models: Python without the packages that a GPU machine lacks.

import tests.support.bare as bare
bare.refuse()             # before anything imports them; whatever asks for one is told that it is not installed
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ABSENT = frozenset(
    "pyarrow duckdb polars faiss datasets msgspec orjson jinja2 click gguf datasketch rapidfuzz matplotlib cloudpickle "
    "aiohttp pandas sklearn lightgbm ray rich xxhash".split()
)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return None if fullname.partition(".")[0] in ABSENT else super().find_spec(fullname, path, target)


def refuse() -> None:
    """Have this process find none of them. Raises RuntimeError if one was imported before."""
    if found := sorted(ABSENT & sys.modules.keys()):
        raise RuntimeError(f"{', '.join(found)}: imported before it could be refused")
    plain = importlib.machinery.PathFinder
    sys.meta_path[:] = [_Finder if finder is plain else finder for finder in sys.meta_path]
