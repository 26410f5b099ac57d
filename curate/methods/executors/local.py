from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle

from curate.errors import CurateError
from curate.kinds.executor import Backend, Executor, Lost, Outcome, Ready, Workers, attempt


@dataclass(frozen=True)
class Local(Executor):
    """Worker processes on this machine, one per GPU where there are several.

    One worker needs no process of its own: the tasks run in the command's, one after another. Several share the CPU's
    cores (each is limited to its share of threads) and the GPUs (each sees one).

    A worker that dies or hangs is replaced and its task is run again, up to `attempts` times. When the command itself
    is killed, its workers go with it (on Linux at once, elsewhere after the task at hand).

    Cost: a second to start each process.

    >>> Local(workers=4).settings()
    {'workers': 4, 'timeout': 3600.0, 'attempts': 3}
    """

    workers: int | None = None
    """Worker processes; by default one per GPU where there are several, else one."""
    timeout: float = 3600.0
    """Seconds after which a task counts as hung, where there are several workers."""
    attempts: int = 3
    """How often a task is started, if its worker dies or hangs, before the command gives up."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1 or self.timeout <= 0 or self.attempts < 1:
            raise CurateError(
                "the executor 'local' needs workers >= 1, timeout > 0 and attempts >= 1, not "
                f"workers={self.workers}, timeout={self.timeout}, attempts={self.attempts}."
            )

    def open(self) -> Workers:
        devices = _devices()
        size = self.workers or max(1, len(devices))
        return Workers(_Itself() if size == 1 else _Processes(size, devices), self.attempts, self.timeout)


def _devices() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


@dataclass
class _Itself(Backend):
    """This very process."""

    size: int = 1
    _held: list[tuple[Callable[[Any], Any], Any]] = field(default_factory=list)

    def start(self) -> Any:
        return "itself"

    def send(self, worker: Any, run_task: Callable[[Any], Any], task: Any) -> None:
        self._held.append((run_task, task))

    def wait(self, workers: Sequence[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        return [("itself", attempt(*self._held.pop()) if self._held else Ready())]

    def stop(self, worker: Any) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(eq=False)
class _Process:
    """A worker process and our end of the pipe to it."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    knows: Any = None  # the run_task it was sent last


class _Processes(Backend):
    def __init__(self, size: int, devices: Sequence[str]):
        self.size, self.devices = size, devices
        self.started = 0
        self.packed: tuple[Any, bytes] = (None, b"")

    def start(self) -> _Process:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "curate.methods.executors.local", str(theirs.fileno()), str(os.getpid())]
        # What a method prints goes to stderr, so that it does not mix with the command's own output.
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=self._environment(), stdin=subprocess.DEVNULL, stdout=2
        )
        theirs.close()
        self.started += 1
        return _Process(process, ours)

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self.size))
        limits = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), threads)
        device = {"CUDA_VISIBLE_DEVICES": self.devices[self.started % len(self.devices)]} if self.devices else {}
        return {**limits, **os.environ, **device, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}

    def send(self, worker: _Process, run_task: Callable[[Any], Any], task: Any) -> None:
        if self.packed[0] is not run_task:
            self.packed = (run_task, _packed(run_task))
        message = _packed((None if worker.knows is run_task else self.packed[1], task))
        with contextlib.suppress(OSError):  # the worker is dead, as `wait` will report
            worker.pipe.send_bytes(message)
        worker.knows = run_task

    def wait(self, workers: Sequence[_Process], seconds: float) -> list[tuple[Any, Outcome]]:
        by_pipe = {worker.pipe: worker for worker in workers}
        return [(by_pipe[pipe], _heard(by_pipe[pipe])) for pipe in wait(list(by_pipe), seconds)]  # type: ignore[index]

    def stop(self, worker: _Process) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.pipe.close()

    def close(self) -> None:
        pass


def _packed(value: Any) -> bytes:
    try:
        return cloudpickle.dumps(value)
    except Exception as error:  # a third-party method may hold anything  # noqa: BLE001
        raise CurateError(
            f"this method cannot be sent to a worker process ({type(error).__name__}: {error}); use one worker."
        ) from None


def _heard(worker: _Process) -> Outcome:
    try:
        return cloudpickle.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError):
        return Lost(_how_it_ended(worker.process.wait()))


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "it was killed (signal 9), as the system does with a process when memory is out"
    return f"it ended with signal {-status}" if status < 0 else f"it ended with status {status}"


# --- in the worker process -------------------------------------------------------------------------------


class _Server:
    """Runs tasks; keeps the run_task it was sent, and with it what that has opened."""

    run_task: Any = None

    def do(self, message: bytes) -> Any:
        packed, task = cloudpickle.loads(message)
        if packed is not None:
            self.run_task = cloudpickle.loads(packed)
        return self.run_task(task)


def _serve(handle: int, parent: int) -> None:
    """Run tasks until the pipe is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: to die with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    pipe, server = Connection(handle), _Server()
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(cloudpickle.dumps(Ready()))
        while os.getppid() == parent:
            pipe.send_bytes(cloudpickle.dumps(attempt(server.do, pipe.recv_bytes())))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
