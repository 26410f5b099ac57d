"""The tiny model, its copy, and samples to send through it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from curate.models.choice import TINY, ModelChoice
from curate.models.language_model import LanguageModel
from tests.support.models import school_samples


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return LanguageModel(ModelChoice("tiny"))


@pytest.fixture(scope="session")
def samples() -> list[dict[str, Any]]:
    return school_samples()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny model in a folder of its own, to be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))
