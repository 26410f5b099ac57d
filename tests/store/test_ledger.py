"""The ledger: every entry is read once and in the order of appending, whenever a writer is killed, whatever the clock
says, and whichever of its files are lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import curate
from curate.errors import DamagedError
from curate.machine import myself
from curate.store import ledger_files
from curate.store.commits import LIST
from curate.store.encoding import write_json, write_table
from curate.store.ledger import charged, close_dead_accounts
from curate.store.ledger_files import append, read_entries
from curate.store.run_record import Run
from curate.store.schema import LEDGER
from curate.store.workspace import Workspace

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(i: int, **columns: Any) -> dict[str, Any]:
    """A pass over i samples; the clock goes backwards."""
    return {"at": NOW - timedelta(hours=i), "stage": "score", "methods": ["x"], "name": "x", "samples": i, **columns}


def filled(folder: Path, count: int) -> Path:
    for i in range(count):
        append(folder, f"part-{1000 - i}-7", row(i))
    return folder


def read(folder: Any) -> list[tuple[str, int, int]]:
    entries = read_entries(folder)
    assert not entries.lost
    return list(zip(*(entries.table[name].to_pylist() for name in ("entry", "sequence", "samples")), strict=True))


EXPECTED = [(f"part-{1000 - i}-7", i, i) for i in range(30)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are merged once there are more than four of one entry, and not beyond ten entries."""
    monkeypatch.setattr(ledger_files, "SMALL", 4)
    monkeypatch.setattr(ledger_files, "_MERGED", 10)


def test_entries_are_in_the_order_of_appending_and_files_are_few(tmp_path: Path, few: None) -> None:
    filled(tmp_path, 30)
    assert read(tmp_path) == EXPECTED
    names = ledger_files.names_of(tmp_path / "ledger")
    assert names == ["rows-00000000-00000009", "rows-00000010-00000019", "rows-00000020-00000029"]


