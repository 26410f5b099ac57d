"""Arrays in several files as one mapping: which file an array is of, when it is read, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curate.errors import DamagedError
from curate.store.commits import Parts
from curate.tables.stored_arrays import StoredArrays


def test_the_later_file_s_array_counts_and_others_are_not_read(tmp_path: Path) -> None:
    first, second = (Parts(tmp_path / name, ".safetensors") for name in ("a", "b"))
    first.commit("state", {"x": np.arange(3.0), "y": np.arange(4, dtype=np.uint64)})
    second.commit("state", {"x": np.array([[7.0, 8.0]], np.float32)})
    found = StoredArrays([first.path("state"), second.path("state")])
    assert sorted(found) == ["x", "y"] and len(found) == 2 and "z" not in found
    assert found["x"].tolist() == [[7.0, 8.0]] and found["x"].dtype == np.float32
    assert found["y"].tolist() == [0, 1, 2, 3] and found["y"].dtype == np.uint64
    first.path("state").unlink()
    assert found["x"].tolist() == [[7.0, 8.0]]
    with pytest.raises(DamagedError, match="is damaged"):
        found["y"]


def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    parts = Parts(tmp_path, ".safetensors")
    parts.commit("state", {"x": np.arange(300.0)})
    path = parts.path("state")
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(DamagedError, match="state.safetensors is damaged"):
        StoredArrays([path])
