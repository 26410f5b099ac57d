"""One writer: the living are respected, the dead of this machine are not, the silent of another only for a while."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.machine import LEASE, is_dead, myself
from curate.store.encoding import write_json
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl

ELSEWHERE = {"machine": "far-1234", "host": "far", "process": 4, "born": "9"}


def held_elsewhere(path: Path, silent_for: float) -> None:
    """The claim as a process of another machine leaves it, where locks do not reach from machine to machine."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ELSEWHERE))
    os.utime(path, (time.time() - silent_for,) * 2)


HOLDER = """
import sys, time
from pathlib import Path
from curate.store.locks import lock
with lock(Path(sys.argv[1]), "pool"):
    print("held", flush=True)
    time.sleep(60)
"""

EARLIER_HOLDER = """
import fcntl, json, sys, time
from pathlib import Path
from curate.machine import myself
path = Path(sys.argv[1]) / ".claims/pool"
path.parent.mkdir(exist_ok=True)
with path.open("a+") as f:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    f.write(json.dumps(myself()))
    f.flush()
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process_holds(folder: Path, code: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def named(path: Path) -> dict[str, Any]:
    """Who holds a claim."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key in myself()}


def refused(folder: Path) -> str:
    """What is said to one who asks for the pool's lock, which is held."""
    with pytest.raises(CurateError) as caught, lock(folder, "pool"):
        pass
    return str(caught.value)


def test_a_lock_of_another_process_is_refused_by_its_name_and_free_once_it_is_killed(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as process:
        for _ in range(2):  # asking does not take the holder's name away
            assert f"process {process.pid} on {myself()['host']} is writing the pool" in refused(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / ".claims/pool").read_text())["process"] == process.pid
        with lock(tmp_path, "pool"):
            assert named(tmp_path / ".claims/pool") == myself()


