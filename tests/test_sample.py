"""The embedded sample: what the generator makes is what is committed, and the truth in it is true."""

from __future__ import annotations

import importlib.util
import re
from itertools import islice
from types import ModuleType

import pytest

import curate
from tests.conftest import ROOT, SAMPLE


@pytest.fixture(scope="module")
def make_sample() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "data/make_sample.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sample"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_committed_files_are_what_the_generator_writes(make_sample: ModuleType) -> None:
    made = make_sample.files()
    assert {str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob("*") if p.is_file()} == set(made)
    for name, content in made.items():
        assert (SAMPLE / name).read_bytes() == content.encode(), name
    assert sum(len(c.encode()) for c in made.values()) < 2_000_000


def test_the_truth_has_the_promised_shares(sample_ws: curate.workspace.Workspace) -> None:  # type: ignore[name-defined]
    (row,) = curate.sql(
        sample_ws,
        """SELECT count(*) AS n, avg((meta->>'corrupt' = 'true')::INT) AS corrupt,
        avg((meta->>'near_duplicate_of' IS NOT NULL)::INT) AS near, avg((meta->>'skill' = 'chat')::INT) AS off,
        count(DISTINCT meta->>'skill') AS skills, count(DISTINCT source) AS domains FROM pool""",
    )
    assert row["n"] == 3000 and row["skills"] == 7 and row["domains"] == 4
    assert 0.08 < row["corrupt"] < 0.12 and 0.04 < row["near"] < 0.07 and 0.03 < row["off"] < 0.07
    spread = curate.sql(sample_ws, "SELECT meta->>'skill' AS s, count(DISTINCT source) AS d FROM pool GROUP BY s")
    assert all(r["d"] >= 2 for r in spread)  # a domain is not a skill


def test_answers_are_right_unless_they_are_said_to_be_corrupt(make_sample: ModuleType) -> None:
    """Answers worked out again from the question alone, for the skills where a few lines can."""
    checked = 0
    for s in islice(make_sample.stream(seed=5), 3000):
        want = work_out(s.skill, s.question)
        if want is not None:
            assert (want in s.answer) != s.corrupt or s.corrupt, s
            checked += 1
            if s.corrupt:
                assert s.answer != want
    assert checked > 500


def work_out(skill: str, question: str) -> str | None:
    if skill == "arithmetic":
        a, b = map(int, re.findall(r"\d+", question))
        return str(a + b if "finds" in question else a - b if "away" in question else a * b)
    if skill == "program" and (found := re.search(r"print\((\d) \+ (\d)\)", question)):
        return str(int(found[1]) + int(found[2]))
    if skill == "strings" and (found := re.search(r"letters of (\w+) backwards", question)):
        return found[1][::-1]
    return None


def test_a_corrupt_answer_is_another_samples_of_the_same_skill(make_sample: ModuleType) -> None:
    seen: dict[str, set[str]] = {}
    corrupt = 0
    for s in islice(make_sample.stream(seed=1), 2000):
        if s.corrupt:
            assert s.answer in seen[s.skill]
            corrupt += 1
        else:
            seen.setdefault(s.skill, set()).add(s.answer)
    assert corrupt > 100


def test_the_stream_has_no_end_and_does_not_depend_on_how_far_it_is_read(make_sample: ModuleType) -> None:
    long = list(islice(make_sample.stream(), 5000))
    assert long[:100] == list(islice(make_sample.stream(), 100))
    assert len({s.question for s in long[:3000]}) == 3000
    assert long[4999].n == 4999


def test_targets_have_subtasks_and_two_disjoint_splits(make_sample: ModuleType) -> None:
    for skill in make_sample.SKILLS:
        val, test = make_sample.target(skill, "val", 24), make_sample.target(skill, "test", 60)
        assert len(val) == 24 and len(test) == 60 and len({r["subtask"] for r in test}) >= 2
