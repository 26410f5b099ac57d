"""The architecture as docs/architecture.md has it: imports point down, no circle, files documented, quick to start."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import curate
from tests.conftest import ROOT

PACKAGE = ROOT / "curate"
TYPINGS = ROOT / "tests/support/typings"
STUBS = sorted(TYPINGS.rglob("*.pyi"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports when it runs (the lazy faces of curate/__init__ left out)."""
    known = {module_name(p) for p in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        found[name] = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "curate":
                assert node.level == 0
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in known else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {a.name for a in node.names if a.name in known}
    found["curate"] = set()
    return found


def test_there_is_no_circle() -> None:
    graph = {m: used - {m} for m, used in imports().items()}
    while leaves := [m for m, used in graph.items() if not used & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_the_contracts_on_imports_hold() -> None:
    """Those of pyproject.toml: floors, arrays in and out, no method by name."""
    command = ["from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"]
    done = subprocess.run([sys.executable, "-c", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_method_imports_no_other_but_what_its_folder_shares() -> None:
    for module, used in imports().items():
        if module.startswith("curate.methods."):
            shared = f"{module.rpartition('.')[0]}._"
            assert not [u for u in used if u.startswith("curate.methods.") and not u.startswith(shared)], module


def test_a_verb_is_made_of_no_other_but_where_it_is_their_sequel() -> None:
    made_of = {
        "verify": ["score"],
        "audit": ["score", "select", "train", "evaluate"],
        "report": ["status", "compare"],
        "replay": ["select"],
    }
    for module, used in imports().items():
        if module.startswith("curate.verbs."):
            verbs = {u for u in used if u.startswith("curate.verbs.")}
            allowed = {f"curate.verbs.{verb}" for verb in made_of.get(module.rpartition(".")[2], [])}
            assert verbs <= allowed, f"{module} uses another verb"


def test_nothing_imports_pipelines_and_every_folder_is_a_package() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "pipelines" not in path.read_text()
    for folder in {p.parent for p in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), folder


def test_no_module_bears_the_name_of_a_verb() -> None:
    modules = {p.stem for p in PACKAGE.iterdir()}
    assert not modules & set(curate.__all__)


def test_every_verb_of_the_library_is_there_and_says_what_it_does() -> None:
    for name in curate.__all__:
        value = getattr(curate, name)
        assert name == "__version__" or (value.__doc__ and value.__name__ == name)
    with pytest.raises(AttributeError, match="no_such"):
        curate.no_such  # noqa: B018


def test_every_file_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("*.py"):
        body = parsed(path).body
        classes = [node for node in body if isinstance(node, ast.ClassDef)]  # a method's file says it in its class
        assert not body or ast.get_docstring(ast.Module(body, [])) or any(map(ast.get_docstring, classes)), path


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {"curate", "pipelines", "tests", "data", "docs", "findings", ".ci"}
    files = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", ".gitignore"}
    tools = {"pyproject.toml", "constraints.txt", "mkdocs.yml"}
    assert {t.split("/")[0] for t in tracked} <= folders | files | tools


# --- starting up -----------------------------------------------------------------------------------------


TEXT = (
    ["--help"],
    ["sql", "SELECT 1 AS one"],
    ["score", "length"],
    ["score", "bm25", "--target", "arithmetic"],
    ["methods"],
)


def test_text_verbs_start_without_the_heavy_libraries(
    sample_ws: curate.store.workspace.Workspace,  # type: ignore[name-defined]
) -> None:
    """In one process, which none of the commands may have made load them."""
    heavy = ("torch", "transformers", "faiss", "ray", "datasets")
    code = (
        "import json, sys; from curate.cli.main import cli\nfor words in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = words; cli.main(words, standalone_mode=False)\n"
        f"    print('loaded', words[0], [m for m in {heavy} if m in sys.modules])"
    )
    environment = {"CURATE_WORKSPACE": str(sample_ws.path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(TEXT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert told == [f"loaded {words[0]} []" for words in TEXT]


# --- tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"]])
def test_ruff_is_content(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_is_content() -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    # Room for what is young, without which node spends a quarter of its time on collecting garbage.
    environment = {**os.environ, "NODE_OPTIONS": "--max-semi-space-size=128"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("stub", STUBS, ids=lambda p: ".".join(p.relative_to(TYPINGS).parent.parts))
def test_the_types_that_are_written_down_for_a_library_are_its_own(stub: Path) -> None:
    """Its functions and classes are there, and the parameters of a function are called so and in that order."""
    module = importlib.import_module(".".join(stub.relative_to(TYPINGS).parent.parts))
    for node in parsed(stub).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert isinstance(getattr(module, node.name), type)
        elif isinstance(node, ast.FunctionDef):
            its = inspect.signature(getattr(module, node.name)).parameters
            declared = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            assert [name for name in its if name in declared] == declared, node.name
            alone = [name for name, p in its.items() if p.kind is p.KEYWORD_ONLY and name in declared]
            assert alone == [a.arg for a in node.args.kwonlyargs], node.name
        elif isinstance(node, ast.AnnAssign):
            assert hasattr(module, ast.unparse(node.target))


@pytest.mark.parametrize("folder", ["curate", "pipelines", "tests"])
def test_no_file_is_longer_than_four_hundred_lines(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 400}
