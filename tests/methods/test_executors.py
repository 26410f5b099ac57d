"""Workers: the same bytes from any number of them, and what becomes of those that die, hang, fail or lack memory."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.kinds.executor import Backend, Executor, Lost, Outcome, Ready, TaskResult, Tasks, Workers
from curate.methods.executors.local import Local
from curate.methods.executors.ray import Ray
from curate.store.workspace import Workspace
from tests.conftest import ROOT, tree_bytes
from tests.support.faulty import Faulty, Small


@pytest.fixture
def calm(sample_ws: Workspace, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """The score table of an undisturbed run in one process."""

    def run(method: Any, target: str | None = None) -> dict[str, bytes]:
        ws = curate.open_workspace(shutil.copytree(sample_ws.path, tmp_path / "calm"))
        curate.score(ws, method, target=target, names={method.name: "x"})
        return tree_bytes(ws.path / "scores")

    return run


def some_text(ws: Workspace, row: int) -> str:
    """The user's message of a sample, which no other sample holds."""
    return curate.sql(ws, f"SELECT coalesce(messages[1].content, text) AS t FROM pool WHERE row = {row}")[0]["t"]


def workers_left(forked: Sequence[Any] = ()) -> list[Any]:
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout.splitlines()
    left = [line for line in listed if "curate.methods.executors.local" in line and line.split()[0] == str(os.getpid())]
    return [*left, *(worker.pid for worker in forked if worker.poll() is None)]


# --- the same bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    sample_ws: Workspace, calm: Any, request: Any, workers: int
) -> None:
    """Two are real processes, four are forks."""
    forked = request.getfixturevalue("forked_workers") if workers == 4 else []
    want = calm(Small(), "arithmetic")
    (result,) = curate.score(
        sample_ws, Small(), target="arithmetic", names={"bm25": "x"}, executor=Local(workers=workers)
    )
    assert result.computed == 3000 and tree_bytes(sample_ws.path / "scores") == want
    assert workers_left(forked) == [] and len(forked) == (4 if workers == 4 else 0)


@pytest.mark.usefixtures("forked_workers")
def test_several_methods_share_the_workers(sample_ws: Workspace) -> None:
    executor = Local(workers=2)
    scored = curate.score(sample_ws, Small(), Faulty(), target="arithmetic", executor=executor)
    assert [(r.name, r.rows, r.nulls) for r in scored] == [("bm25_arithmetic", 3000, 0), ("faulty", 3000, 0)]


def test_the_command_line_takes_workers_and_the_executors_settings(sample_ws: Workspace, cli: Any) -> None:
    done = cli("score", "length", "--workers", 2, "--set", "local.timeout=60", "--set", "of=whole", ws=sample_ws)
    assert done.returncode == 0 and "length: 3,000 scored, 0 cached." in done.stdout
    for arguments, sentence in (
        (["--workers", "0"], "needs workers >= 1"),
        (["--executor", "cloud"], "there is no executor 'cloud'"),
        (["--set", "ray.gpus=1"], "is for 'ray': there is length, local"),
        (["--set", "local.gpus=1"], "the executor 'local' has no setting 'gpus'"),
    ):
        done = cli("score", "length", *arguments, ws=sample_ws)
        assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr


# --- workers that go wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "hang", "leave"])
@pytest.mark.parametrize("where", ["count", "score"])
def test_a_lost_worker_is_replaced_and_its_unit_done_again(
    sample_ws: Workspace, tmp_path: Path, request: Any, how: Any, where: Any
) -> None:
    """Real processes where it scores and they end, of which the system says how; forks where it counts or hangs."""
    fewest = 3 if where == "count" else 2 if how == "hang" else 0
    forked = request.getfixturevalue("forked_workers") if fewest else []
    method = Faulty(on=some_text(sample_ws, 1500), how=how, where=where, once=str(tmp_path / "was wrong"))
    (result,) = curate.score(sample_ws, method, executor=Local(workers=2, timeout=5))
    assert (tmp_path / "was wrong").exists()
    assert (result.rows, result.nulls) == (3000, 0)
    spent = {row["phase"]: row["samples"] for row in curate.ledger(sample_ws) if row["name"] == "faulty"}
    assert spent[where] > 3000 and spent[{"count": "score", "score": "count"}[where]] == 3000  # done twice, paid twice
    assert workers_left(forked) == [] and len(forked) >= fewest


