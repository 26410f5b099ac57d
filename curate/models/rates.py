"""How fast this machine's processor multiplies matrices in float32 and in bfloat16, and so what `auto` means on it."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass, replace
from typing import Literal

from curate.errors import CurateError
from curate.models.choice import MIXED, ModelChoice, has_gpu

CLEARLY = 1.2  # a rate so many times another's is higher, whatever else runs on the machine
VARIABLE = "CURATE_CPU_DTYPE"
_SHAPE = (256, 1024, 1024)  # 0.5 GFLOP: some milliseconds of one core
_TIMES = 3


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a matrix product on the processor, in float32 and with inputs in bfloat16 (0: it refuses them)."""

    float32: float
    bfloat16: float

    @property
    def gain(self) -> float:
        """How many times as fast products in bfloat16 are."""
        return self.bfloat16 / self.float32


@functools.cache
def processor_rates() -> Rates:
    """The rates with the threads that torch uses, measured once in a process, in about 20 ms."""
    import torch

    rows, inner, columns = _SHAPE
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    inputs = {d: (torch.ones(rows, inner, dtype=d), torch.ones(inner, columns, dtype=d)) for d in seconds}
    for _ in range(_TIMES):
        for dtype, (a, b) in inputs.items():
            start = time.perf_counter()
            try:
                torch.mm(a, b)
            except RuntimeError:  # no such products on this processor
                continue
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    flops = 2.0 * rows * inner * columns
    return Rates(flops / seconds[torch.float32], flops / seconds[torch.bfloat16])


def measured() -> Rates | None:
    """The rates, if this process has measured them."""
    return processor_rates() if processor_rates.cache_info().currsize else None


def with_fast_products(choice: ModelChoice) -> ModelChoice:
    """The choice with products in bfloat16, if its dtype and device are `auto` or the processor, and that is faster.

    $CURATE_CPU_DTYPE (float32, mixed_bfloat16) says it without measuring, so that unlike machines give equal scores.
    """
    on_processor = choice.device == "cpu" or choice.device == "auto" and not has_gpu()
    if choice.dtype != "auto" or not on_processor:
        return choice
    return replace(choice, dtype=MIXED) if _wanted() == MIXED else choice


def _wanted() -> Literal["float32", "mixed_bfloat16"]:
    match os.environ.get(VARIABLE, ""):
        case "":
            return "mixed_bfloat16" if processor_rates().gain > CLEARLY else "float32"
        case "float32":
            return "float32"
        case "mixed_bfloat16":
            return "mixed_bfloat16"
        case other:
            raise CurateError(f"${VARIABLE} is float32, mixed_bfloat16 or not set, not '{other}'.")
