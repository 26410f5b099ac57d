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


def test_the_truth_has_the_promised_shares(sample_ws: curate.store.workspace.Workspace) -> None:  # type: ignore[name-defined]
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
    checked = corrupt = 0
    for s in islice(make_sample.stream(seed=5), 3000):
        want = work_out(s.skill, s.question)
        if want is None:
            continue
        checked, corrupt = checked + 1, corrupt + s.corrupt
        found = re.findall(r"\w+", s.answer)
        if not s.corrupt:
            assert want in found, s
        elif s.skill != "arithmetic":
            assert s.answer != want, s
        else:  # the number may be right by chance where the sum is another's
            assert s.answer != f"{want}" and (want not in found or question_numbers(s.question) != found[:2]), s
    assert checked > 500 and corrupt > 30


def question_numbers(question: str) -> list[str]:
    return re.findall(r"\d+", question)


def work_out(skill: str, question: str) -> str | None:
    if skill == "arithmetic":
        a, b = map(int, re.findall(r"\d+", question))
        return str(a + b if "finds" in question else a - b if "away" in question else a * b)
    if skill == "program" and (found := re.search(r"print\((\d+) \+ (\d+)\)", question)):
        return str(int(found[1]) + int(found[2]))
    if skill == "strings" and (found := re.search(r"letters of (\w+) backwards", question)):
        return found[1][::-1]
    return None


def test_a_corrupt_answer_is_another_samples_of_the_same_skill(make_sample: ModuleType) -> None:
    seen: dict[str, set[str]] = {}
    corrupt = 0
    for s in islice(make_sample.stream(seed=1), 2000):
        if s.corrupt:
            assert s.answer in seen[s.task]
            corrupt += 1
        else:
            seen.setdefault(s.task, set()).add(s.answer)
    assert corrupt > 100


def test_the_stream_has_no_end_and_does_not_depend_on_how_far_it_is_read(make_sample: ModuleType) -> None:
    long = list(islice(make_sample.stream(), 5000))
    assert long[:100] == list(islice(make_sample.stream(), 100))
    assert long[4999].n == 4999


def test_targets_have_subtasks_and_ask_nothing_that_stands_elsewhere(make_sample: ModuleType) -> None:
    pool = list(islice(make_sample.stream(), 3000))
    asked = {make_sample.core(s.question) for s in pool}
    for name, rows in make_sample.targets(pool).items():
        assert len(rows) == (24 if name.endswith("_val") else 60) and len({r["subtask"] for r in rows}) >= 2
        questions = {make_sample.core(r["question"]) for r in rows}
        assert len(questions) == len(rows) and not questions & asked
        asked |= questions


def test_samples_that_ask_the_same_are_marked(make_sample: ModuleType) -> None:
    seen: set[str] = set()
    for s in islice(make_sample.stream(), 3000):
        if s.near_duplicate_of is None:
            assert make_sample.core(s.question) not in seen, s
            seen.add(make_sample.core(s.question))
