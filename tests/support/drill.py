"""Runs that are killed with kill -9 at random points, and what they had begun by then."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import curate
from curate.store.workspace import Workspace
from tests.conftest import ROOT
from tests.support import forks

DRIVER = """
    import os, sys
    import curate
    from curate.methods.executors.local import Local
    from curate.methods.executors.ray import Ray
    from tests.support.faulty import Slow

    if __name__ == "__main__":
        if os.getsid(0) != os.getpid():
            os.setsid()  # a fork, which is to be told from others' by its session, as a process of its own is
        path, executor, fresh = sys.argv[1:]
        made = {"one": Local, "local": lambda: Local(workers=3), "ray": lambda: Ray(workers=2)}[executor]()
        curate.score(curate.open_workspace(path), Slow(), target="arithmetic", executor=made, fresh=fresh == "fresh")
"""

Driver = subprocess.Popen[bytes] | forks.Forked


class Drill:
    """Runs of one score that are killed, and what they have begun."""

    def __init__(self, ws: Workspace, tmp_path: Path, seed: int):
        self.ws, self.begun, self.script = ws, tmp_path / "begun", tmp_path / "driver.py"
        self.chance = random.Random(seed)
        self.script.write_text(textwrap.dedent(DRIVER))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CURATE_BEGUN": str(self.begun),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.begun.touch()

    def start(self, executor: str, fresh: bool = False) -> Driver:
        """A fork that has the libraries already; only Ray wants a process from its beginning. Workers are real ones."""
        words = (str(self.ws.path), executor, "fresh" if fresh else "goon")
        if executor != "ray":
            return forks.start(DRIVER, *words, environment=self.environment)
        command = [sys.executable, str(self.script), *words]
        return subprocess.Popen(
            command, env=self.environment, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def count(self) -> int:
        return len(self.begun.read_text().splitlines())

    def kill_during(self, executor: str, victim: str, fresh: bool = False) -> bool:
        """Start a run and kill its driver or one of its workers a random number of units later."""
        before, process = self.count(), self.start(executor, fresh)
        after = self.chance.randint(0, 12)
        while process.poll() is None and self.count() < before + after:
            time.sleep(0.002)
        time.sleep(self.chance.uniform(0, 0.03))
        killed = process.poll() is None and self._strike(process, victim)
        if victim == "driver" or not killed:
            process.kill()
        else:
            time.sleep(self.chance.uniform(0.05, 0.3))  # the driver replaces its worker, and dies a little later
            process.kill()
        process.wait()
        return killed

    def _strike(self, process: Driver, victim: str) -> bool:
        if victim == "driver":
            process.kill()
            return True
        workers = self.workers(process)
        if not workers:
            return False
        os.kill(self.chance.choice(workers), signal.SIGKILL)
        return True

    def workers(self, process: Driver) -> list[int]:
        listed = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True).stdout.splitlines()
        rows = [line.split(None, 2) for line in listed[1:]]
        ours = ("curate.methods.executors.local", "ray::_Server")
        return [int(pid) for pid, sid, args in rows if sid == str(process.pid) and any(o in args for o in ours)]

    def finish(self, executor: str, fresh: bool = False) -> None:
        process = self.start(executor, fresh)
        assert process.wait(timeout=120) == 0

    def histories(self) -> list[list[str]]:
        """The units begun, for each time the score was begun from nothing."""
        return [path.read_text().splitlines() for path in self.begun.parent.glob("begun*")]

    def repeated(self) -> int:
        """Units that were begun more than once."""
        return sum(n - 1 for units in self.histories() for n in Counter(units).values())

    def samples_begun(self) -> int:
        return sum(int(unit.split()[2]) for units in self.histories() for unit in units)

    def samples_charged(self) -> int:
        ws = curate.open_workspace(self.ws.path)
        return sum(row["samples"] for row in curate.ledger(ws) if row["stage"] == "score")


def leftovers(ws: Workspace) -> list[str]:
    """Files that only a writer under way may have."""
    found = [p for p in ws.path.rglob("*") if p.name.endswith((".tmp", ".dropped", ".fresh")) or p.name == "_units"]
    return [str(p) for p in [*found, *(ws.path / "ledger/open").glob("*")]]
