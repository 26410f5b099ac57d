"""A real Ray: of our own, and a cluster of two nodes of which one is lost. Everything listens on 127.0.0.1 alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.methods.executors.ray import Ray
from curate.store.workspace import Workspace
from tests.conftest import ROOT, SAMPLE, tree_bytes
from tests.support.faulty import Faulty, Slow, Small

os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")
if find_spec("ray") is None:  # imported by those tests alone that need it
    pytest.skip("Ray is not installed (pip install 'curate-lm[ray]')", allow_module_level=True)

# Ray closes its pipes and sockets when the process ends, not when it is told to.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    """A Ray cluster of a head without CPUs and two nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CURATE_BEGUN", str(tmp_path / "begun"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1), made.add_node(num_cpus=1)]
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def calm(sample_ws: Workspace, tmp_path: Path) -> dict[str, bytes]:
    """The score tables of an undisturbed run in one process."""
    ws = curate.open_workspace(shutil.copytree(sample_ws.path, tmp_path / "calm"))
    curate.score(ws, Small(), target="arithmetic")
    return tree_bytes(ws.path / "scores")


def test_a_ray_of_our_own_writes_the_same_bytes_and_listens_to_this_machine_alone(
    sample_ws: Workspace, calm: dict[str, bytes]
) -> None:
    script = """
        import subprocess, sys
        import curate
        from curate.methods.executors.ray import Ray
        from tests.support.faulty import Small
        ws = curate.open_workspace(sys.argv[1])
        workers = Ray(workers=2).open()
        print(subprocess.run(["ss", "-ltnp"], capture_output=True, text=True).stdout)
        curate.score(ws, Small(), target="arithmetic", executor=Ray(workers=2))
        workers.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(sample_ws.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(sample_ws.path / "scores") == calm
    listening = [line.split()[3] for line in done.stdout.splitlines() if "raylet" in line or "gcs_server" in line]
    assert all("127.0.0.1" in address for address in listening), listening


def test_a_ray_of_our_own_does_not_join_a_cluster_that_was_left_behind() -> None:
    """A cluster that was killed leaves its address in Ray's folder, where ray.init() would look it up."""
    folder = tempfile.mkdtemp(prefix="ray")  # a short path: Ray's sockets are in it
    Path(folder, "ray").mkdir()
    Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
    script = """
        from curate.methods.executors.ray import Ray
        workers = Ray(workers=1).open()
        print(workers.backend.ray.cluster_resources()["CPU"] > 0)
        workers.close()
    """
    environment = {**os.environ, "RAY_TMPDIR": folder}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    shutil.rmtree(folder, ignore_errors=True)
    assert done.stdout == "True\n", done.stderr


def test_a_trial_s_trainings_are_the_same_on_ray(sums_ws: Workspace, tmp_path: Path) -> None:
    from tests.verbs.test_trial import SPEC, losses

    curate.target(sums_ws, "sums", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    other = curate.open_workspace(shutil.copytree(sums_ws.path, tmp_path / "other"))
    curate.trial(sums_ws, "one", SPEC)
    script = """
        import sys
        import curate
        from curate.methods.executors.ray import Ray
        from tests.verbs.test_trial import SPEC
        curate.trial(curate.open_workspace(sys.argv[1]), "one", SPEC, executor=Ray(workers=2))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(other.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    ours, theirs = losses(sums_ws), losses(other)
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs] and len(ours) > 20
    assert [row[-1] for row in ours] == pytest.approx([row[-1] for row in theirs], rel=1e-5)


def test_a_node_lost_in_mid_run_costs_no_more_than_the_units_under_way(
    sample_ws: Workspace, calm: dict[str, bytes], cluster: Any, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"

    def lose_a_node() -> None:
        while not begun.exists() or len(begun.read_text().splitlines()) < 20:
            time.sleep(0.05)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    (result,) = curate.score(sample_ws, Slow(), target="arithmetic", executor=Ray(workers=2, address=cluster.address))
    thread.join()
    assert result.rows == 3000 and tree_bytes(sample_ws.path / "scores") == calm
    lines = begun.read_text().splitlines()
    assert len(lines) - len(set(lines)) <= 1, "one actor was lost, and with it one unit"
    assert not [p for p in sample_ws.path.rglob("*.tmp")]


@pytest.mark.slow
def test_a_killed_actor_is_replaced(sample_ws: Workspace, calm: dict[str, bytes], cluster: Any, tmp_path: Path) -> None:
    method = Faulty(on="a", how="kill", once=str(tmp_path / "killed"))
    (result,) = curate.score(sample_ws, method, executor=Ray(workers=2, address=cluster.address))
    assert (tmp_path / "killed").exists() and (result.rows, result.nulls) == (3000, 0)
    where = cluster.address
    with pytest.raises(CurateFailure, match="lost 2 times at rows .*same command"):
        curate.score(
            sample_ws, Faulty(on="a", how="kill"), executor=Ray(attempts=2, address=cluster.address), fresh=True
        )
    with pytest.raises(CurateFailure, match="on more than 16 samples"):
        curate.score(sample_ws, Faulty(on="a"), executor=Ray(address=where), fresh=True)
    with pytest.raises(CurateFailure, match="no worker has started within 2 s"):
        curate.score(
            sample_ws, Faulty(), executor=Ray(gpus=1.0, workers=1, patience=2.0, address=cluster.address), fresh=True
        )


def test_no_ray_at_the_address_is_said(sample_ws: Workspace) -> None:
    with pytest.raises(CurateError, match="no Ray could be reached at 127.0.0.1:1"):
        curate.score(sample_ws, Faulty(), executor=Ray(address="127.0.0.1:1"))
