"""The executor `local`'s workers as forks of a process that has the libraries, which start in no time.

The backend is the real one but for how a worker comes to be: a second to start a process, or four where it needs torch,
is most of what a test of two workers costs. Real ones are started in tests/methods/test_executors.py.
"""

from __future__ import annotations

import tempfile
from multiprocessing.connection import Client, Listener
from typing import Any

from curate.methods.executors.local import _Process, _Processes
from tests.support import forks

SERVE = """
import os, sys
from curate.methods.executors.local import _serve
from tests.support.forked_workers import connected
_serve(connected(sys.argv[1]), os.getppid())
"""


def start(backend: _Processes) -> _Process:
    """In place of _Processes.start."""
    with (
        tempfile.TemporaryDirectory(prefix="curate-pipe-") as folder,
        Listener(f"{folder}/pipe", "AF_UNIX") as listener,
    ):
        forked: Any = forks.start(SERVE, f"{folder}/pipe", environment=backend._environment())
        pipe: Any = listener.accept()
    backend.started += 1
    return _Process(forked, pipe)


def connected(address: str) -> int:
    """The worker's end of the pipe."""
    pipe = Client(address)
    handle = pipe.fileno()
    pipe._handle = None  # type: ignore[attr-defined]  # or it would be closed with this object
    return handle
