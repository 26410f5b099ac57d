"""Functions in forked processes, which have the libraries and may be killed at a change of the file system."""

from __future__ import annotations

import builtins
import contextlib
import gc
import io
import os
import pickle
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Ended:
    """How a process ended. value: what the function returned, or None. error: the exception that it raised.
    status: 0, or as subprocess has it (-9: killed; 99: too slow)."""

    status: int
    value: Any = None
    error: BaseException | None = None


def load() -> None:
    """Import what the verbs use, without using it: threads of a library do not survive a fork."""
    import duckdb  # noqa: F401
    import faiss  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import polars  # noqa: F401
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import curate
    import curate.pages.report
    import curate.runs.driver
    import curate.tables.engine

    torch.set_num_threads(1)
    for name in curate.__all__:
        getattr(curate, name)
    gc.collect()
    gc.freeze()


def in_child(function: Callable[[], Any], seconds: float = 120) -> Ended:
    """Call a function in a forked process."""
    return wait(begin(function), seconds)


def begin(function: Callable[[], Any]) -> tuple[int, Path]:
    """Start a function in a forked process; `wait` gives its end."""
    handle, path = tempfile.mkstemp(prefix="curate-attack-")
    os.close(handle)
    child = os.fork()
    if not child:
        _become(function, Path(path))
    return child, Path(path)


def wait(begun: tuple[int, Path], seconds: float = 120) -> Ended:
    """Wait for a process; one that takes longer is killed."""
    child, path = begun
    until, late = time.monotonic() + seconds, False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if not late and time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            late = True
        time.sleep(0.001)
    data = path.read_bytes()
    path.unlink()
    if late:
        return Ended(99)
    return Ended(os.waitstatus_to_exitcode(status), *(pickle.loads(data) if data else ()))


def _become(function: Callable[[], Any], path: Path) -> None:
    value, error = None, None
    os.fsync = lambda _: None  # a kill loses nothing that the system has
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        value = function()
    except BaseException as raised:  # whatever it is, the parent judges it
        error = raised
    disarm()
    try:
        data = pickle.dumps((value, error))
    except Exception:  # an exception of a library that cannot be sent
        data = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    path.write_bytes(data)
    os._exit(0)


# --- kills at changes of the file system ------------------------------------------------------------------


class _Trap:
    """Counts the changes below a folder in this process, and kills it in place of the n-th (0: never)."""

    def __init__(self, folder: Path, at: int):
        self.folder, self.at, self.seen, self.armed = os.fspath(folder), at, 0, True
        self.names: list[str] = []

    def step(self, what: str, path: Any) -> None:
        with contextlib.suppress(TypeError):
            name = os.fsdecode(path)
            if not self.armed or not name.startswith(self.folder):
                return
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if not self.at:
                self.names.append(f"{what} {name.removeprefix(self.folder)}")

    def hook(self, event: str, given: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            self.step(event, given[0])
        elif event == "open" and len(given) > 2 and isinstance(given[2], int) and given[2] & _WRITING:
            self.step("open", given[0])


_TRAPS: list[_Trap] = []


def arm(folder: Path, at: int) -> _Trap:
    """Count the changes below a folder from now on, in this process for good. After a file was opened for writing, and
    is empty, is a moment too."""
    trap = _Trap(folder, at)
    _TRAPS.append(trap)
    real = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real(file, mode, *args, **kwargs)
        if set(mode) & set("wax+"):
            trap.step("opened", file)
        return stream

    builtins.open = io.open = opened
    sys.addaudithook(trap.hook)
    return trap


def disarm() -> None:
    """Kill no more."""
    for trap in _TRAPS:
        trap.armed = False
