"""Python code in a process of its own, forked off one that has the libraries loaded, so that none imports them anew.

    forked = start("import curate; …", "an argument")      # its sys.argv[1] is "an argument"
    forked.wait()                                          # its status, as subprocess has it: -9 where it was killed

The server is a process of its own that runs nothing but these forks, so that no thread of a test is in the midst of
something; it ends with the process that started it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


class Forked:
    """A process that was forked off, like subprocess.Popen's; what it wrote is in `stdout` and `stderr`."""

    def __init__(self, code: str, arguments: tuple[str, ...], environment: dict[str, str] | None):
        self.folder = Path(tempfile.mkdtemp(dir=_folder()))
        asked = {"code": textwrap.dedent(code), "arguments": arguments, "folder": str(self.folder)}
        self.pid = int(_ask({**asked, "environment": environment or dict(os.environ)}))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int((self.folder / "status").read_text())
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"the process {self.pid}", timeout)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


def start(code: str, *arguments: str, environment: dict[str, str] | None = None) -> Forked:
    return Forked(code, arguments, environment)


def run(code: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 300) -> Forked:
    forked = start(code, *arguments, environment=environment)
    forked.wait(timeout)
    return forked


# --- this side of the pipe -------------------------------------------------------------------------------


@functools.cache
def _folder() -> Path:
    """Where every fork has a folder of its own, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="curate-forks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "tests.support.forks"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _ask(request: dict[str, Any]) -> str:
    pipe = _server()
    assert pipe.stdin and pipe.stdout
    pipe.stdin.write(json.dumps(request) + "\n")
    pipe.stdin.flush()
    return pipe.stdout.readline()


# --- the server's side -----------------------------------------------------------------------------------


def _load() -> None:
    import duckdb  # noqa: F401
    import faiss  # noqa: F401
    import peft  # noqa: F401
    import polars  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import curate.runs.driver
    import curate.tables.engine  # noqa: F401


def _serve(asked: int, told: IO[str]) -> None:
    """Fork for every line, and note down how each of these processes ended."""
    folders: dict[int, Path] = {}
    # The handler does nothing and a byte says that it ran: code in a handler could run in the midst of a fork.
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    os.fsync = lambda _: None  # as in the tests' own process (conftest.py)
    pending = b""
    while True:
        readable, _, _ = select.select([asked, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _note(folders)
        if asked in readable:
            read = os.read(asked, 1 << 16)
            if not read:
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    _become(**request)
                folders[pid] = Path(request["folder"])
                told.write(f"{pid}\n")
                told.flush()


def _note(folders: dict[int, Path]) -> None:
    while folders:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if folder := folders.pop(pid, None):  # else a library's own
            (folder / "ended").write_text(str(os.waitstatus_to_exitcode(status)))
            (folder / "ended").rename(folder / "status")


def _become(code: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, stream in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(ROOT)
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    gc.disable()
    _load()
    gc.enable()
    gc.freeze()  # or every fork would look through all of it for garbage
    _serve(sys.stdin.fileno(), sys.stdout)
