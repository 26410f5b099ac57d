"""How far work is: a bar on a terminal, lines without one, nothing for what is quick, and never on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.progress import Progress, in_parts, mode, passed
from curate.store.workspace import Workspace
from tests.support import forks
from tests.support.narrow import NARROW

SCORE = """
    import os, pty, sys, threading
    import curate.progress
    from curate.cli.main import main

    workspace, how, model = sys.argv[1:]
    if how == "terminal":  # what is written to stderr goes through one from here on
        ours, theirs = pty.openpty()
        os.dup2(theirs, 2)

        def keep():
            with open(workspace + "/../shown", "ab", buffering=0) as file:
                while True:
                    file.write(os.read(ours, 4096))

        threading.Thread(target=keep, daemon=True).start()
    if how == "slow":  # by a clock of which every look is ten seconds later
        import itertools

        looks = itertools.count()
        curate.progress.Progress.__init__.__kwdefaults__["clock"] = lambda: 10.0 * next(looks)
    main(["score", "nll", "--model", model, "--json", "-w", workspace])
"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURATE_PROGRESS", raising=False)


def test_without_a_terminal_it_is_a_line_every_half_minute(clock: Clock, capsys: Any) -> None:
    with Progress("nll: forward", 640, clock=clock) as shown:
        for _ in range(8):
            shown.finished(40, tokens=150_000)
            clock.now += 10
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "nll: forward: 160 of 640 samples (25 %), 600.0 k tokens, about 2 min left",
        "nll: forward: 280 of 640 samples (43 %), 1.1 M tokens, about 77 s left",
    ]


def test_what_is_quick_says_nothing(clock: Clock, capsys: Any) -> None:
    with Progress("nll: forward", 640, clock=clock) as shown:
        for _ in range(8):
            shown.finished(80)
            clock.now += 3
    assert capsys.readouterr() == ("", "")


def test_it_moves_within_a_unit_by_the_share_of_its_work(clock: Clock) -> None:
    with Progress("less: gradients", 100, clock=clock) as shown:
        with in_parts(2):  # two models
            passed(10, 70)
            with in_parts(5):  # one of them at five checkpoints
                passed(50, 30)
        assert (shown.done, shown.tokens) == (10, 100)
        shown.finished(50, tokens=999)  # which is known already
        assert (shown.done, shown.tokens) == (50, 100)
        with Progress("a training meanwhile", 5, noun="steps", listens=False) as inner:
            passed(3)
        assert (inner.done, shown.done) == (0, 50)
    passed(3)
    assert shown.done == 50


def test_of_work_done_earlier_only_the_rest_counts_for_the_time_left(clock: Clock) -> None:
    shown = Progress("nll: forward", 100, done=80, clock=clock)
    assert shown.line() == "nll: forward: 80 of 100 samples (80 %), 0 s so far"
    clock.now += 60
    shown.finished(10)
    assert shown.line().endswith("90 of 100 samples (90 %), about 60 s left")
    unknown = Progress("ingest a.jsonl", None, noun="rows", clock=clock)
    clock.now += 7200
    unknown.finished(2_000_000)
    assert unknown.line() == "ingest a.jsonl: 2,000,000 rows, 2.0 h so far"


def test_the_setting_overrides_and_an_unknown_one_is_refused(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("CURATE_PROGRESS", "off")
    with Progress("nll: forward", 10, clock=clock) as shown:
        clock.now += 100
        shown.finished(5)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("CURATE_PROGRESS", "bar")
    with Progress("nll: forward", 10) as shown:
        shown.finished(5)
    out, err = capsys.readouterr()
    assert out == "" and "nll: forward" in err
    monkeypatch.setenv("CURATE_PROGRESS", "loud")
    with pytest.raises(CurateError, match="CURATE_PROGRESS is one of auto, bar, lines, off, not 'loud'"):
        mode()


def test_a_notebook_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: shell)}))
    assert mode() == "bar"


@pytest.mark.parametrize("how", ["terminal", "slow", "quick"])
def test_a_command_s_stdout_is_json_whatever_is_shown(how: str, school_ws: Workspace) -> None:
    done = forks.run(SCORE, str(school_ws.path), how, NARROW)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rows"] == 200
    if how == "terminal":
        shown = (school_ws.path.parent / "shown").read_text()
        assert "nll: forward" in shown and "/200 [" in shown
    elif how == "slow":
        lines = done.stderr.splitlines()
        assert lines and all(line.startswith("nll: forward: ") and " of 200 samples" in line for line in lines)
    else:
        assert done.stderr == ""


def test_a_pass_moves_after_every_batch_and_ends_at_its_rows(
    school_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    show = Progress._show
    monkeypatch.setattr(Progress, "_show", lambda self: seen.append(self.done) or show(self))
    curate.score(school_ws, Nll(), Entropy(), models=ModelChoice(NARROW, batch_tokens=256))
    units = len(school_ws.shards())  # each is one
    assert seen == sorted(seen) and seen[-1] == 200 and len(seen) > 3 * units
