"""The house stands as the README draws it: arrows point down, no circle, everything documented, quick to start."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import curate
from curate.cli import cli
from curate.method import KINDS, methods
from tests.conftest import ROOT
from tests.readme import MADE, rewritten

PACKAGE = ROOT / "curate"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# From the ground up: a file may import what stands on lower floors, and on its own floor only where no circle arises.
FLOORS = [
    {"curate", "curate.errors"},
    {"curate.schema", "curate.fingerprint", "curate.storage", "curate.workers", "curate.vector_index", "curate.gates"},
    {"curate.claims", "curate.shards"},
    {"curate.costs", "curate.signals", "curate.vectors", "curate.text", "curate.formats", "curate.readers"},
    {"curate.lowering", "curate.statistics", "curate.sandbox"},
    {"curate.workspace"},
    {"curate.passes"},
    {"curate.method", "curate.manifest", "curate.runs"},
    {"curate.quotas", "curate.coordinates", "curate.logdet", "curate.choices", "curate.nnls", "curate.horizon"},
    {"curate.tables"},
    {"curate.models"},
    {"curate.training", "curate.gradients"},
    {"curate.roles", "curate.slopes", "curate.masking", "curate.diagnosis", "curate.logits"},
    {"curate.lineage", "curate.tasks", "curate.executors", "curate.judging"},
    {"curate.query", "curate.prices", "curate.jobs", "curate.index"},
    {"curate.columns", "curate.counting", "curate.samples"},
    {"curate.corpus"},
    {"curate.plans", "curate.auditing", "curate.outgoing"},
    {"curate.running"},
    {"curate.warmups", "curate.proxies"},
    {"curate.asides", "curate.scored_model"},
    {
        "curate.stages",
        "curate.scores",
        "curate.selectors",
        "curate.exports",
        "curate.weightings",
        "curate.masks",
        "curate.pruners",
        "curate.metrics",
        "curate.mixers",
    },
    {"curate.pages"},
    {"curate.console"},
    {"curate.commands"},
    {"curate.cli"},
]
METHODS = tuple(
    f"curate.{kind}s." for kind in ("score", "selector", "export", "weighting", "mask", "pruner", "metric", "mixer")
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports when it runs (the lazy faces of curate/__init__ left out)."""
    known = {module_name(p) for p in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "curate":
                assert node.level == 0
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in known else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {a.name for a in node.names if a.name in known}
    found["curate"] = set()
    return found


def floor(module: str) -> int:
    for number, modules in enumerate(FLOORS):
        if module in modules or any(module.startswith(f"{m}.") for m in modules if m != "curate"):
            return number
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def test_arrows_point_down() -> None:
    for module, used in imports().items():
        for other in used:
            assert floor(other) <= floor(module), f"{module} imports {other}, which stands above it"


def test_there_is_no_circle() -> None:
    graph = {m: used - {m} for m, used in imports().items()}
    while leaves := [m for m, used in graph.items() if not used & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_stages_know_no_method_and_methods_know_no_stage_and_no_neighbour() -> None:
    for module, used in imports().items():
        if module.startswith("curate.stages."):
            assert not [u for u in used if u.startswith(METHODS)], module
            verbs = {u for u in used if u.startswith("curate.stages.")}
            made_of = {  # verbs of other verbs
                "verify": ["score"],
                "audit": ["score", "select", "train", "evaluate"],
                "report": ["status", "compare"],
            }
            allowed = {f"curate.stages.{verb}" for verb in made_of.get(module.rpartition(".")[2], [])}
            assert verbs <= allowed, f"{module} uses another verb"
        if module.startswith(METHODS):
            assert not [u for u in used if u.startswith((*METHODS, "curate.stages"))], module


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


# --- documents that cannot lie ---------------------------------------------------------------------------


def test_the_tree_in_the_readme_is_the_tree() -> None:
    block = re.search(r"```tree\n(.*?)```", README, re.S)
    assert block
    told: set[str] = set()
    folders = [""]  # the folder each depth stands in
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            told.add(f"{folders[depth]}{name}".rstrip("/"))
            if name.endswith("/"):
                folders[depth + 1 :] = [f"{folders[depth]}{name}"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    code = {t for t in tracked if t.startswith(("curate/", "pipelines/")) and not t.endswith("__init__.py")}
    missing = {t for t in code if t not in told}
    assert not missing, f"the README's tree lacks {sorted(missing)}"
    gone = {t for t in told if not (ROOT / t).exists()}
    assert not gone, f"the README's tree has {sorted(gone)}, which are not there"


def test_every_command_and_method_is_in_the_readme_and_has_help() -> None:
    for name, command in cli.commands.items():
        assert f"curate {name}" in README, name
        assert command.help and all(p.help for p in command.params if isinstance(p, click.Option)), name
    for method in methods():
        assert f"`{method['name']}`" in README, method
    assert {m["kind"] for m in methods()} == set(KINDS)


def test_what_is_made_from_the_code_is_as_the_code_is() -> None:
    assert len(MADE.findall(README)) == 1
    assert rewritten(README) == README, "run `make readme`"


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    allowed = {"pyproject.toml", "curate", "pipelines", "tests", "data", "README.md", "Makefile", "constraints.txt"}
    assert {t.split("/")[0] for t in tracked} <= allowed | {"LICENSE", ".ci", ".gitignore"}


# --- starting up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["sql", "SELECT 1 AS one"],
        ["score", "length"],
        ["score", "bm25", "--target", "arithmetic"],
        ["train", "r", "--model", "tiny", "--dry-run"],
        ["methods"],
    ],
)
def test_text_verbs_start_without_the_heavy_libraries(
    arguments: list[str], sample_ws: curate.workspace.Workspace
) -> None:  # type: ignore[name-defined]
    heavy = ("torch", "transformers", "faiss", "ray", "datasets")
    code = f"import sys; from curate.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); " \
        f"print([m for m in {heavy} if m in sys.modules])"  # fmt: skip
    environment = {"CURATE_WORKSPACE": str(sample_ws.path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# --- tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"]])
def test_ruff_is_content(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_is_content() -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
