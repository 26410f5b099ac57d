from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError
from curate.kinds.executor import Backend, Executor, Lost, Outcome, Ready, Workers, attempt


@dataclass(frozen=True)
class Ray(Executor):
    """Ray actors, on this machine or on a cluster.

    Each worker is an actor that keeps what it has loaded from task to task. An actor that is lost, or whose node is
    lost, is replaced wherever the cluster has room, and its task is run again, up to `attempts` times. The machines
    must share the workspace (a shared file system, or s3://) and have curate installed.

    Without `address`, and without RAY_ADDRESS, a Ray of its own is started that listens on this machine alone, and ends
    with the command. Needs `pip install 'curate-lm[ray]'`.

    Cost: some seconds to start Ray and the actors; a millisecond or two for each task. Ray holds no data: a task
    names rows, and its worker reads them from the workspace and writes the result there.

    >>> Ray(workers=2, gpus=0.5).settings()["gpus"]
    0.5
    """

    workers: int | None = None
    """Actors; by default as many as the cluster's CPUs and GPUs allow when the command starts."""
    cpus: float = 1.0
    """CPUs of each actor."""
    gpus: float = 0.0
    """GPUs of each actor; a fraction shares one."""
    address: str | None = None
    """An existing cluster: HOST:PORT, ray://HOST:PORT or auto."""
    timeout: float = 3600.0
    """Seconds after which a task counts as hung."""
    attempts: int = 3
    """How often a task is started, if its actor is lost or hangs, before the command gives up."""
    patience: float = 300.0
    """Seconds to wait for the first actor; the cluster may have to add a machine for it."""

    def __post_init__(self) -> None:
        amounts = (self.timeout, self.attempts, self.patience, self.cpus + self.gpus)
        if self.workers is not None and self.workers < 1 or min(*amounts, self.cpus + 1, self.gpus + 1) <= 0:
            raise CurateError(
                "the executor 'ray' needs workers >= 1, cpus and gpus >= 0 and not both 0, timeout, attempts and "
                f"patience > 0, not {', '.join(f'{key}={value}' for key, value in self.settings().items())}."
            )

    def open(self) -> Workers:
        return Workers(_Actors(self), self.attempts, self.timeout, self.patience)


class _Server:
    """Runs tasks; keeps the run_task it was given, and with it what that has opened."""

    def __init__(self) -> None:
        self.known: tuple[str, Any] = ("", None)

    def ready(self) -> Ready:
        return Ready()

    def do(self, key: str, holder: list[Any], task: Any) -> Any:
        """Run a task. holder: a reference to run_task, fetched when its key is new."""
        import ray

        if self.known[0] != key:
            self.known = (key, ray.get(holder[0]))
        return attempt(self.known[1], task)


class _Actors(Backend):
    """Workers are identified by numbers; `at_work` holds the pending result of each."""

    def __init__(self, settings: Ray):
        self.settings = settings
        self.ray, self.mine = _connected(settings.address)
        self.size = settings.workers or self._room()
        self.actors: dict[int, Any] = {}
        self.at_work: dict[int, Any] = {}
        self.started = 0
        self.packed: tuple[Any, Any] = (None, None)
        self.actor = self.ray.remote(_Server).options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_restarts=0,
            runtime_env={"env_vars": {"POLARS_MAX_THREADS": str(max(1, int(settings.cpus)))}},
        )

    def _room(self) -> int:
        available = self.ray.cluster_resources()
        needed = {"GPU": self.settings.gpus, "CPU": self.settings.cpus}
        return max(1, min(int(available.get(resource, 0) / amount) for resource, amount in needed.items() if amount))

    def start(self) -> int:
        self.started += 1
        actor = self.actors[self.started] = self.actor.remote()
        self.at_work[self.started] = actor.ready.remote()
        return self.started

    def send(self, worker: int, run_task: Callable[[Any], Any], task: Any) -> None:
        if self.packed[0] is not run_task:
            self.packed = (run_task, self.ray.put(run_task))
        reference = self.packed[1]
        self.at_work[worker] = self.actors[worker].do.remote(reference.hex(), [reference], task)

    def wait(self, workers: Sequence[int], seconds: float) -> list[tuple[int, Outcome]]:
        answers = {self.at_work[worker]: worker for worker in workers}
        ready, _ = self.ray.wait(list(answers), num_returns=len(answers), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(list(answers), num_returns=1, timeout=seconds)
        return [(answers[answer], self._heard(answer)) for answer in ready]

    def _heard(self, answer: Any) -> Outcome:
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            return Lost(_why(error))

    def stop(self, worker: int) -> None:
        self.ray.kill(self.actors.pop(worker))
        self.at_work.pop(worker, None)

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def _why(error: Exception) -> str:
    """Ray's long report on a lost actor, as part of a sentence: the cause that it gives, else its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    cause = next((line for line in lines if line.startswith("The actor") and "because" in line), lines[0])
    return f"{type(error).__name__}: {cause.split(' Some common causes')[0].rstrip('.')[:300]}"


def _connected(address: str | None) -> tuple[Any, bool]:
    """The module ray, connected; and whether the connection is ours to close."""
    alone = not (address or os.environ.get("RAY_ADDRESS"))
    if alone:  # to be set before ray is imported: a Ray of our own is not to contact other machines
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise CurateError("Ray is not installed: `pip install 'curate-lm[ray]'`, or use --executor local.") from None
    if ray.is_initialized():
        return ray, False
    target = address or os.environ.get("RAY_ADDRESS") or ""
    try:
        _reach(target)
        dashboard = False if alone else None
        # "local", or Ray would join whatever cluster was last started here, even one that is no more
        where = "local" if alone else address
        ray.init(where, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CurateError(f"no Ray could be reached at {target or 'this machine'}: {message}.") from None
    return ray, True


def _reach(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT; Ray itself would end the whole process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
