"""A training of several processes judges by all of them, and finds what one finds."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import accelerate.utils
import numpy as np
import pytest

import curate
from curate.errors import CurateFailure
from curate.kinds.metric import EvalResult, Metric, Question
from curate.methods.metrics.choice import Choice
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.loss import Loss
from curate.methods.metrics.perplexity import Perplexity
from curate.runs.evaluation import EvalSpec
from curate.runs.shared_judging import judged
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from tests.conftest import ROOT
from tests.support import forks
from tests.support.laws import narrow, said
from tests.verbs.test_runs import PLAIN, SHORT
from tests.verbs.test_runs import ready as ready

TRAINING = replace(PLAIN, settings=replace(SHORT, eval_every=3))
EVALS = [
    EvalSpec("arithmetic", Loss(), limit=7),
    EvalSpec("colours", Choice(), average="macro"),
    EvalSpec("arithmetic", ExactMatch(max_new_tokens=4), limit=3),
    EvalSpec("arithmetic", Perplexity(over="tokens", stride=16), limit=1),  # one process has nothing to judge
]
COLOURS = [{"question": f"{n}?", "answer": a, "kind": k} for n, (a, k) in enumerate(zip("abacb", "iijjj", strict=True))]
TOGETHER = """
import sys, curate
from tests.verbs.test_shared_judging import EVALS, TRAINING
done = curate.train(curate.open_workspace(sys.argv[1]), "two", TRAINING, evals=EVALS)
assert len(done.evaluations) in (0, len(EVALS))
"""


def test_two_processes_judge_as_one(ready: Workspace) -> None:
    curate.target(ready, "colours", COLOURS, split="test", subtask="kind")
    alone = curate.train(ready, "one", TRAINING, evals=EVALS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(30600 + os.getpid() % 1000)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for i in range(2)]
    both = [forks.start(TOGETHER, str(ready.path), environment={**environment, **rank}) for rank in ranks]
    assert [process.wait() for process in both] == [0, 0], both[0].stderr[-2000:] + both[1].stderr[-2000:]
    one, two = (Run(ready, name).evaluations for name in ("one", "two"))
    assert one.names() == two.names() and len(one.names()) >= 2 * len(EVALS)
    for name in one.names():
        a, b = one.read(name), two.read(name)
        for column in ("id", "subtask", "said", "error"):
            assert a[column].to_pylist() == b[column].to_pylist()
        assert np.allclose(a["value"].to_numpy(), b["value"].to_numpy(), rtol=1e-4)
        x, y = (parts.record(name)["evaluation"] for parts in (one, two))  # type: ignore[index]
        assert y["value"] == pytest.approx(x["value"], rel=1e-4) and {**x, "value": 0} == {**y, "value": 0}
    assert len(alone.evaluations) == len(EVALS)
    spent = "SELECT sum(tokens) AS n, sum(samples) AS s FROM ledger WHERE run = '{}' AND phase = 'evaluate'"
    (a,), (b,) = (curate.sql(ready, spent.format(name)) for name in ("one", "two"))
    assert a["s"] == b["s"] and float(b["n"]) == pytest.approx(
        float(a["n"]), rel=0.2
    )  # prefixes are shared within a process


class Half(Metric):
    """Judges each question by its length, with what may go wrong in one of the processes."""

    def __init__(self, breaks: str = ""):
        self.breaks = breaks

    def settings(self) -> dict[str, Any]:
        return {}

    def evaluate(self, model: Any, questions: Any) -> EvalResult:
        if any(question.answer == self.breaks for question in questions):
            raise ValueError("it broke")
        lengths = np.array([float(len(question.answer)) for question in questions])
        usage = model.usage(len(questions), len(questions))
        error = np.array(["" if n > 1 else "short" for n in lengths], object)
        note = "seen" if len(questions) else ""
        return EvalResult(lengths, error, usage, [q.answer for q in questions], note, lengths)


def of(rank: int, metric: Metric, asked: list[Question], world: int, monkeypatch: pytest.MonkeyPatch) -> EvalResult:
    """The result of a rank, with every other one's part computed here."""

    def part(k: int) -> Any:
        places = range(k, len(asked), world)
        try:
            return places, metric.evaluate(narrow(), [asked[i] for i in places]), "None"
        except ValueError as error:
            return places, None, repr(error)

    monkeypatch.setattr(
        accelerate.utils, "gather_object", lambda own: [own[0] if k == rank else part(k) for k in range(world)]
    )
    return judged(metric, narrow(), asked, SimpleNamespace(num_processes=world, process_index=rank))


@pytest.mark.parametrize("world", [2, 3, 9])
def test_every_process_knows_the_whole(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Question(said("x" * n)) for n in (3, 1, 4, 5, 9)]
    for rank in range(world):
        result = of(rank, Half(), asked, world, monkeypatch)
        assert result.values.tolist() == [3, 1, 4, 5, 9] and result.weights is not None
        assert result.weights.tolist() == [3, 1, 4, 5, 9] and result.error.tolist() == ["", "short", "", "", ""]
        assert result.answers == [question.answer for question in asked]
        assert result.usage.tokens == 5 and result.note == "seen"


def test_what_breaks_in_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Question(said(text)) for text in ("good", "bad")]
    with pytest.raises(ValueError, match="it broke"):
        of(1, Half("bad"), asked, 2, monkeypatch)
    with pytest.raises(CurateFailure, match="stopped in another process: ValueError"):
        of(0, Half("bad"), asked, 2, monkeypatch)
