"""The package of docs/extending.md, as printed: installed, found by its entry points, run, and held to the laws."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, qa, write_jsonl

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:toml|python)\n# (\S+)\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed beside ours."""
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
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_prints_a_whole_package() -> None:
    assert [name for name, _ in BLOCKS] == ["pyproject.toml", "tastes/varied.py", "tastes/levels.py"]


def test_it_is_found_explained_and_used_like_our_own(installed: dict[str, str], tmp_path: Path) -> None:
    def curate(*words: str) -> str:
        return run(installed, "-m", "curate.cli", *words)

    assert re.search(r"score +varied +How many of a sample's words", curate("methods", "score"))
    explained = curate("methods", "score", "varied")
    assert "distinct words / words" in explained and "at_least" in explained
    ws = str(tmp_path / "ws")
    rows = [*qa(30), {"question": "Again and again and again?", "answer": "again and again"}]
    curate("ingest", write_jsonl(tmp_path / "pool.jsonl", rows), "-w", ws)
    assert "31" in curate("score", "varied", "-w", ws, "--workers", "2")
    least = curate(
        "sql", "SELECT varied, varied_words FROM samples ORDER BY varied LIMIT 1", "-w", ws, "--format", "csv"
    )
    assert least.splitlines()[1].startswith("0.25,8")
    assert "10 of 31 candidates" in curate(
        "select", "even", "--by", "varied", "--selector", "levels", "--set", "levels=5", "--top", "10", "-w", ws
    )
    made = json.loads((tmp_path / "ws/manifests/even.json").read_text())["selector"]
    assert made["name"] == "levels" and made["settings"] == {"levels": 5}


def test_the_laws_hold_for_it(installed: dict[str, str]) -> None:
    words = ("-v", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/laws", "-k", "varied or levels")
    found = re.search(r"(\d+) passed", run(installed, "-m", "pytest", *words))
    assert found and int(found[1]) >= 20
