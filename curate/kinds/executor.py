"""Hands tasks to workers until all are done: most expensive first; a lost worker is replaced and its task repeated.

What a worker is (a process, a Ray actor, this process itself) is up to the Backend; all executors share the loop
below.
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

_LOOK = 1.0  # seconds between checks for time-outs while workers are busy
_AHEAD = 3  # tasks that are taken for each worker before the first of them is done, where their order is kept


@dataclass(frozen=True)
class Ready:
    """A worker that can take a task."""


@dataclass(frozen=True)
class TaskResult:
    """The outcome of a task: its exception, if any, the peak memory of its process in bytes, and its return value."""

    error: Exception | None = None
    peak_bytes: int = 0
    result: Any = None


@dataclass(frozen=True)
class Lost:
    """A worker died before it finished its task."""

    why: str


Outcome: TypeAlias = Ready | TaskResult | Lost


class Backend(ABC):
    """Up to `size` workers of one kind."""

    size: int

    @abstractmethod
    def start(self) -> Any:
        """Start a worker without waiting for it; `wait` reports when it is ready."""

    @abstractmethod
    def send(self, worker: Any, run_task: Callable[[Any], Any], task: Any) -> None:
        """Hand a task to a ready worker, which calls run_task(task)."""

    @abstractmethod
    def wait(self, workers: Sequence[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """Outcomes of workers that are starting or busy; [] if there are none within `seconds`."""

    @abstractmethod
    def stop(self, worker: Any) -> None:
        """Terminate a worker at once, even if it is busy."""

    @abstractmethod
    def close(self) -> None:
        """Release the resources that the workers share."""


def attempt(run_task: Callable[[Any], Any], task: Any) -> TaskResult:
    """Run a task in a worker; an exception is returned in the result instead of raised."""
    error, result = None, None
    try:
        result = run_task(task)
    except Exception as raised:  # noqa: BLE001  whatever a task raises is its result
        raised.add_note(f"in a worker: {traceback.format_exc()}")
        error = _portable(raised)
    return TaskResult(error, peak_bytes(), result)


def _portable(error: Exception) -> Exception:
    """The error in a form that can be pickled and read by another process."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # third-party exceptions may fail in any way when pickled  # noqa: BLE001
        return CurateFailure(f"{type(error).__name__}: {error}")


class Tasks:
    """A queue of tasks, most expensive first; ties in the order added. Tasks may be added while others run."""

    def __init__(self, tasks: Iterable[Any] = ()):
        self._heap: list[tuple[float, int, Any]] = []
        self._added = 0
        for task in tasks:
            self.add(task)

    def add(self, task: Any) -> None:
        """Add a task with the attributes `cost` and `samples`."""
        heapq.heappush(self._heap, (-task.cost, self._added, task))
        self._added += 1

    def take(self) -> Any:
        """Remove and return the most expensive task."""
        return heapq.heappop(self._heap)[2]

    def __len__(self) -> int:
        return len(self._heap)

    def samples(self) -> int:
        """The number of samples in all queued tasks."""
        return sum(task.samples for *_, task in self._heap)


@dataclass(frozen=True)
class _Numbered:
    """An item as a task; all cost the same, so they are begun in their order."""

    number: int
    item: Any
    cost: float = 0.0
    samples: int = 0

    def __str__(self) -> str:
        return f"block {self.number:,}"


class _Coming:
    """What an iterator gives, numbered, and the error that ended it."""

    def __init__(self, items: Iterable[Any]):
        self._items, self.taken = iter(items), 0
        self.error: Exception | None = None

    def take(self, most: int) -> list[_Numbered]:
        """The next ones, as far as there are so many."""
        found = list[_Numbered]()
        try:
            while len(found) < most:
                found.append(_Numbered(self.taken, next(self._items)))
                self.taken += 1
        except StopIteration:
            self._items = iter(())
        except Exception as error:  # of whoever gives the items; `in_order` raises it  # noqa: BLE001
            self._items, self.error = iter(()), error
        return found


