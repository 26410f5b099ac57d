"""Adding a method is adding one file: a score and a mask are put into a copy, and nothing else is touched. Or it is a
package of one's own: that of docs/extending.md, as printed, is installed, found by its entry points, run, and held to
the laws."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, qa, write_jsonl

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:toml|python)\n# (\S+)\n(.*?)```", PAGE, re.S)

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    folder, site = tmp_path_factory.mktemp("tastes"), tmp_path_factory.mktemp("site")
    for name, text in BLOCKS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "tastes/__init__.py").touch()
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *alone, "--target", str(site), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


def run(folder: Path, *words: str, site: Path | None = None) -> str:
    path = os.pathsep.join(map(str, filter(None, (site, folder))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMANDS = """
import json, sys
from curate.cli.main import main
for words in json.loads(sys.argv[1]):
    print("=== next ===", flush=True)
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code, words
"""


def commands(folder: Path, *lines: list[str], site: Path | None = None) -> list[str]:
    """What each of these commands prints, which are given one after the other in a process of their own."""
    printed = run(folder, "-c", COMMANDS, json.dumps(lines), site=site)
    return printed.split("=== next ===\n")[1:]


# --- the laws --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laws(copy: Path, site: Path) -> str:
    """What the laws say of the new files and of the package, with the tests of the architecture."""
    files = ("tests/laws", "tests/docs/test_house.py")
    chosen = "vowels or first- or first] or contracts or imports_no_other or varied or levels"
    return run(copy, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-p", "no:xdist", *files, "-k", chosen, site=site)


def passed(printed: str, *names: str) -> int:
    return sum("PASSED" in line and any(name in line for name in names) for line in printed.splitlines())


def test_the_laws_run_over_it_and_the_architecture_holds(laws: str) -> None:
    for name in ("[vowels]", "[score-vowels]", "[first]", "[64-first]", "[mask-first]"):
        assert name in laws, laws
    own = ("vowels", "first-", "first]", "contracts", "imports_no_other")
    assert passed(laws, *own) >= 18 and "failed" not in laws


def test_the_laws_hold_for_the_package(laws: str) -> None:
    assert passed(laws, "varied", "levels") >= 20 and "failed" not in laws


# --- listed, explained and used --------------------------------------------------------------------------


def test_it_is_listed_and_explained(copy: Path) -> None:
    listed, explained = commands(copy, ["methods"], ["methods", "mask", "first"])
    assert re.search(r"score +vowels +Share of a sample's characters", listed)
    assert "until the budget is spent" in explained


def test_it_is_on_the_page_of_the_methods(copy: Path) -> None:
    """As docs/hooks.py makes the page; docs/test_docs.py builds the documents with it."""
    page = run(copy, "-c", "import sys; sys.path.insert(0, 'docs'); import hooks; print(hooks.methods_page())")
    assert "{ #score-vowels }" in page and "{ #mask-first }" in page and "until the budget is spent" in page


def test_the_page_prints_a_whole_package() -> None:
    assert [name for name, _ in BLOCKS] == ["pyproject.toml", "tastes/varied.py", "tastes/levels.py"]


def test_the_package_is_found_explained_and_used_like_our_own(site: Path, tmp_path: Path) -> None:
    ws = str(tmp_path / "ws")
    rows = [*qa(30), {"question": "Again and again and again?", "answer": "again and again"}]
    query = "SELECT varied, varied_words FROM samples ORDER BY varied LIMIT 1"
    even = ["--by", "varied", "--selector", "levels", "--set", "levels=5", "--top", "10"]
    listed, explained, _, scored, least, selected = commands(
        ROOT,
        ["methods", "score"],
        ["methods", "score", "varied"],
        ["ingest", write_jsonl(tmp_path / "pool.jsonl", rows), "-w", ws],
        ["score", "varied", "-w", ws, "--workers", "2"],
        ["sql", query, "-w", ws, "--format", "csv"],
        ["select", "even", *even, "-w", ws],
        site=site,
    )
    assert re.search(r"score +varied +How many of a sample's words", listed)
    assert "distinct words / words" in explained and "at_least" in explained
    assert "31" in scored and least.splitlines()[1].startswith("0.25,8")
    assert "10 of 31 candidates" in selected
    made = json.loads((tmp_path / "ws/manifests/even.json").read_text())["selector"]
    assert made["name"] == "levels" and made["settings"] == {"levels": 5}
