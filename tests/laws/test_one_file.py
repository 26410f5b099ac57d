"""Adding a method is adding one file: a score and a mask are put into a copy, and nothing else is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NEW = {
    "scores/vowels.py": '''"""A score that was not there before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds import Pass, Score, Target, Text


@dataclass(frozen=True)
class Vowels(Score):
    """Share of a sample's characters that are vowels.

    Formula: score = vowels / characters

    Cost: reads the pool once; no FLOPs.

    Reference: none; it was written for a test.

    >>> from curate.kinds import run
    >>> run(Vowels(), [Text.of(["aeb"])])[0]["score"].round(2).tolist()
    [0.67]
    """

    scope: ClassVar = "row"

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("count", self._count),)

    def _count(self, batch: Text, _: Any) -> dict[str, np.ndarray]:
        size = batch.whole.str.len_chars().to_numpy().astype(np.float64)
        found = batch.whole.str.count_matches("[aeiou]").to_numpy().astype(np.float64)
        return {"score": found / np.maximum(size, 1), "error": np.where(size > 0, "", "is empty")}
''',
    "masks/first.py": '''"""A mask that was not there before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds import Mask, Parameters


@dataclass(frozen=True)
class First(Mask):
    """The first elements of the first parameters, until the budget is spent.

    Formula: elements by the order of the parameters' names and then by place, as many as the budget.

    Cost: none.

    Reference: none; it was written for a test.

    >>> {n: p.tolist() for n, p in First().init(Parameters({"a": np.zeros(2), "b": np.zeros(3)}, 3)).items()}
    {'a': [0, 1], 'b': [0]}
    """

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        left, chosen = given.budget, {}
        for name in sorted(given.weights):
            count = min(left, int(np.prod(given.weights[name].shape)))
            chosen[name], left = np.arange(count, dtype=np.int64), left - count
        return chosen
''',
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "curate"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "bench", "golden")
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    for name, text in NEW.items():
        (folder / "curate/methods" / name).write_text(text)
    return folder


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_laws_run_over_it_and_the_architecture_and_the_documents_hold(copy: Path) -> None:
    files = ("tests/laws", "tests/docs/test_house.py", "tests/docs/test_docs.py")
    chosen = "vowels or first- or first] or contracts or imports_no_other or build_without"
    words = ("-vv", "-p", "no:cacheprovider", "-p", "no:xdist", *files, "-k", chosen)
    printed = run(copy, "-m", "pytest", *words)
    for name in ("[vowels]", "[score-vowels]", "[first]", "[64-first]", "[mask-first]", "test_they_build_without"):
        assert name in printed, printed
    found = re.search(r"(\d+) passed", printed)
    assert found and int(found[1]) >= 19 and "failed" not in printed


def test_it_is_listed_and_explained(copy: Path) -> None:
    assert re.search(r"score +vowels +Share of a sample's characters", run(copy, "-m", "curate.cli", "methods"))
    assert "until the budget is spent" in run(copy, "-m", "curate.cli", "methods", "mask", "first")