@dataclass
class Workers:
    """Workers that outlive a pass: started when first needed, kept until closed.

    attempts: how often a task is started before giving up on it. timeout: seconds after which a task counts as hung.
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
        """Run all tasks; yields each as it finishes, in any order. begun(task) is called whenever one starts.

        After an error no further task is started; those in progress finish, and then the error is raised. Raises
        CurateFailure if the worker of one task was lost `attempts` times.
        """
        lost: Counter[str] = Counter()
        error: Exception | None = None
        while self._busy or (tasks and not error):
            if not error:
                self._send(run_task, tasks, begun)
            self._hire(0 if error else len(tasks))
            for worker, outcome in self._outcomes():
                task = self._over(worker, outcome)
                if isinstance(outcome, TaskResult) and outcome.error is None:
                    yield task, outcome
                else:
                    error = error or self._problem(task, outcome, tasks, lost)
        if error:
            raise error

    def _send(self, run_task: Callable[[Any], Any], tasks: Tasks, begun: Callable[[Any], None]) -> None:
        """Hand out tasks as long as there are idle workers."""
        while tasks and self._idle:
            worker, task = self._idle.pop(), tasks.take()
            begun(task)
            self._busy[worker] = (task, time.monotonic())
            self.backend.send(worker, run_task, task)

    def _problem(self, task: Any, outcome: Outcome, tasks: Tasks, lost: Counter[str]) -> Exception | None:
        """The error to raise for an outcome, if any; the task of a lost worker is put back as long as it may be."""
        if isinstance(outcome, Ready):
            del lost["starting"]  # workers can start, so earlier failures to start no longer count
            return None
        if isinstance(outcome, TaskResult):
            return outcome.error
        label = "starting" if task is None else str(task)
        lost[label] += 1
        if lost[label] >= self.attempts:
            return _given_up(label, self.attempts, outcome)
        if task is not None:
            tasks.add(task)
        return None

    def in_order(self, run_task: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """run_task(item) of each item, in their order. Items are taken as workers need them, a few for each ahead of
        what was yielded last; what their iterator raises is raised after what came before.

        Raises what a task raises, and CurateFailure as `run` does.
        """
        ahead, coming = _AHEAD * self.backend.size, _Coming(items)
        tasks, done, following = Tasks(coming.take(ahead)), dict[int, Any](), 0
        for task, outcome in self.run(lambda numbered: run_task(numbered.item), tasks, lambda _: None):
            done[task.number] = outcome.result
            while following in done:
                yield done.pop(following)
                following += 1
            for more in coming.take(ahead - (coming.taken - following)):
                tasks.add(more)
        if coming.error:
            raise coming.error

    def close(self) -> None:
        """Stop all workers and close the backend."""
        for worker in [*self._idle, *self._starting, *self._busy]:
            self.backend.stop(worker)
        self._idle, self._starting, self._busy = [], {}, {}
        self.backend.close()

    def _hire(self, waiting: int) -> None:
        """Start workers for waiting tasks, up to the size of the backend."""
        at_work = len(self._idle) + len(self._starting) + len(self._busy)
        for _ in range(min(waiting - len(self._starting), self.backend.size - at_work)):
            self._starting[self.backend.start()] = time.monotonic()

    def _outcomes(self) -> list[tuple[Any, Outcome]]:
        outcomes = self.backend.wait([*self._busy, *self._starting], _LOOK)
        now, reported = time.monotonic(), {worker for worker, _ in outcomes}
        for worker, (_, started) in self._busy.items():
            if now - started > self.timeout and worker not in reported:
                outcomes.append((worker, Lost(f"it did not end within {self.timeout:g} s")))
        stuck = self._starting and not (self._busy or self._idle or outcomes)
        if stuck and now - min(self._starting.values()) > self.patience:
            raise CurateFailure(
                f"no worker has started within {self.patience:.0f} s; are there machines with what each asks for?"
            )
        return outcomes

    def _over(self, worker: Any, outcome: Outcome) -> Any:
        """Record the new state of a worker; returns the task it was running."""
        self._starting.pop(worker, None)
        task, _ = self._busy.pop(worker, (None, 0.0))
        if isinstance(outcome, Lost):
            self.backend.stop(worker)
        else:
            self._idle.append(worker)
        return task


def _given_up(label: str, attempts: int, outcome: Lost) -> CurateFailure:
    return CurateFailure(
        f"a worker was lost {attempts} times at {label}: {outcome.why}; what is committed stays, and the same command "
        "goes on from there (with fewer --workers where memory was short, a longer timeout where time was)."
    )


class Executor(Method):
    """Decides which workers run the tasks of a stage, and where; the bytes written do not depend on it."""

    @abstractmethod
    def open(self) -> Workers:
        """Workers, to be closed after use; they are started lazily, when there are tasks."""