@pytest.mark.parametrize("where", ["count", "score"])
def test_what_a_lost_worker_had_half_written_is_removed(sample_ws: Workspace, where: Any) -> None:
    torn = sample_ws.path / "torn"
    method = Faulty(on=some_text(sample_ws, 1500), how="tear", where=where, once=str(torn))
    (result,) = curate.score(sample_ws, method)
    assert torn.exists() and result.rows == 3000
    assert list(sample_ws.path.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("kill", r"killed \(signal 9\).*memory is out"),
        ("hang", "did not end within 2 s"),
        ("leave", "ended with status 3"),
    ],
)
def test_a_unit_that_loses_every_worker_ends_in_a_sentence_and_the_rest_stands(
    sample_ws: Workspace, request: Any, how: Any, why: str
) -> None:
    """What has hung is a fork; what ends in other ways is a real process, of which the system says how it ended."""
    forked = request.getfixturevalue("forked_workers") if how == "hang" else []
    text = some_text(sample_ws, 1500)
    executor = Local(workers=2, timeout=2 if how == "hang" else 60, attempts=2)
    with pytest.raises(CurateFailure, match=f"lost 2 times at rows .* of part-.*{why}.*same command"):
        curate.score(sample_ws, Faulty(on=text, how=how), executor=executor)
    assert workers_left(forked) == []
    done = sum(r["rows"] for r in score_records(sample_ws, "faulty"))
    request.getfixturevalue("forked_workers")
    executor = dataclasses.replace(executor, timeout=60)
    (result,) = curate.score(sample_ws, Faulty(on=text, how=how, once="/"), executor=executor, fresh=True)
    assert result.rows == 3000 and done < 3000


def score_records(ws: Workspace, name: str) -> list[dict[str, Any]]:
    from curate.store.commits import Parts

    return list(Parts(ws.score_folder(name)).records().values())


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("how", "why"), [("raise", "ValueError: this one is odd"), ("memory", "MemoryError")])
@pytest.mark.parametrize("where", ["count", "score"])
def test_a_sample_on_which_the_method_fails_is_null_with_the_reason(
    sample_ws: Workspace, workers: int, how: Any, why: str, where: Any
) -> None:
    method = Faulty(on=some_text(sample_ws, 1500), how=how, where=where)
    (result,) = curate.score(sample_ws, method, executor=Local(workers=workers))
    assert (result.rows, result.nulls) == (3000, 1)
    (row,) = curate.sql(sample_ws, "SELECT row, faulty_chars, faulty_error AS why FROM samples WHERE faulty IS NULL")
    assert row == {"row": 1500, "faulty_chars": None, "why": f"faulty fails on it: {why}"}
    # The others are what they are without it: the count has one less where the count could not take it.
    n = 2999 if where == "count" else 3000
    wrong = f"SELECT count(*) AS n FROM samples WHERE abs(faulty - faulty_chars - {n / 1e4}) > 1e-2"
    assert curate.sql(sample_ws, wrong)[0]["n"] == 0


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_method_that_fails_on_every_sample_ends_in_a_sentence(sample_ws: Workspace, workers: int) -> None:
    before = tree_bytes(sample_ws.path / "pool", "*")
    with pytest.raises(CurateFailure, match=r"'faulty' fails in its pass 'score' on more than 16 samples of rows"):
        curate.score(sample_ws, Faulty(on=""), executor=Local(workers=workers))
    assert tree_bytes(sample_ws.path / "pool", "*") == before
    assert sample_ws.score_names() == []  # nothing was computed of it
    with pytest.raises(CurateFailure, match="MemoryError; use fewer --workers"):
        curate.score(sample_ws, Faulty(on="", how="memory", where="count"), executor=Local(workers=workers), fresh=True)


@pytest.mark.usefixtures("forked_workers")
def test_after_an_error_the_units_under_way_are_committed(sample_ws: Workspace, tmp_path: Path) -> None:
    text = some_text(sample_ws, 10)
    with pytest.raises(CurateFailure):
        curate.score(sample_ws, Faulty(on=text, how="kill"), executor=Local(workers=3, attempts=1))
    charged = {row["phase"]: row["samples"] for row in curate.ledger(sample_ws)}["score"]
    stored = sum(r["rows"] for r in score_records(sample_ws, "faulty"))
    units = (sample_ws.score_folder("faulty") / "_units").rglob("_commit/*.json")
    from curate.store.encoding import read_json

    stored += sum(read_json(unit)["rows"] for unit in units)
    assert 0 < charged - stored < 100  # all that was begun, but for the unit that killed its worker


# --- the loop --------------------------------------------------------------------------------------------


class Scripted(Backend):
    """Workers by number whose fates are written down: what `wait` says of each task."""

    def __init__(self, size: int, fate: Callable[[Any], Outcome | None]):
        self.size, self.fate = size, fate
        self.started = 0
        self.order: list[Any] = []
        self.at_work: dict[int, Any] = {}
        self.stopped: list[int] = []

    def start(self) -> int:
        self.started += 1
        return self.started

    def send(self, worker: int, run_task: Any, task: Any) -> None:
        self.order.append(task)
        self.at_work[worker] = task

    def wait(self, workers: Sequence[int], seconds: float) -> list[tuple[int, Outcome]]:
        found = []
        for worker in workers:
            outcome = self.fate(self.at_work.pop(worker)) if worker in self.at_work else Ready()
            if outcome:
                found.append((worker, outcome))
        return found

    def stop(self, worker: int) -> None:
        self.stopped.append(worker)

    def close(self) -> None:
        pass


class Costly:
    def __init__(self, cost: float):
        self.cost = cost

    def __str__(self) -> str:
        return f"task {self.cost}"


