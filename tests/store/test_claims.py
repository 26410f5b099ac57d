"""One writer: the living are respected, the dead of this machine are not, the silent of another only for a while."""

from __future__ import annotations

import json
import os
import time
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

ELSEWHERE = {"machine": "far-1234", "host": "far", "process": 4, "born": "9"}


def held_elsewhere(path: Path, silent_for: float) -> None:
    """The claim as a process of another machine leaves it, where locks do not reach from machine to machine."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ELSEWHERE))
    os.utime(path, (time.time() - silent_for,) * 2)


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
        assert json.loads(path.read_text()) == myself()
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
