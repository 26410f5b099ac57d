"""Files of tensors that are damaged are refused by a sentence, whoever opens them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.models.tensor_files import array_readers, header, read_arrays, read_tensors
from curate.runs.model_updates import update_products
from curate.store import encoding
from tests.support.rich import HARMS

READERS: dict[str, Callable[[Path], Any]] = {
    "header": header,
    "tensors": read_tensors,
    "arrays": read_arrays,
    "one by one": array_readers,
    "of the store": encoding.read_arrays,
    "updates": lambda file: update_products(file.parent, file.parent, file.parent),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"a": np.arange(64.0), "b": np.ones((2, 3))}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_a_sentence(file: Path, reader: str, harm: Callable[[Path], None]) -> None:
    READERS[reader](file)
    harm(file)
    if reader == "updates" and not file.exists():
        return  # a folder without files has no updates
    with pytest.raises(CurateError, match="model.safetensors") as raised:
        READERS[reader](file)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_harmed_after_it_was_opened_is_one_too(file: Path) -> None:
    readers = array_readers(file)
    assert readers["a"]().sum() == 2016 and readers["b"]().shape == (2, 3)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CurateError, match="cannot be read as safetensors"):
        readers["a"]()


def test_models_of_other_tensors_are_not_two_stages(file: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "other").mkdir()
    save_file({"c": np.arange(64.0)}, tmp_path / "other/model.safetensors")
    with pytest.raises(CurateError, match="have other tensors"):
        update_products(file.parent, tmp_path / "other", tmp_path / "other")


def test_files_of_tensors_are_opened_in_one_place() -> None:
    """What reads bytes that it has checked by their digest may decode them."""
    root = Path(curate.__file__).parent
    opening = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {name.name for name in node.names} if isinstance(node, ast.ImportFrom) else set()
            if names & {"safe_open", "load_file"}:
                opening.add(str(path.relative_to(root)))
    assert opening == {"models/tensor_files.py"}
