from __future__ import annotations

import sys

import numpy as np
import pytest

from curate.errors import CurateError
from curate.numerics import faiss_index


def test_faiss_is_the_build_that_is_installed() -> None:
    faiss = faiss_index.load_faiss()
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    assert index.search(np.eye(4, dtype=np.float32)[2:3], 1)[1].tolist() == [[2]]


def test_a_missing_faiss_says_which_extras_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # what Python itself does for a module that is not there
    with pytest.raises(CurateError, match=r"curate-lm\[cpu\].*curate-lm\[gpu\].*never both"):
        faiss_index.load_faiss()


def test_both_builds_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "version", lambda name: "1.0")
    with pytest.raises(CurateError, match="overwrite each other"):
        faiss_index.load_faiss()