def test_the_costliest_task_comes_first_and_no_more_workers_are_started_than_there_are_tasks() -> None:
    backend = Scripted(8, lambda task: TaskResult())
    workers = Workers(backend, attempts=3, timeout=60)
    tasks = [Costly(c) for c in (3, 9, 1, 7)]
    begun: list[Any] = []
    assert len(list(workers.run(print, Tasks(tasks), begun.append))) == 4
    assert [t.cost for t in backend.order] == [9, 7, 3, 1] and begun == backend.order
    assert backend.started == 4
    list(workers.run(print, Tasks(tasks), begun.append))
    assert backend.started == 4  # they are kept for the next pass
    workers.close()
    assert sorted(backend.stopped) == [1, 2, 3, 4]


def test_workers_that_cannot_even_start_end_in_a_sentence() -> None:
    class Stillborn(Scripted):
        def wait(self, workers: Sequence[int], seconds: float) -> list[tuple[int, Outcome]]:
            return [(worker, Lost("no such module")) for worker in workers]

    with pytest.raises(CurateFailure, match="lost 3 times at starting: no such module"):
        list(Workers(Stillborn(2, lambda task: None), 3, 60).run(print, Tasks([Costly(1)]), print))


def test_workers_that_never_come_end_in_a_sentence() -> None:
    class Absent(Scripted):
        def wait(self, workers: Sequence[int], seconds: float) -> list[tuple[int, Outcome]]:
            return []

    with pytest.raises(CurateFailure, match="no worker has started within 0 s"):
        list(Workers(Absent(2, lambda task: None), 3, 60, patience=0.05).run(print, Tasks([Costly(1)]), print))


# --- worker processes ------------------------------------------------------------------------------------


def test_each_worker_sees_one_gpu_and_its_share_of_the_cores(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    workers = Local().open()
    assert workers.backend.size == 2  # one per device
    tasks = Tasks(Costly(c) for c in range(6))
    list(workers.run(Telling(str(tmp_path)), tasks, lambda task: None))
    workers.close()
    told = {path.read_text() for path in tmp_path.iterdir()}
    share = max(1, (os.cpu_count() or 1) // 2)
    assert told == {f"3 {share}", f"5 {share}"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Local().open().backend.size == 1


class Telling:
    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, task: Any) -> None:
        told = f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['POLARS_MAX_THREADS']}"
        (Path(self.folder) / str(os.getpid())).write_text(told)
        time.sleep(0.3)  # so that both come to work


def test_a_method_of_the_users_own_script_reaches_the_workers_and_their_prints_stay_out_of_the_output(
    sample_ws: Workspace,
) -> None:
    script = """
        import sys
        from dataclasses import dataclass
        import curate
        from curate.methods.executors.local import Local
        from curate.kinds.score import Score
        from curate.kinds.passes import Pass

        @dataclass(frozen=True)
        class Mine(Score):
            scope = "row"
            unit_bytes = 50_000
            def passes(self, target):
                return (Pass("look", self.look),)
            def look(self, batch, state):
                print("looking")
                return {"score": batch.whole.str.len_chars().to_numpy()}

        Mine.name = "mine"
        print(curate.score(curate.open_workspace(sys.argv[1]), Mine(), executor=Local(workers=2))[0].rows)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(sample_ws.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "3000\n" and "looking" in done.stderr, done.stderr


def test_a_method_that_cannot_travel_is_told_so(sample_ws: Workspace) -> None:
    import threading

    method = Faulty()
    object.__setattr__(method, "lock", threading.Lock())
    with pytest.raises(CurateError, match="cannot be sent to a worker process.*use one worker"):
        curate.score(sample_ws, method, executor=Local(workers=2))
    assert curate.score(sample_ws, method)[0].rows == 3000


def test_workers_die_with_the_command(sample_ws: Workspace, tmp_path: Path) -> None:
    script = """
        import os, sys
        import curate
        from curate.methods.executors.local import Local
        from tests.support.faulty import Faulty
        print(os.getpid(), flush=True)
        curate.score(curate.open_workspace(sys.argv[1]), Faulty(on="", how="hang"), executor=Local(workers=2))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(sample_ws.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout

    def children() -> int:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
        return sum("curate.methods.executors.local" in line and line.endswith(f" {process.pid}") for line in listed)

    deadline = time.monotonic() + 30
    while children() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children() == 2
    time.sleep(1)
    process.kill()
    process.wait()
    process.stdout.close()
    time.sleep(1)
    assert children() == 0


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Local(workers=0), "needs workers >= 1"),
        (lambda: Local(timeout=0.0), "timeout > 0"),
        (lambda: Ray(workers=-1), "needs workers >= 1"),
        (lambda: Ray(cpus=0.0), "not both 0"),
        (lambda: Ray(gpus=-1.0), "gpus >= 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Executor], sentence: str) -> None:
    with pytest.raises(CurateError, match=sentence):
        make()


def test_without_ray_the_error_says_how_to_install_it(sample_ws: Workspace, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(CurateError, match=r"pip install 'curate-lm\[ray\]'"):
        curate.score(sample_ws, Small(), target="arithmetic", executor=Ray())