def test_one_who_waits_has_the_lock_when_its_holder_dies(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("curate.store.locks._PATIENCE", 0.02)
    with another_process_holds(tmp_path) as process:
        killing = threading.Timer(0.3, process.kill)
        killing.start()
        began = time.monotonic()
        with lock(tmp_path, "pool", wait=60):
            assert 0.25 < time.monotonic() - began < LEASE / 2 and process.wait() == -signal.SIGKILL
        killing.join()


def test_who_is_refused_or_waits_in_vain_is_told_by_whom_and_since_when(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws", wait=0.2)
    with another_process_holds(tmp_path / "ws") as process:
        for place, waits in ((ws.path, 0.0), (ws, 0.2)):
            began = time.monotonic()
            with pytest.raises(curate.WorkspaceBusy, match="is writing the pool, since 20") as caught:
                lock(place, "pool").__enter__()
            busy = pickle.loads(pickle.dumps(caught.value))
            assert (busy.what, busy.process, busy.host) == ("pool", process.pid, myself()["host"])
            assert busy.since and abs((datetime.now(UTC) - busy.since).total_seconds()) < 60
            assert waits <= busy.waited <= time.monotonic() - began and bool(busy.waited) == bool(waits)
            assert ("(waited 0 s)" in str(busy)) == bool(waits) and str(busy) == str(caught.value)
    with pytest.raises(CurateError, match="--wait must be a number of seconds"):
        curate.open_workspace(ws.path, wait=-1)


def test_verbs_and_commands_wait_as_long_as_they_are_told(ws: Workspace, monkeypatch: Any, cli: Any) -> None:
    path = write_jsonl(ws.path.parent / "a.jsonl", [{"text": "one"}])
    monkeypatch.setattr("curate.store.locks._PATIENCE", 0.05)
    with another_process_holds(ws.path) as process:
        for said in (["--wait", "0.1", "ingest", path], ["--wait", "60", "ingest", path, "--wait", "0.1"]):
            ended = cli(*said, "-w", ws.path)
            assert ended.returncode == 2 and "is writing the pool" in ended.stderr and "(waited 0 s)" in ended.stderr
        with pytest.raises(curate.WorkspaceBusy) as caught:
            curate.ingest(ws.path, path, wait=0.1)
        assert caught.value.waited >= 0.1
        threading.Timer(0.2, process.kill).start()
        assert curate.ingest(ws.path, path, wait=60).pool_rows == 1


def test_a_holder_whose_beat_fails_goes_on_with_the_next_and_learns_that_its_claim_is_gone(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("curate.store.locks.HEARTBEAT", 0.02)
    path, touch, failures = tmp_path / ".claims/pool", os.utime, [OSError("away")] * 2

    def utime(*given: Any) -> None:
        if failures:
            raise failures.pop()
        touch(*given)

    monkeypatch.setattr(os, "utime", utime)
    taken = json.dumps(ELSEWHERE)
    for change, said in ((path.unlink, "was removed"), (lambda: path.write_text(taken), "process 4 on far.* took it")):
        with lock(tmp_path, "pool") as held:
            touch(path, (1, 1))
            assert within(5, lambda: path.stat().st_mtime > 1)
            held.check()
            change()
            assert within(5, lambda: held.lost_to is not None)
            with pytest.raises(CurateError, match=f"claim on the pool is gone: .*{said}"):
                held.check()
    assert not failures and path.read_text() == taken  # what is another's stays


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    ends = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < ends:
        time.sleep(0.01)
    return found


def test_a_process_that_asks_twice_is_told_of_itself(tmp_path: Path) -> None:
    with lock(tmp_path, "pool"):
        assert f"process {os.getpid()} on" in refused(tmp_path)
        with lock(tmp_path, "score x"):
            pass  # another part is free
    with lock(tmp_path, "pool"):
        pass


def test_a_lock_is_free_after_its_holder_has_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path, "pool"):
        raise ZeroDivisionError
    assert (tmp_path / ".claims/pool").read_text() == ""
    with lock(tmp_path, "pool"):
        pass


def test_another_thread_may_give_the_lock_back(tmp_path: Path) -> None:
    held = lock(tmp_path, "pool")
    held.__enter__()
    leaving = threading.Thread(target=held.__exit__, args=(None, None, None))
    leaving.start()
    leaving.join()
    with lock(tmp_path, "pool"):
        pass


def test_an_earlier_version_of_curate_is_respected_while_it_lives(tmp_path: Path) -> None:
    with another_process_holds(tmp_path, EARLIER_HOLDER) as process:
        assert f"process {process.pid} on" in refused(tmp_path)
    with lock(tmp_path, "pool"):  # it left its name
        pass


@pytest.mark.parametrize("left", ["", "{", json.dumps({**myself(), "born": "1"}), json.dumps(myself())],
                         ids=["empty", "torn", "of a dead process", "of this process"])  # fmt: skip
def test_a_lock_file_that_an_earlier_version_left_is_no_obstacle(tmp_path: Path, left: str) -> None:
    (tmp_path / ".claims").mkdir()
    (tmp_path / ".claims/pool").write_text(left)
    with lock(tmp_path, "pool"):
        pass


def test_a_remote_holder_is_taken_for_dead_after_the_stated_time(tmp_path: Path) -> None:
    path = tmp_path / ".claims/score-x"
    held_elsewhere(path, silent_for=LEASE / 2)
    with (
        pytest.raises(CurateError, match=r"process 4 on far \(last sign of life 30 s ago; taken for dead after 60 s\)"),
        lock(tmp_path, "score x"),
    ):
        pass
    held_elsewhere(path, silent_for=LEASE + 1)
    with lock(tmp_path, "score x"):
        assert named(path) == myself()
    assert path.read_text() == ""  # given back


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("curate.store.locks.HEARTBEAT", 0.05)
    with lock(tmp_path, "pool"):
        path = tmp_path / ".claims/pool"
        os.utime(path, (1, 1))
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime < 10


def test_a_number_of_a_process_that_is_used_again_is_another_process() -> None:
    assert not is_dead(myself(), 1e9)
    assert is_dead({**myself(), "born": "1"}, 0)
    assert is_dead({**myself(), "process": 2**22 + 1}, 0)
    assert not is_dead(ELSEWHERE, 1) and is_dead(ELSEWHERE, LEASE + 1)


def test_a_killed_process_is_dead_before_its_parent_asks_after_it(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as process:
        holder = json.loads((tmp_path / ".claims/pool").read_text())
        assert not is_dead(holder, 0)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
        assert is_dead(holder, 0)


def test_the_account_of_a_dead_process_becomes_its_row_once(ws: Workspace) -> None:
    with charged(ws.path, "score", methods=["x"], name="x", phase="count") as meter:
        meter.begin(30)
        (account,) = (ws.path / "ledger/open").iterdir()
        opened = json.loads(account.read_text())
        curate.open_workspace(ws.path)
        assert account.exists()  # its owner lives
    assert [row["samples"] for row in curate.ledger(ws)] == [30]
    write_json(account, opened)  # killed between the row and the account's removal
    opened["owner"]["born"] = "1"
    write_json(account, opened)
    curate.open_workspace(ws.path)
    assert [row["samples"] for row in curate.ledger(ws)] == [30] and not account.exists()
    write_json(account.with_name("part-7-7.json"), opened)
    assert [row["samples"] for row in curate.ledger(curate.open_workspace(ws.path))] == [60]
