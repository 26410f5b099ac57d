"""The sandbox of pass_at_1: what is around a program, what that keeps it from, and that it is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.kinds.metric import Question
from curate.methods.metrics import _sandbox, pass_at_1
from curate.methods.metrics._sandbox import bubblewrap_problem, run_python, wrapped
from curate.methods.metrics.pass_at_1 import PassAt1
from curate.models.usage import Usage

works = pytest.mark.skipif(bool(bubblewrap_problem()), reason=bubblewrap_problem())
CODE = {"test": "def check(f):\n    assert f() == 1", "entry_point": "one"}
ASKED = [Question([{"role": "user", "content": "def one():\n"}], meta=CODE)]


def in_sandbox(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python code in bubblewrap alone, without the guard."""
    return subprocess.run(
        wrapped([sys.executable, "-I", "-S", "-c", code, *words]), capture_output=True, text=True, timeout=20
    )


@works
@pytest.mark.parametrize("folder", ["here", "home", "tmp", "/dev/shm"])
def test_no_file_can_be_written(tmp_path: Path, folder: str) -> None:
    place = {"here": Path(__file__).parent, "home": Path.home(), "tmp": tmp_path}.get(folder, Path(folder))
    path = place / f"left-{time.time_ns()}"
    in_sandbox("import sys; open(sys.argv[1], 'w').write('x')", str(path))
    assert not path.exists()


@works
def test_files_in_tmp_are_not_seen_and_its_own_are_gone() -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as seen:
        done = in_sandbox("import os; print(os.listdir('/tmp')); open('/tmp/mine', 'w')")
        assert done.returncode == 0 and Path(seen.name).name not in done.stdout
    assert not Path("/tmp/mine").exists()


@works
def test_there_is_no_network() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)"
        words = [sys.executable, "-I", "-c", code, str(server.getsockname()[1])]
        assert subprocess.run(words, capture_output=True).returncode == 0
        done = subprocess.run(wrapped(words), capture_output=True, text=True)
        assert done.returncode and "Error" in done.stderr


@works
def test_other_processes_are_not_seen_and_its_own_end_with_it() -> None:
    done = in_sandbox("import os; print([p for p in os.listdir('/proc') if p.isdigit()])")
    assert len(eval(done.stdout)) <= 3
    mark = f"mark{time.time_ns()}"
    process = subprocess.Popen(wrapped([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", mark]))
    while not _running(mark):
        time.sleep(0.02)
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while _running(mark) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _running(mark)


def _running(mark: str) -> bool:
    """Whether an interpreter with a word among its arguments is there."""
    found = False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        found = found or (mark.encode() in words and b"bwrap" not in words[0])
    return found


@works
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("assert 1 == 1", None),
        ("assert 1 == 2", "AssertionError"),
        ("while True: pass", "did not end within"),
        ("open('left', 'w')", "opens a file"),
        ("import posix; posix._exit(0)", "left the interpreter"),
        ("import _signal; _signal.raise_signal(9)", "SIGKILL"),
        ("x = [0] * 10**10", "MemoryError"),
    ],
)
def test_the_guard_says_the_same_inside_it(code: str, why: str | None) -> None:
    found = run_python(code, 1.0, 512, bubblewrap=True)
    assert found is None if why is None else found is not None and why in found, found


def test_the_command_has_what_is_promised() -> None:
    words = wrapped(["python", "-c", "pass"], "/usr/bin/bwrap")
    assert words[0] == "/usr/bin/bwrap" and words[-4:] == ["--", "python", "-c", "pass"]
    assert {"--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"} <= set(words)
    assert "--share-net" not in words and "--bind" not in words
    assert (
        words[words.index("--ro-bind") :][:3] == ["--ro-bind", "/", "/"] and words[words.index("--tmpfs") + 1] == "/tmp"
    )


def test_an_interpreter_below_what_is_hidden_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/tmp/environment")
    words = wrapped(["python"])
    at = len(words) - words[::-1].index("/tmp/environment") - 3
    assert words[at : at + 3] == ["--ro-bind", "/tmp/environment", "/tmp/environment"] and at > words.index("--tmpfs")


# --- the setting -----------------------------------------------------------------------------------------


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pass_at_1, "continuations", lambda *_: (["    return 1\n"], np.array([""], object), Usage("cpu", 1))
    )


@pytest.fixture(params=["missing", "does not start"])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine without bubblewrap, or where it does not start; what is said."""
    program = None if request.param == "missing" else shutil.which("false")
    monkeypatch.setattr(_sandbox.shutil, "which", lambda _: program)
    return "is not installed.*apt install bubblewrap" if program is None else "does not start here.*user namespaces"


def test_bubblewrap_is_refused_where_it_is_not(without: str, answered: None, tmp_path: Path) -> None:
    metric = PassAt1(sandbox="bubblewrap")
    with pytest.raises(CurateError, match=without) as raised:
        metric.evaluate(None, ASKED)
    assert raised.value.exit_status == 2 and "\n" not in str(raised.value)
    with pytest.raises(CurateError, match=without):  # before there is a model
        curate.evaluate(curate.open_workspace(tmp_path / "ws"), "run", [curate.EvalSpec("code", metric)])


def test_auto_says_that_it_is_less(without: str, answered: None) -> None:
    result = PassAt1().evaluate(None, ASKED)
    assert result.values.tolist() == [1.0]
    assert result.note.startswith("pass_at_1 ran the programs without a sandbox of the system (bubblewrap ")


@works
@pytest.mark.parametrize(("sandbox", "said"), [("auto", "inside bubblewrap"), ("none", "without a sandbox")])
def test_what_was_around_is_said(answered: None, sandbox: Any, said: str) -> None:
    result = PassAt1(sandbox=sandbox).evaluate(None, ASKED)
    assert result.values.tolist() == [1.0] and said in result.note


def test_a_sandbox_that_fails_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "wrapped", lambda words, _: [sys.executable, "-c", ""])
    with pytest.raises(CurateFailure, match="a program was not begun"):
        run_python("x = 1", 5.0, 512, bubblewrap=True)
