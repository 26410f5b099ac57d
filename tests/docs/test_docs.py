"""The documents tell the truth: they build without a warning, what they show runs, figures name their command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from curate.cli.main import commands
from curate.kinds.registry import KINDS, list_methods
from curate.runs.audit_toml import READY
from tests.conftest import ROOT, in_this_process

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages ('' for none)."""
    return [code for language, code in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents, built as `make docs` builds them."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr.strip(), done.stdout + done.stderr
    return folder


def test_they_build_without_a_warning_and_have_every_method_command_and_setting(site: Path) -> None:
    methods = (site / "methods.html").read_text(encoding="utf-8")
    for method in list_methods():
        assert f'id="{method["kind"]}-{method["name"]}"' in methods, method
    page = (site / "cli.html").read_text(encoding="utf-8")
    for name, command in commands().items():
        assert f"curate {name}" in page, name
        assert command.help and all(p.help for p in command.params if isinstance(p, click.Option)), name
    assert {m["kind"] for m in list_methods()} == set(KINDS)
    assert "effective_samples" in (site / "sql.html").read_text(encoding="utf-8")
    assert "curate.kinds.score.Score" in (site / "api.html").read_text(encoding="utf-8")


def test_the_readme_is_a_front_door() -> None:
    assert len(README.splitlines()) <= 250
    for name in commands():
        assert f"curate {name}" in README, name
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_command_that_is_shown_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as the command line would: its options are there and their values of the right kind."""
    monkeypatch.chdir(tmp_path)
    shown = 0
    for page in PAGES:
        for code in blocks(page, "", "console", "sh", "bash"):
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                words = re.match(r"^\s*(?:\$ )?curate (.*)", line)
                if words and "…" not in line.split("#")[0]:
                    _parse(words[1], page)
                    shown += 1
    assert shown > 60


def _parse(line: str, page: Path) -> None:
    try:
        name, *arguments = shlex.split(line, comments=True)
    except ValueError:  # SQL that goes on in the next line
        return
    command = commands()[name]
    try:
        command.make_context(name, [*arguments, *(["-w", "ws"] if "-w" not in arguments else [])])
    except click.UsageError as error:
        assert "'-w'" in error.format_message(), f"{page.name}: curate {line}: {error.format_message()}"


def test_the_tutorial_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of `curate` in this process, which has the libraries; what a shell is needed for, by a shell."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "bin").mkdir()
    curate = tmp_path / "bin/curate"
    curate.write_text(f'#!/bin/sh\nexec {sys.executable} -m curate.cli "$@"\n')
    curate.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name, value in (("PATH", f"{curate.parent}:{os.environ['PATH']}"), ("PYTHONPATH", str(ROOT)),
                        ("CURATE_WORKSPACE", "ws")):  # fmt: skip
        monkeypatch.setenv(name, value)
    ran = 0
    for block in blocks(DOCS / "tutorial.md", "console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            if command.startswith("curate ") and not set("|&;<>$`*") & set(
                re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command)
            ):
                done = in_this_process(shlex.split(command, comments=True)[1:], terminal=True)
            else:
                done = subprocess.run(command, shell=True, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            for line in expected.splitlines():
                assert line.strip() in done.stdout, f"{command}\n{done.stdout}"
            ran += 1
    assert ran > 12


def test_python_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's example of the library, with a pool and a target of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [f'{{"question": "what is {i} and {i}?", "answer": "it is {2 * i}"}}\n' for i in range(40)]
    (tmp_path / "pool.jsonl").write_text("".join(rows))
    (tmp_path / "val.jsonl").write_text("".join(rows[:3]).replace("what is", "say what is"))
    (code,) = [block for block in blocks(ROOT / "README.md", "python") if block.startswith("import curate")]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["rows"]) == 10 and list(tmp_path.glob("out/*.jsonl"))


def test_the_page_of_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = blocks(DOCS / "library.md", "python")
    for code in shown:
        exec(compile(code, "library.md", "exec"), names)
    assert len(shown) == 6 and len(names["best"]) == 10 and len(names["columns"]["score"]) == 400
    assert list(tmp_path.glob("out/*.jsonl")) and list(tmp_path.glob("lines/*.jsonl"))


@pytest.mark.parametrize(
    "page", sorted({*DOCS.glob("results/*.md")} - {DOCS / "results/index.md"}), ids=lambda p: p.stem
)
def test_figures_name_their_command_date_commit_and_device(page: Path) -> None:
    told = dict(re.findall(r"^\| (\w+) \| (.+?) \|$", page.read_text(encoding="utf-8"), re.M))
    assert (ROOT / told["command"].strip("`").split()[1]).exists()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", told["date"]) and re.fullmatch(r"[0-9a-f]{7,}", told["commit"])
    assert told["device"] and (ROOT / told["record"].strip("`")).exists()


def test_the_plan_of_an_audit_that_is_shown_names_what_there_is() -> None:
    assert all(name in (DOCS / "audit.md").read_text(encoding="utf-8") for name in ("lhas", "quality"))
    assert {"lhas", "quality"} <= set(READY)
