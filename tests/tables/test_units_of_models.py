"""A pass through a model in a small pool: units that a kill costs little of, the same ones when it is resumed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import curate
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.store.workspace import Workspace
from curate.tables.plan import Names, plan
from tests.conftest import SAMPLE, run_and_kill, tree_bytes
from tests.support.threads import single_thread

RUN = """
    import sys
    import curate
    import torch
    from curate.methods.scores.nll import Nll

    torch.set_num_threads(1)
    curate.score(curate.open_workspace(sys.argv[1]), Nll(), models="tiny")
"""


@pytest.fixture
def pool(tmp_path: Path) -> Workspace:
    """640 samples of the embedded sample, in one shard as `ingest` makes it."""
    lines = [line for file in sorted((SAMPLE / "pool").glob("*.jsonl")) for line in file.read_text().splitlines()]
    (tmp_path / "some.jsonl").write_text("\n".join(lines[::3][:640]) + "\n")
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [str(tmp_path / "some.jsonl")])
    return ws


@pytest.fixture
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def units(ws: Workspace) -> list[tuple[int, int]]:
    (spec,), (shard,) = plan(ws, Nll(), None, Names(), {"base": ModelChoice("tiny")}), ws.shards()
    return [(unit.start, unit.stop) for unit in spec.units_of(shard)]


@pytest.mark.parametrize("die_at", [3, 5])
def test_a_killed_pass_over_640_samples_keeps_at_least_half_of_what_was_done(
    pool: Workspace, die_at: int, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = curate.open_workspace(shutil.copytree(pool.path, tmp_path / "whole"))
    planned = units(pool)
    run_and_kill(RUN, str(pool.path), die_at=die_at)  # the unit of that commit was computed and is lost
    assert units(pool) == planned and len(planned) > 4
    seen: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, r: seen.append(len(e)) or batch(s, e, r))
    curate.score(pool, Nll(), models="tiny")
    largest = sorted((stop - start for start, stop in planned), reverse=True)
    kept, lost = 640 - sum(seen), largest[0]
    assert kept >= sum(largest[-(die_at - 1) :]) and kept >= (kept + lost) / 2
    curate.score(whole, Nll(), models="tiny")
    assert tree_bytes(pool.path / "scores") == tree_bytes(whole.path / "scores")


def test_units_follow_from_the_shard_and_not_from_what_the_ledger_has(pool: Workspace) -> None:
    planned = units(pool)
    curate.score(pool, Nll(), models="tiny")
    assert units(curate.open_workspace(pool.path)) == planned
    assert max(stop - start for start, stop in planned) < 640 / 4
