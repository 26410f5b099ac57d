"""What a user installs: the wheel, run outside the checkout, has its data and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(*command: str, **more: str) -> str:
    """Run with no trace of the checkout: another folder, and the installed files before the checkout's own."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=more.pop("cwd", "/"), env={**os.environ, **more})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that the build leaves nothing in the checkout
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if name.startswith("curate/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(*PIP, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder))
    return next(folder.glob("*.whl"))


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "curate"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(tracked.split("\n")) - {""} <= names
    assert {name.split("/")[0] for name in names} == {
        "curate",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }


def test_a_sample_is_scored_by_the_model_that_it_brings(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(*PIP, "install", "--no-compile", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    (tmp_path / "pool.jsonl").write_text("".join((SAMPLE / "pool/atlas.jsonl").read_text().splitlines(True)[:5]))
    commands = """
        import curate
        from curate.cli.main import cli
        print(curate.__file__)
        cli(["ingest", "-w", "ws", "pool.jsonl"], standalone_mode=False)
        cli(["score", "-w", "ws", "nll", "--model", "tiny"], standalone_mode=False)
    """
    told = run(sys.executable, "-c", textwrap.dedent(commands), PYTHONPATH=str(site), cwd=str(tmp_path))
    assert Path(told.splitlines()[0]).parent == site / "curate"
    assert "nll: 5 scored, 0 cached." in told
