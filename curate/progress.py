"""How far work is: a bar on a terminal or in a notebook; where there is neither, a line on stderr every half minute.

    with Progress("nll: forward", 640) as shown:        # opened by what runs the work
        shown.finished(80)                              # a unit of 80 samples is done

    passed(32, 1_024)           # called by what takes a batch of samples through a model, at any depth: within a unit
    with in_parts(3): …         # the same samples go through three times, each a third of the work

Nothing is written to stdout, and nothing at all about work that takes less than half a minute without a terminal.
CURATE_PROGRESS=off, lines or bar overrides what is found out about the terminal.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from curate.errors import CurateError
from curate.text_table import one_line

SETTING = "CURATE_PROGRESS"
EVERY = 30.0  # seconds between lines
_MODES = ("auto", "bar", "lines", "off")

_listening: ContextVar[Progress | None] = ContextVar("listening", default=None)
_share: ContextVar[float] = ContextVar("share", default=1.0)


def passed(samples: int, tokens: int = 0) -> None:
    """Report that a batch of samples has gone through a model, to the progress that is shown in this thread, if any."""
    if (shown := _listening.get()) is not None:
        shown.within(samples * _share.get(), tokens)


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """The enclosed code reports its samples `count` times, each time a part of their work."""
    token = _share.set(_share.get() / max(count, 1))
    try:
        yield
    finally:
        _share.reset(token)


def mode() -> str:
    """How progress is shown: 'bar', 'lines' or 'off'. Raises CurateError for an unknown setting."""
    wanted = os.environ.get(SETTING) or "auto"
    if wanted not in _MODES:
        raise CurateError(f"{SETTING} is one of {', '.join(_MODES)}, not '{wanted}'.")
    if wanted != "auto":
        return wanted
    return "bar" if _in_notebook() or sys.stderr.isatty() else "lines"


class Progress:
    """Shows how much of some work is done. Use it in a `with` statement."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        done: int = 0,
        noun: str = "samples",
        shown: bool = True,
        listens: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """total: of `noun`, None if unknown. done: of them, earlier. shown: whether this process shows anything.
        listens: whether it counts the batches that are reported by `passed`."""
        self.what, self.total, self.noun, self.note = what, total, noun, ""
        self.tokens, self._earlier, self._done, self._within, self._tokens_within = 0, done, done, 0.0, 0
        self._mode, self._clock = mode() if shown else "off", clock
        self._began = self._last = clock()
        self._listens = listens
        self._lock, self._over = threading.Lock(), threading.Event()
        self._bar: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._token = _listening.set(self if self._listens else None)
        if self._mode == "bar":
            self._bar = _bar(self.what, self.total, self._done, self.noun)
        elif self._mode == "lines":
            self._thread = threading.Thread(target=self._tick, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        _listening.reset(self._token)
        self._over.set()
        if self._thread:
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    @property
    def done(self) -> int:
        """How many are done, the part of the unit at work included; at most the total."""
        done = int(self._done + self._within)
        return done if self.total is None else min(done, self.total)

    def finished(self, count: int, tokens: int = 0, note: str = "") -> None:
        """A unit of `count` is done. tokens: in it, where they were not reported from within."""
        self.tokens += 0 if self._tokens_within else tokens
        self._done, self._within, self._tokens_within = self._done + count, 0.0, 0
        self.note = note or self.note
        self._show()

    def within(self, count: float, tokens: int = 0) -> None:
        """A part of the unit at work is done."""
        self._within += count
        self.tokens, self._tokens_within = self.tokens + tokens, self._tokens_within + tokens
        self._show()

    def line(self) -> str:
        """How far it is, in words."""
        counted = f"{self.done:,} {self.noun}"
        if self.total:
            counted = f"{self.done:,} of {self.total:,} {self.noun} ({100 * self.done // self.total} %)"
        left = self._left()
        ends = f"about {_span(left)} left" if left is not None else f"{_span(self._clock() - self._began)} so far"
        return one_line(f"{self.what}: " + ", ".join(filter(None, [counted, self._tokens(), self.note, ends])))

    def _tokens(self) -> str:
        return f"{_short(self.tokens)} tokens" if self.tokens else ""

    def _left(self) -> float | None:
        """Seconds left at the mean rate so far; None if that is unknown."""
        now_done = self.done - self._earlier
        if not self.total or now_done <= 0:
            return None
        return (self._clock() - self._began) * (self.total - self.done) / now_done

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(one_line(", ".join(filter(None, [self._tokens(), self.note]))), refresh=False)
            self._bar.update(self.done - self._bar.n)
        elif self._mode == "lines":
            self._say()

    def _say(self) -> None:
        """Print the line if the last one is half a minute old."""
        with self._lock:
            if self._clock() - self._last >= EVERY:
                self._last = self._clock()
                print(self.line(), file=sys.stderr, flush=True)

    def _tick(self) -> None:
        """Print lines also while nothing is reported."""
        while not self._over.wait(EVERY / 6):
            self._say()


def _bar(what: str, total: int | None, done: int, noun: str) -> Any:
    from tqdm import tqdm

    kind: Any = tqdm
    if _in_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as kind
    return kind(
        total=total, initial=done, desc=one_line(what), unit=f" {noun}", unit_scale=True, leave=False, **_room()
    )


def _room() -> dict[str, Any]:
    """The size for a bar: that of the terminal, or a usual one where it has none, as under `script` in a job."""
    try:
        has_size = bool(os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        has_size = False
    return {"dynamic_ncols": True} if has_size else {"ncols": 100, "nrows": 24}


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(count: int) -> str:
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
