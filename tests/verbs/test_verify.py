"""`curate verify`: what is damaged is found, told in a sentence, and computed again where it can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.top import Top
from curate.store.commits import Parts
from curate.store.encoding import read_json, read_table, write_json
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import tree_bytes


@pytest.fixture
def scored_ws(sample_ws: Workspace) -> Workspace:
    curate.score(sample_ws, Bm25(), Length(), target="arithmetic")
    curate.select(sample_ws, "best", Top(), SelectionSpec(by="bm25_arithmetic", top=100))
    return sample_ws


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_sound_workspace_is_said_to_be(scored_ws: Workspace, cli: Any) -> None:
    found = curate.verify(scored_ws)
    assert found.damaged == []
    assert found.parts >= 3 * len(scored_ws.shards()) + 2 and found.bytes > 100_000
    done = cli("verify", ws=scored_ws)
    assert done.returncode == 0 and "0 damaged" in done.stdout


@pytest.mark.parametrize(
    ("harm", "what"),
    [(flip, "SHA-256 differs"), (cut, "bytes, not the"), (Path.unlink, "is not there, but its commit record is")],
)
@pytest.mark.parametrize("name", ["bm25_arithmetic", "length"])
def test_exactly_the_damaged_part_is_computed_again(
    scored_ws: Workspace, harm: Any, what: str, name: str, cli: Any
) -> None:
    folder = scored_ws.score_folder(name)
    before, times = tree_bytes(folder), {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    harm(folder / "part-00002.parquet")
    done = cli("verify", ws=scored_ws)
    assert done.returncode == 1 and f"score {name}: part-00002" in done.stdout and what in done.stdout
    done = cli("verify", "--repair", ws=scored_ws)
    assert done.returncode == 0 and "1 damaged, 1 repaired" in done.stdout, done.stdout + done.stderr
    assert tree_bytes(folder) == before
    changed = [p.name for p in folder.glob("*.parquet") if p.stat().st_mtime_ns != times[p.name]]
    assert changed == ["part-00002.parquet"]
    assert curate.verify(scored_ws).damaged == []


def test_the_same_score_command_mends_what_it_can_see(scored_ws: Workspace) -> None:
    folder = scored_ws.score_folder("length")
    before = tree_bytes(folder)
    cut(folder / "part-00000.parquet")
    (folder / "part-00001.parquet").unlink()
    (folder / "_commit/part-00002.json").unlink()
    (folder / "_commit/part-00003.json").write_bytes(b"")
    (result,) = curate.score(scored_ws, Length())
    assert result.reused == sum(shard.rows for shard in scored_ws.shards()[3:])  # the list has the last one's record
    (damage,) = curate.verify(scored_ws, repair=True).damaged
    assert damage.part == "part-00003" and damage.repaired and tree_bytes(folder) == before


def test_a_part_of_other_rows_is_found_though_its_record_vouches_for_it(scored_ws: Workspace) -> None:
    parts = Parts(scored_ws.score_folder("length"))
    before = tree_bytes(parts.folder)  # type: ignore[arg-type]
    for rows, sentence in ((slice(None, None, -1), "ids in the pool's order"), (slice(1, None), "ids in the pool's")):
        table = read_table(parts.path("part-00001"))
        record = {k: v for k, v in (parts.record("part-00001") or {}).items() if k not in ("sha256", "bytes", "rows")}
        order = list(range(table.num_rows))[rows]
        parts.commit("part-00001", table.take(order), **{k: v for k, v in record.items() if k != "schema"})
        (damage,) = curate.verify(scored_ws).damaged
        assert sentence in damage.what
        curate.verify(scored_ws, repair=True)
        assert tree_bytes(parts.folder) == before  # type: ignore[arg-type]


def test_damaged_counts_are_counted_again(scored_ws: Workspace) -> None:
    table = tree_bytes(scored_ws.path / "scores")
    (folder,) = (scored_ws.path / "prepared").iterdir()
    for path in folder.glob("*.safetensors"):
        flip(path)
    curate.score(scored_ws, Bm25(), target="arithmetic", fresh=True)  # trusts none of them
    assert tree_bytes(scored_ws.path / "scores") == table
    flip(next(folder.glob("part-*.safetensors")))
    (damage,) = curate.verify(scored_ws, repair=True).damaged
    assert damage.kind == "prepared" and damage.repaired and curate.verify(scored_ws).damaged == []


def test_what_came_from_outside_is_told_with_its_remedy_and_left(scored_ws: Workspace, cli: Any) -> None:
    flip(scored_ws.path / "pool/part-00001.parquet")
    flip(scored_ws.path / "targets/arithmetic.parquet")
    flip(scored_ws.path / "manifests/best.parquet")
    harmed = tree_bytes(scored_ws.path)
    done = cli("verify", "--repair", ws=scored_ws)
    assert done.returncode == 1 and done.stderr == ""
    assert "pool pool: part-00001 has other bytes" in done.stdout and "put a copy of the file back" in done.stdout
    assert "`curate target arithmetic PATH`" in done.stdout
    assert "--replay" in done.stdout
    assert tree_bytes(scored_ws.path) == harmed


def test_a_truncated_part_of_the_pool_stops_a_score_with_a_sentence_and_the_copy_put_back_lets_it_go_on(
    sample_ws: Workspace, cli: Any
) -> None:
    path = sample_ws.path / "pool/part-00001.parquet"
    whole = path.read_bytes()
    cut(path)
    for workers in (1, 2):
        done = cli("score", "length", "--workers", workers, ws=sample_ws)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "part-00001.parquet is damaged" in done.stderr and "curate verify" in done.stderr
    path.write_bytes(whole)
    done = cli("score", "length", ws=sample_ws)
    assert done.returncode == 0 and " scored, " in done.stdout


def test_a_record_of_an_edited_plan_is_not_believed(scored_ws: Workspace) -> None:
    """A record that vouches for another fingerprint is not this score's, whatever its part holds."""
    folder = scored_ws.score_folder("length")
    path = folder / "_commit/part-00001.json"
    (folder / "_parts.json").unlink()  # which is believed before a part's own record
    write_json(path, {**read_json(path), "fingerprint": "0" * 16})
    (result,) = curate.score(scored_ws, Length())
    assert result.computed == scored_ws.shards()[1].rows


THREADS = """
import os, sys
import subprocess
import sys
from pathlib import Path
from curate.store.encoding import parquet_of

before = len(os.listdir("/proc/self/task"))
assert parquet_of(Path(sys.argv[1]).read_bytes()).num_rows
assert len(os.listdir("/proc/self/task")) == before
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads where Linux lists them")
def test_reading_bytes_leaves_no_thread_that_holds_them(scored_ws: Workspace) -> None:
    """Such a thread, late at the interpreter's end, ends a process that had done its work by SIGABRT."""
    part = scored_ws.score_folder("length") / "part-00002.parquet"
    done = subprocess.run([sys.executable, "-c", THREADS, str(part)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