class Killed(BaseException):
    """As a kill ends a process: nothing that catches errors catches it."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the k-th change of the ledger's files raise before it is done."""

    def arm(k: int) -> None:
        left = [k]

        def hurt(call: Callable[..., Any]) -> Callable[..., Any]:
            def changed(path: Any, *given: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return call(path, *given, **named)

            return changed

        monkeypatch.setattr(ledger_files, "write_atomic", hurt(ORIGINALS["write_atomic"]))
        monkeypatch.setattr(ledger_files, "write_list", hurt(ORIGINALS["write_list"]))
        unlink = hurt(ORIGINALS["unlink"])
        kept = lambda path, *a, **k: (unlink if "ledger" in path.parts else ORIGINALS["unlink"])(path, *a, **k)  # noqa: E731
        monkeypatch.setattr(Path, "unlink", kept)

    return arm


ORIGINALS: dict[str, Callable[..., Any]] = {
    "write_atomic": ledger_files.write_atomic,
    "write_list": ledger_files.write_list,
    "unlink": Path.unlink,
}


def test_a_kill_at_any_write_loses_and_repeats_nothing(
    tmp_path: Path, dying: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_files, "SMALL", 2)  # so that six entries are merged twice
    monkeypatch.setattr(ledger_files, "_MERGED", 4)
    kills = 0
    for k in range(1, 27):
        folder = tmp_path / str(k)
        dying(k)
        done = 0
        try:
            for done in range(6):
                append(folder, f"part-{1000 - done}-7", row(done))
        except Killed:
            kills += 1
            dying(0)
            found = read(folder)
            assert found in (EXPECTED[:done], EXPECTED[: done + 1])  # at once, before another writer comes
            for i in range(done, 6):
                append(folder, f"part-{1000 - i}-7", row(i), again=True)
        dying(0)
        assert read(folder) == EXPECTED[:6]
        assert all(isinstance(seen, int) for seen in checked(folder))
    assert kills == 24


def checked(folder: Path, repair: bool = False) -> list[Any]:
    from curate.runs.integrity import check_ledger

    return list(check_ledger(Workspace(folder), repair))


def old_ledger(folder: Path, count: int) -> None:
    """As earlier versions wrote it: no list, no numbers; the order is that of time."""
    for i in range(count):
        write_table(folder / f"ledger/part-{i}-7.parquet", pa.Table.from_pylist([row(i)], schema=LEDGER))


def test_an_old_ledger_reads_the_same_before_and_after_its_first_writer(tmp_path: Path, few: None) -> None:
    old_ledger(tmp_path, 9)
    before = read(tmp_path)
    assert [samples for _, _, samples in before] == list(range(8, -1, -1))  # by time
    assert not (tmp_path / "ledger" / LIST).exists()  # reading writes nothing
    append(tmp_path, "part-77-7", row(9))
    assert read(tmp_path) == [*before, ("part-77-7", 9, 9)]
    assert ledger_files.names_of(tmp_path / "ledger") == ["rows-00000000-00000009"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


DAMAGES = {"deleted": Path.unlink, "cut": cut, "zeroed": zeroed, "flipped": flipped}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", ["rows-00000000-00000004", "part-994-7", LIST])
def test_damage_is_found_and_told_and_the_rest_is_read(
    ws: Workspace, few: None, file: str, damage: Callable[[Path], None]
) -> None:
    filled(Path(str(ws.path)), 8)
    part = file if file == LIST else f"{file}.parquet"
    damage(Path(str(ws.path / "ledger" / part)))
    kept = {"rows-00000000-00000004": range(5, 8), "part-994-7": [0, 1, 2, 3, 4, 5, 7]}.get(file, range(8))
    entries = read_entries(ws.path)
    assert sorted(entries.table["samples"].to_pylist()) == list(kept)
    for command in (lambda: curate.ledger(ws), lambda: curate.sql(ws, "SELECT * FROM ledger")):
        with pytest.raises(DamagedError, match=f"1 of the files of the ledger .*{file}.*curate verify"):
            command()
    (found,) = curate.verify(ws).damaged
    assert (found.kind, found.part, found.repaired) == ("ledger", part, False)
    append(ws.path, "part-1-7", row(20))  # a command goes on
    assert curate.verify(ws).damaged == [found]  # and hides nothing
    assert curate.verify(ws, repair=True).damaged[0].repaired
    assert curate.verify(ws).damaged == []
    assert sorted(samples for _, _, samples in read(ws.path)) == [*kept, 20]
    assert len(curate.sql(ws, "SELECT * FROM ledger")) == len(kept) + 1


def test_a_stray_file_that_cannot_be_read_is_found_too(ws: Workspace) -> None:
    filled(Path(str(ws.path)), 2)
    (ws.path / "ledger/part-5-5.parquet").write_bytes(b"PAR1")
    (found,) = curate.verify(ws).damaged
    assert found.part == "part-5-5.parquet" and found.what == "cannot be read"
    curate.verify(ws, repair=True)
    assert read(ws.path) == EXPECTED[:2] and (ws.path / "ledger/set-aside/part-5-5.parquet").exists()


def test_the_account_of_a_dead_process_is_not_entered_again_once_it_is_merged(ws: Workspace, few: None) -> None:
    filled(Path(str(ws.path)), 5)
    assert ledger_files.names_of(ws.path / "ledger") == ["rows-00000000-00000004"]
    owner = {**myself(), "born": "1"}
    for name in ("part-998-7", "part-5-7"):  # the first is there
        content = {"owner": owner, "row": {**row(5), "at": NOW.isoformat()}}
        write_json(ws.path / "ledger/open" / f"{name}.json", json.loads(json.dumps(content, default=str)))
    close_dead_accounts(ws.path)
    assert read(ws.path) == [*EXPECTED[:5], ("part-5-7", 5, 5)]
    assert not list((ws.path / "ledger/open").iterdir())


def test_a_clock_that_is_set_back_takes_no_cost_away(
    few_ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is made two hours after the training begins, which is killed and gone on with an hour before."""

    class Clock(datetime):
        hours = 0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=cls.hours)

    def dying(run: Run, step: int, *given: Any, **record: Any) -> None:
        if step == 2:
            raise Killed
        commit(run, step, *given, **record)

    commit, costs = Run.commit, []
    for module in ("ledger", "run_record"):
        monkeypatch.setattr(f"curate.store.{module}.datetime", Clock)
    for k, hours in enumerate([(0, 0, 0), (2, 0, -1)]):
        shutil.copytree(str(few_ws.path), tmp_path / str(k))
        ws = curate.open_workspace(tmp_path / str(k))
        Clock.hours = hours[0]
        curate.score(ws, "nll", models="tiny")
        curate.select(ws, "best", by="nll", top=6)
        again = partial(
            curate.train, ws, "run", model="tiny", manifest="best", steps=2, batch_size=2, checkpoint_every=1
        )
        Clock.hours = hours[1]
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Run, "commit", dying)
            again()
        Clock.hours = hours[2]
        again()
        curate.prune(ws, "run", "magnitude", 0.5, name="pruned")
        costs.append([replace(line.cost, seconds=0.0) for line in curate.compare(ws).lines])
    assert costs[0] == costs[1] and costs[0][0].prep > 0
    assert costs[0][0].train == pytest.approx(costs[0][1].train) and costs[0][0].samples_seen == 6


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, few_ws: Workspace) -> Iterator[Workspace]:
    """A workspace on a disk that is mounted for reading."""
    curate.score(few_ws, "embed")
    curate.select(few_ws, "best", by="n_chars", top=5)
    root, opened, made = str(few_ws.path), Path.open, Path.mkdir

    def refused(self: Path, *given: Any, **named: Any) -> None:
        if str(self).startswith(root):
            raise OSError(errno.EROFS, "Read-only file system", str(self))

    def reading(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        if mode.strip("bt") != "r":
            refused(self)
        return opened(self, mode, *given, **named)

    def existing(self: Path, *given: Any, **named: Any) -> None:
        if not self.exists():
            refused(self)
        made(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", reading)
        patch.setattr(Path, "mkdir", existing)
        patch.setattr(Path, "unlink", refused)
        patch.setattr("filelock.FileLock", lambda path, **_: refused(Path(path)))
        yield few_ws


def test_a_read_only_workspace_can_be_read(read_only: Workspace, tmp_path: Path, capsys: Any) -> None:
    ws, before = read_only, len(read(read_only.path))
    assert len(curate.neighbors(ws, "embed", text="a sum", k=3).found) == 3
    curate.export(ws, "best", "jsonl", tmp_path / "out")
    assert curate.sql(ws, "SELECT count(*) AS n FROM samples")[0]["n"] == 24
    curate.show(ws, "best")
    curate.ledger(ws), curate.status(ws), curate.verify(curate.open_workspace(ws.path))
    said = capsys.readouterr().err
    assert said.count("cannot be written, so what this costs is not recorded") == 1
    assert len(read(ws.path)) == before


@pytest.mark.parametrize("lost", [["index.faiss"], ["index.json"], ["index.faiss", "index.json"]])
def test_a_read_only_workspace_without_an_index_is_searched_vector_by_vector(
    read_only: Workspace, lost: list[str]
) -> None:
    folder = read_only.path / "vectors/embed"
    sample = curate.sql(read_only, "SELECT id FROM pool")[0]["id"]
    by_index = curate.neighbors(read_only, "embed", sample_id=sample, k=100)
    for name in lost:
        os.remove(str(folder / name))
    found = curate.neighbors(read_only, "embed", sample_id=sample, k=100)
    assert [near["id"] for near in found.found] == [near["id"] for near in by_index.found] and len(found.found) == 23
    assert any("cannot be written: each vector was compared" in warning for warning in found.warnings)
    assert not any((folder / name).exists() for name in lost)


def test_charges_of_one_process_by_many_threads_are_all_there(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def charge(i: int) -> None:
        with charged(tmp_path, "score", methods=[], name="x", phase="p") as meter:
            meter.samples = i + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(charge, range(12)))
    found = read(tmp_path)
    assert sorted(samples for _, _, samples in found) == list(range(1, 13))
    assert [sequence for _, sequence, _ in found] == list(range(12))
    shutil.rmtree(tmp_path / "ledger")
