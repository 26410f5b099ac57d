"""FAISS, of which a machine has one build: faiss-cpu or faiss-gpu, which own the same Python module."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from curate.errors import CurateError


def load_faiss() -> Any:
    """The faiss module. Raises CurateError where none, or two that overwrite each other, are installed."""
    builds = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if len(builds) > 1:
        raise CurateError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files; "
            "run `pip uninstall faiss-cpu faiss-gpu` and install the one you want."
        )
    try:
        import faiss
    except ImportError:
        raise CurateError(
            "FAISS is not installed; run `pip install 'curate[cpu]'`, or 'curate[gpu]' for its GPU build, never both."
        ) from None
    return faiss


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
