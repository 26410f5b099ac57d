"""Tasks handed to workers until all are done: the costliest first, a lost worker replaced, its task done again.

What a worker is (a process, a Ray actor, this very process) is a Backend's business; every executor drives its own
backend by the one loop here.
"""

from __future__ import annotations

import heapq
import pickle
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from curate.errors import CurateFailure
from curate.kinds.method import Method
from curate.machine import peak_bytes

_LOOK = 1.0  # seconds between two looks at the clock while workers are busy


@dataclass(frozen=True)
class Ready:
    """A worker that can take a task."""


@dataclass(frozen=True)
class TaskResult:
    """A task's end: what it raised, if it did, the most memory its process has held, in bytes, and what it returned."""

    error: Exception | None = None
    peak_bytes: int = 0
    result: Any = None


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with its task undone."""

    why: str


Outcome: TypeAlias = Ready | TaskResult | Lost


class Backend(ABC):
    """Up to `size` workers of one kind."""

    size: int

    @abstractmethod
    def start(self) -> Any:
        """Begin to start a worker; `wait` says when it is ready."""

    @abstractmethod
    def send(self, worker: Any, run_task: Callable[[Any], Any], task: Any) -> None:
        """Hand a task to a ready worker; it calls run_task(task)."""

    @abstractmethod
    def wait(self, workers: Sequence[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """What became of workers that are starting or busy; [] after so many seconds."""

    @abstractmethod
    def stop(self, worker: Any) -> None:
        """End a worker at once, whatever it does."""

    @abstractmethod
    def close(self) -> None:
        """Give back what all workers share."""


def attempt(run_task: Callable[[Any], Any], task: Any) -> TaskResult:
    """What every worker does with a task."""
    error, result = None, None
    try:
        result = run_task(task)
    except Exception as raised:
        raised.add_note(f"in a worker: {traceback.format_exc()}")
        error = _portable(raised)
    return TaskResult(error, peak_bytes(), result)


def _portable(error: Exception) -> Exception:
    """The error as another process can read it."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # whatever an exception of someone else's does when it is copied
        return CurateFailure(f"{type(error).__name__}: {error}")


class Tasks:
    """Tasks not handed out yet. The costliest comes first, of equal ones the first added; more may come meanwhile."""

    def __init__(self, tasks: Iterable[Any] = ()):
        self._heap: list[tuple[float, int, Any]] = []
        self._added = 0
        for task in tasks:
            self.add(task)

    def add(self, task: Any) -> None:
        heapq.heappush(self._heap, (-task.cost, self._added, task))
        self._added += 1

    def take(self) -> Any:
        return heapq.heappop(self._heap)[2]

    def __len__(self) -> int:
        return len(self._heap)

    def samples(self) -> int:
        return sum(task.samples for *_, task in self._heap)


@dataclass
class Workers:
    """Workers that outlive a pass: started when first needed, kept until closed.

    attempts: how often a task is begun before it is given up. timeout: seconds after which a task counts as hung.
    patience: seconds within which the first worker must be ready.
    """

    backend: Backend
    attempts: int
    timeout: float
    patience: float = 300.0
    _idle: list[Any] = field(default_factory=list)
    _starting: dict[Any, float] = field(default_factory=dict)
    _busy: dict[Any, tuple[Any, float]] = field(default_factory=dict)

    def run(
        self, run_task: Callable[[Any], Any], tasks: Tasks, begun: Callable[[Any], None]
    ) -> Iterator[tuple[Any, TaskResult]]:
        """Do all tasks; yields each as it ends, in any order. begun(task) is called whenever one begins.

        After an error no task begins any more, those under way are let finish, and it is raised. Raises CurateFailure
        where a task was lost `attempts` times.
        """
        lost: Counter[str] = Counter()
        error: Exception | None = None
        while self._busy or (tasks and not error):
            while tasks and not error and self._idle:
                worker, task = self._idle.pop(), tasks.take()
                begun(task)
                self._busy[worker] = (task, time.monotonic())
                self.backend.send(worker, run_task, task)
            self._hire(0 if error else len(tasks))
            for worker, outcome in self._outcomes():
                task = self._over(worker, outcome)
                if isinstance(outcome, Ready):
                    del lost["starting"]  # they do start
                elif isinstance(outcome, Lost):
                    what = "starting" if task is None else str(task)
                    lost[what] += 1
                    if lost[what] >= self.attempts:
                        error = error or _given_up(what, self.attempts, outcome)
                    elif task is not None:
                        tasks.add(task)
                elif outcome.error:
                    error = error or outcome.error
                else:
                    yield task, outcome
        if error:
            raise error

    def close(self) -> None:
        for worker in [*self._idle, *self._starting, *self._busy]:
            self.backend.stop(worker)
        self._idle, self._starting, self._busy = [], {}, {}
        self.backend.close()

    def _hire(self, waiting: int) -> None:
        """Start workers for tasks that wait, as long as there is room."""
        at_work = len(self._idle) + len(self._starting) + len(self._busy)
        for _ in range(min(waiting - len(self._starting), self.backend.size - at_work)):
            self._starting[self.backend.start()] = time.monotonic()

    def _outcomes(self) -> list[tuple[Any, Outcome]]:
        found = self.backend.wait([*self._busy, *self._starting], _LOOK)
        now, heard = time.monotonic(), {worker for worker, _ in found}
        for worker, (_, since) in self._busy.items():
            if now - since > self.timeout and worker not in heard:
                found.append((worker, Lost(f"it did not end within {self.timeout:g} s")))
        stuck = self._starting and not (self._busy or self._idle or found)
        if stuck and now - min(self._starting.values()) > self.patience:
            raise CurateFailure(
                f"no worker has started within {self.patience:.0f} s; are there machines with what each asks for?"
            )
        return found

    def _over(self, worker: Any, outcome: Outcome) -> Any:
        """Take note of a worker's state; returns the task it had."""
        self._starting.pop(worker, None)
        task, _ = self._busy.pop(worker, (None, 0.0))
        if isinstance(outcome, Lost):
            self.backend.stop(worker)
        else:
            self._idle.append(worker)
        return task


def _given_up(what: str, attempts: int, outcome: Lost) -> CurateFailure:
    return CurateFailure(
        f"a worker was lost {attempts} times at {what}: {outcome.why}; what is committed stays, and the same command "
        "goes on from there (with fewer --workers where memory was short, a longer timeout where time was)."
    )


class Executor(Method):
    """Who runs the tasks of a stage, and where; the bytes they write do not depend on it."""

    @abstractmethod
    def open(self) -> Workers:
        """Workers, to be closed after use; they start when there is something to do."""
