"""A workspace in an object store: a local S3 server, and real clients."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.executors.local import Local
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.top import Top
from curate.store.locks import lock
from curate.store.object_store import location
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, tree_bytes
from tests.support import forks
from tests.support.drill import Drill, leftovers
from tests.support.faulty import Small
from tests.support.s3_server import s3_bucket

# The server is a process of its own; only that loads it.
pytestmark = pytest.mark.skipif(
    find_spec("moto") is None, reason="moto is not installed (pip install 'curate-lm[test]')"
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket of a server on 127.0.0.1."""
    with s3_bucket() as address:
        yield address


def objects(ws: Workspace, folder: str) -> dict[str, bytes]:
    """Every Parquet object below a prefix, by its path there."""
    root = ws.path / folder
    found = [p for p in root.rglob("*.parquet")]
    return {str(p).removeprefix(f"{root}/"): p.read_bytes() for p in found}


def fill(ws: Workspace, *files: str, shard_bytes: int = 100_000) -> None:
    curate.ingest(ws, sorted(str(SAMPLE / "pool" / file) for file in files), shard_bytes=shard_bytes)
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"), subtask="subtask")


def test_a_whole_job_writes_the_same_bytes_as_on_a_disk(bucket: str, ws: Workspace, cli: Any) -> None:
    there = curate.open_workspace(f"{bucket}/job/ws")
    for each in (ws, there):
        fill(each, "atlas.jsonl", "forum.jsonl")
        curate.score(each, Small(), Length(), target="arithmetic", executor=Local(workers=2 if each is there else 1))
        curate.score(each, Length(of="whole"), fresh=True)  # a swap, without renames
        curate.select(each, "best", Top(), SelectionSpec(by="bm25_arithmetic", top=50))
    for folder in ("pool", "scores", "manifests", "targets"):
        want = tree_bytes(ws.path / folder)  # type: ignore[arg-type]
        assert objects(there, folder) == want and want
    assert curate.verify(there).damaged == []
    done = cli(
        "sql", "SELECT count(*) AS n, count(bm25_arithmetic) AS b FROM samples", "--format", "json", ws=there.path
    )
    assert json.loads(done.stdout) == [{"n": 1134, "b": 1134}], done.stderr
    assert cli("status", ws=there.path).returncode == 0
    assert not [p for p in there.path.rglob("*") if "fresh" in str(p) or "_units" in str(p) or "tmp" in str(p)]


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_bytes_of_an_undisturbed_disk(
    bucket: str, ws: Workspace, tmp_path: Path
) -> None:
    there = curate.open_workspace(f"{bucket}/killed")
    for each in (ws, there):
        fill(each, "atlas.jsonl", "forum.jsonl", "school.jsonl", "workshop.json", shard_bytes=300_000)
    curate.score(ws, Small(), target="arithmetic")
    drill, rounds, done = Drill(there, tmp_path, seed=4), 0, 0
    while done < 8:
        done += drill.kill_during("local", "worker" if rounds % 2 else "driver")
        rounds += 1
        assert rounds < 16
    drill.finish("local")
    assert objects(there, "scores") == tree_bytes(ws.path / "scores")  # type: ignore[arg-type]
    assert leftovers(curate.open_workspace(there.path)) == []
    assert drill.repeated() <= 2 * rounds * 3  # three workers, and one of them dies before the driver does


def test_a_damaged_object_is_found_and_computed_again(bucket: str) -> None:
    ws = curate.open_workspace(f"{bucket}/damaged")
    fill(ws, "atlas.jsonl")
    curate.score(ws, Bm25(), target="arithmetic")
    before = objects(ws, "scores")
    part = ws.score_folder("bm25_arithmetic") / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    (damage,) = curate.verify(ws, repair=True).damaged
    assert damage.part == "part-00000" and objects(ws, "scores") == before
    assert curate.drop(ws, "bm25_arithmetic").kind == "score" and ws.score_names() == []


def test_a_claim_is_one_processs_and_a_dead_ones_is_free(bucket: str) -> None:
    root = location(f"{bucket}/claims")
    with lock(root, "score x"):
        said = f"process {os.getpid()} on .* is writing the score x"
        with pytest.raises(CurateError, match=said), lock(root, "score x"):
            pass
    with lock(root, "score x"):
        pass
    script = "import sys,os,signal; from curate.store.locks import lock\n" \
        "from curate.store.object_store import location\n" \
        "with lock(location(sys.argv[1]), 'score x'): os.kill(os.getpid(), signal.SIGKILL)"  # fmt: skip
    forks.run(script, str(root))
    assert list((root / ".claims/score-x").iterdir())  # what the killed one left
    with lock(root, "score x"):
        pass
    assert not list((root / ".claims/score-x").iterdir())


def test_other_addresses_are_refused_in_a_sentence(cli: Any) -> None:
    done = cli("status", ws="ftp://somewhere/ws")
    assert done.returncode == 2 and "is no place for a workspace" in done.stderr


@pytest.mark.parametrize("kind", ["score", "run"])
def test_what_a_killed_removal_left_is_counted_and_removed(bucket: str, kind: str) -> None:
    """In a store the object by which a folder exists goes first, and the others one by one."""
    ws = curate.open_workspace(f"{bucket}/half-{kind}")
    fill(ws, "atlas.jsonl")
    curate.score(ws, Length())
    folder = ws.path / ("scores/gone" if kind == "score" else "runs/gone")
    (folder / "part-00000.parquet").write_bytes(b"left")
    (folder / "_commit/part-00000.json").write_bytes(b"{}")
    whole = objects(ws, "scores/length")
    assert curate.status(ws).leftovers == 1 and curate.verify(ws).leftovers == [str(folder)]
    assert not [path for path in folder.rglob("*") if path.is_file()] and objects(ws, "scores/length") == whole
    (ws.path / "scores/length/score.json").unlink()  # lost, not removed: it is listed
    assert curate.status(ws).leftovers == 0 and curate.verify(ws).leftovers == [] and objects(ws, "scores/length")
