"""Every claim about GPUs in one call, in order of worth; a line of JSON for each figure as soon as it is known.

    python tests/gpu/prove.py --minutes 8 --to FILE        on a GPU, with a model of Llama-3.2-1B's shape
    python tests/gpu/prove.py --on cpu                      a rehearsal at small shapes
    python -m tests.gpu.page FILE                           takes the lines of FILE into docs/results/gpu.md

Needs torch, transformers, peft, accelerate, NumPy, SciPy and safetensors (--bare refuses all else that curate uses).
What would take longer than there is time left is untried, with the reason; a kill loses what was under way. Exits with
1 if a bound was missed or a part failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: Python looks beside it, and not where `tests` is
    sys.path[0] = str(Path(__file__).parents[2])

from tests.gpu.figures import FIGURES
from tests.gpu.lines import ROOT, Lines, Untried, about, told
from tests.support import bare

_SPARE = 5.0  # seconds kept for the end


@dataclass(frozen=True)
class Part:
    """One function of a module that gives figures. seconds: that it takes at most, by size. figures: their names."""

    module: str
    function: str
    seconds: dict[str, float]
    figures: tuple[str, ...]


def _part(where: str, seconds: tuple[float, float, float], *figures: str) -> Part:
    module, function = where.split(".")
    return Part(f"tests.gpu.{module}", function, dict(zip(("1b", "small", "smallest"), seconds, strict=True)), figures)


PARTS = (
    _part("forward.limits", (15, 10, 5), "a.products.bfloat16", "a.products.float32", "a.copy"),
    _part("agreement.forward_scores", (30, 20, 20), "b.nll", "b.entropy", "b.el2n", "b.embed_lm",
          "b.nll.bfloat16", "b.entropy.bfloat16", "b.el2n.bfloat16"),
    _part("agreement.per_sample", (15, 10, 10), "b.gradients.lora", "b.gradients.all"),
    _part("agreement.gradient_scores", (20, 15, 10), "b.graddot", "b.less", "b.graddot.bfloat16", "b.less.bfloat16"),
    _part("agreement.projection", (5, 2, 2), "b.projection"),
    _part("agreement.dualsft", (15, 10, 10), "b.dualsft"),
    _part("agreement_training.adapt", (15, 15, 10), "b.adapt"),
    _part("agreement_training.selection", (15, 15, 10), "b.choice", "b.weights"),
    _part("agreement_training.masked", (20, 15, 10), "b.masked", "b.masked.rest"),
    _part("forward.throughput", (90, 60, 10), "c.share", "c.tokens", "c.memory", "c.five"),
    _part("gradients.features", (90, 60, 10), "d.share", "d.tokens", "d.forward", "d.backward", "d.projection",
          "d.authors"),
    _part("training.steps", (90, 60, 10), "e.plain", "e.share", "e.adapt", "e.packed"),
    _part("training.selection", (45, 30, 10), "e.selection"),
    _part("forward.memory", (20, 20, 5), "f.halved", "f.scored", "f.remembered"),
    _part("training.memory", (20, 20, 5), "f.trained"),
    _part("gradients.directions", (45, 30, 5), "g.dualsft"),
    _part("gradients.influence", (1, 1, 1), "g.influence"),
    _part("forward.index", (20, 20, 5), "h.search"),
    _part("forward.real", (60, 60, 10), "i.tokens", "i.bfloat16", "i.float16"),
)  # fmt: skip


class Late(Exception):
    """The time is over."""


@contextmanager
def _until(seconds: float) -> Iterator[None]:
    """Raise Late in the enclosed code after that many seconds."""

    def late(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prove(ground: Any, size: str, deadline: float, parts: Sequence[Part] = PARTS) -> None:
    """Make the figures of parts, as far as there is time; deadline: of time.monotonic()."""
    lines: Lines = ground.lines
    for part in parts:
        wanted, left = list(part.figures), deadline - time.monotonic()
        if not ground.on_gpu and "c.memory" in wanted:
            wanted.remove("c.memory")  # of a GPU
        if part.seconds[size] > left:
            why, failed = (
                f"it takes {part.seconds[size]:.0f} s and there were {max(left, 0):.0f} s left",
                False,
            )
        else:
            began, (why, failed) = time.monotonic(), _made(ground, part, wanted, left)
            told(f"    {part.function}: {time.monotonic() - began:.1f} s")
        for name in wanted:
            lines.untried(name, why, failed)


def _made(ground: Any, part: Part, wanted: list[str], left: float) -> tuple[str, bool]:
    """Make a part's figures, taking the names of those that were made from `wanted`. Why others were not; whether that
    is a failure."""
    import torch

    why, failed = "it gave no such figure", True
    try:
        with _until(left):
            for name, value, more in getattr(import_module(part.module), part.function)(ground):
                wanted.remove(name)
                ground.lines.figure(name, value, **more)
    except Late:
        why, failed = "it was under way when the time was over", False
    except Untried as reason:
        why, failed = str(reason), False
    except torch.OutOfMemoryError:
        why = "out of memory"
    except Exception as error:  # the other parts stand
        traceback.print_exc()
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    if ground.on_gpu:  # what a part had is not to be in the way of the next
        gc.collect()
        torch.cuda.empty_cache()
    return why, failed


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/gpu/prove.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="how long it may take, 8 unless told")
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--size", choices=("1b", "small", "smallest"), help="1b on a GPU, small on a CPU unless told")
    parser.add_argument("--to", type=Path, help="the file of lines; $OUT/gpu.jsonl, or build/gpu.jsonl, unless told")
    parser.add_argument("--only", default="", help="names of figures or their beginnings, separated by commas")
    parser.add_argument("--real", default="", help="a folder with SmolLM2-135M as safetensors")
    parser.add_argument("--rows", default="", help="a file of JSON lines with real samples for it")
    parser.add_argument("--commit", default="", help="of a copy that has no .git")
    parser.add_argument("--bare", action="store_true", help="refuse packages that a GPU machine may lack")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the figures; returns 1 if a bound was missed or a part failed."""
    began, asked = time.monotonic(), _asked(arguments)
    if asked.bare:
        bare.refuse()
    os.environ.setdefault("CURATE_PROGRESS", "off")
    import torch

    from tests.gpu.ground import SIZES, Ground

    if asked.on == "cuda" and not torch.cuda.is_available():
        told("there is no GPU here; --on cpu rehearses")
        return 2
    size = asked.size or ("1b" if asked.on == "cuda" else "small")
    to = asked.to or Path(os.environ.get("OUT") or ROOT / "build") / "gpu.jsonl"
    ground = Ground(asked.on, SIZES[size], Lines(to, about(asked.on, size, asked.commit)), asked.real, asked.rows)
    names = tuple(filter(None, asked.only.split(",")))
    parts = [part for part in PARTS if not names or any(f.startswith(names) for f in part.figures)]
    told(f"{ground.lines.about['device']}, {ground.lines.about['versions']}")
    prove(ground, size, began + 60 * asked.minutes - _SPARE, parts)
    missed = [line["figure"] for line in ground.lines.kept if line["holds"] is False]
    made = sum(line["value"] is not None for line in ground.lines.kept)
    told(f"{made} of {len(FIGURES)} figures in {time.monotonic() - began:.0f} s; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
