"""How the command line starts: what each command loads, and that all of them are found without loading the others."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import click
import pytest
from click.shell_completion import BashComplete

import curate
import curate.cli
from curate.cli.main import cli, commands

MODELS = ("torch", "transformers", "faiss", "scipy", "pandas")
TABLES = ("polars", "duckdb", "pyarrow", "numpy")

WITHOUT = {  # words of a command -> what it does not load
    ("--help",): (*MODELS, *TABLES),
    ("status", "--help"): (*MODELS, *TABLES),
    ("train", "--help"): (*MODELS, *TABLES),
    ("methods",): (*MODELS, *TABLES),
    ("status",): (*MODELS, "polars"),
    ("sql", "SELECT count(*) FROM samples"): (*MODELS, "polars"),
}

CODE = """
import json, sys
from curate.cli.main import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as ended:
    status = ended.code
print(f"loaded {status}", *sys.modules)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A workspace with a target, scores of it and of none, and a selection, for `status` to look at."""
    ws = curate.open_workspace(tmp_path_factory.mktemp("startup") / "ws", create=True)
    samples = [{"question": f"What is {i}?", "answer": f"the number {i}"} for i in range(20)]
    curate.ingest(ws, samples, source="made")
    curate.target(ws, "few", samples[:3])
    curate.score(ws, "length")
    curate.score(ws, "bm25", target="few")
    curate.select(ws, "best", by="bm25_few", top=5)
    return str(ws.path)


@pytest.mark.parametrize("words", WITHOUT, ids=" ".join)
def test_a_command_loads_no_library_that_it_does_not_need(words: tuple[str, ...], folder: str) -> None:
    given = [*words, *(["-w", folder] if words[0] in ("status", "sql") and "--help" not in words else [])]
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(given)], capture_output=True, text=True)
    marker, status, *loaded = done.stdout.splitlines()[-1].split(" ")
    assert (marker, status) == ("loaded", "0"), done.stdout + done.stderr
    assert "curate.cli.main" in loaded
    assert [name for name in WITHOUT[words] if name in loaded] == []


def test_every_command_that_is_written_is_listed_with_its_module() -> None:
    written = set()
    for module in pkgutil.iter_modules(curate.cli.__path__):
        if not module.name.startswith("_"):
            found = vars(importlib.import_module(f"curate.cli.{module.name}")).values()
            written |= {c.name for c in found if isinstance(c, click.Command) and not isinstance(c, click.Group)}
    assert written == set(commands()) == {command.name for command in commands().values()}


def test_a_shell_completes_commands_and_their_options() -> None:
    completion = BashComplete(cli, {}, "curate", "_CURATE_COMPLETE")
    assert [(c.value, bool(c.help)) for c in completion.get_completions([], "sc")] == [("score", True)]
    assert [c.value for c in completion.get_completions(["status"], "--js")] == ["--json"]
    assert [c.value for c in completion.get_completions([], "nothing")] == []
