"""Under fire: kill -9 at random points, a full disk, damaged files; the same command always finishes the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import curate
from curate.store.files import write_atomic
from curate.store.workspace import Workspace
from tests.conftest import ROOT, tree_bytes
from tests.support import forks
from tests.support.drill import Drill, leftovers
from tests.support.faulty import Small


@pytest.fixture
def calm(sample_ws: Workspace, tmp_path: Path) -> dict[str, bytes]:
    """The score tables of an undisturbed run in one process."""
    ws = curate.open_workspace(shutil.copytree(sample_ws.path, tmp_path / "calm"))
    curate.score(ws, Small(), target="arithmetic")
    return tree_bytes(ws.path / "scores")


@pytest.mark.parametrize(
    ("executor", "kills", "in_flight"),
    [
        ("one", 3, 1),
        ("local", 3, 3),
        pytest.param("ray", 2, 2, marks=[pytest.mark.ray, pytest.mark.slow]),
        pytest.param("one", 20, 1, marks=pytest.mark.repeated),
        pytest.param("local", 20, 3, marks=pytest.mark.repeated),
        pytest.param("ray", 10, 2, marks=[pytest.mark.ray, pytest.mark.repeated]),
    ],
)
def test_killed_at_random_points_the_last_resume_ends_with_the_undisturbed_bytes(
    sample_ws: Workspace, calm: dict[str, bytes], tmp_path: Path, executor: str, kills: int, in_flight: int
) -> None:
    drill, rounds, done = Drill(sample_ws, tmp_path, seed=kills), 0, 0
    while done < kills:
        done += drill.kill_during(executor, "worker" if executor != "one" and rounds % 2 else "driver")
        rounds += 1
        assert rounds < 3 * kills
        if tree_bytes(sample_ws.path / "scores", "part-*.parquet").keys() == calm.keys():
            # Complete: begin again, so that every kill meets work under way.
            shutil.rmtree(sample_ws.path / "scores")
            shutil.rmtree(sample_ws.path / "prepared")
            drill.begun.rename(tmp_path / f"begun-{rounds}")
            drill.begun.touch()
    drill.finish(executor)
    assert tree_bytes(sample_ws.path / "scores") == calm
    assert leftovers(curate.open_workspace(sample_ws.path)) == []
    # A kill of the driver throws away the units in flight; one of a worker, that worker's, and the driver dies next.
    assert drill.repeated() <= 2 * rounds * in_flight
    begun = drill.samples_begun()
    assert begun <= drill.samples_charged() <= begun + 2 * rounds * in_flight * 100  # a unit has about 60 samples
    print(
        f"\n{executor}: {done} kills in {rounds} runs; {drill.repeated()} units repeated; "
        f"{begun} samples begun, {drill.samples_charged()} charged"
    )


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_during_the_swap_of_fresh_loses_neither_table(sample_ws: Workspace, moment: int) -> None:
    """The process dies before its n-th change of a name or removal; the score is then the old one or the new one."""
    script = """
        import os, shutil, signal, sys
        import curate
        from curate.store import files as storage
        from curate.methods.scores.length import Length
        from curate.store.workspace import Workspace

        left, swap = int(sys.argv[2]), Workspace.swap_table

        def armed(self, kind, name):
            def dying(change):
                def call(*args, **kwargs):
                    global left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return change(*args, **kwargs)
                return call
            for module, what in ((os, "replace"), (shutil, "rmtree"), (storage, "write_atomic")):
                setattr(module, what, dying(getattr(module, what)))
            swap(self, kind, name)

        Workspace.swap_table = armed
        curate.score(curate.open_workspace(sys.argv[1]), Length(of="whole"), fresh=True)
    """
    from curate.methods.scores.length import Length

    curate.score(sample_ws, Length())
    old = tree_bytes(sample_ws.score_folder("length"))
    done = forks.run(script, str(sample_ws.path), str(moment))
    ws = curate.open_workspace(sample_ws.path)
    assert ws.score_names() == ["length"]
    between = tree_bytes(ws.score_folder("length"))
    curate.score(ws, Length(of="whole"), fresh=True)
    new = tree_bytes(ws.score_folder("length"))
    assert new != old and between in (old, new)
    assert done.returncode in (0, -signal.SIGKILL) and (moment > 3 or done.returncode == -signal.SIGKILL), done.stderr
    assert leftovers(ws) == []


def test_a_full_disk_ends_in_a_sentence_and_with_room_the_same_command_goes_on(
    sample_ws: Workspace, calm: dict[str, bytes], tmp_path: Path
) -> None:
    score = f"{sys.executable} -m curate.cli score bm25 -w {tmp_path}/small/ws --target arithmetic"
    script = f"""
        set -e
        mount -t tmpfs -o size=2500k tmpfs {tmp_path}/small
        cp -r {sample_ws.path} {tmp_path}/small/ws
        dd if=/dev/zero of={tmp_path}/small/fill bs=4k 2>/dev/null || true
        truncate -s -40k {tmp_path}/small/fill
        for workers in 1 2; do
            {score} --workers $workers || echo "status $?"
        done
        rm {tmp_path}/small/fill
        {score}
        find {tmp_path}/small/ws -name '*.tmp'
        cp -r {tmp_path}/small/ws/scores {tmp_path}/scores
    """
    (tmp_path / "small").mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a small file system (unshare -rm)")
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("status 1") == 2 and ".tmp" not in done.stdout
    assert done.stderr.count("No space left on device") == 2 and "Traceback" not in done.stderr, done.stderr
    assert tree_bytes(tmp_path / "scores") == calm


def test_two_that_score_the_same_name_at_once_do_not_meet(
    sample_ws: Workspace, calm: dict[str, bytes], tmp_path: Path
) -> None:
    drill = Drill(sample_ws, tmp_path, seed=1)
    first = drill.start("local")
    while drill.count() < 3:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # or it may have ended before the second has begun
    command = [sys.executable, str(drill.script), str(sample_ws.path), "one", "goon"]
    second = subprocess.run(command, env=drill.environment, cwd=ROOT, capture_output=True, text=True)
    os.kill(first.pid, signal.SIGCONT)
    assert f"process {first.pid} on" in second.stderr and "is writing the score bm25_arithmetic" in second.stderr
    assert first.wait(timeout=60) == 0 and tree_bytes(sample_ws.path / "scores") == calm


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that order, or a power failure may leave a name without what belongs to it."""
    done: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(Path(f"/dev/fd/{handle}").resolve().name[:2]))
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append("named") or replace(self, to))
    write_atomic(tmp_path / "part", b"of a table")
    assert done == [".p", "named", tmp_path.name[:2]]
    write_atomic(tmp_path / "note", b"that may be lost", flush=False)
    assert done[3:] == ["named"]
