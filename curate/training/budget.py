"""A training's length as a budget in FLOPs: as many steps as it pays for, counted before the first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from curate.errors import CurateError

_MOST = 1_000_000  # steps that are counted one by one


@dataclass(frozen=True)
class Budget:
    """FLOPs that a training may take. spent: of them what was paid before its first step. steps: how many steps these
    are, if it is known already (0: not yet)."""

    flops: float
    spent: float = 0.0
    steps: int = 0

    def steps_within(self, costs: Iterable[float]) -> int:
        """How many of the steps, of which the costs are given in FLOPs, can be paid for. Raises CurateError if none."""
        left, steps = self.flops - self.spent, 0
        for cost in costs:
            if cost > left:
                break
            left, steps = left - cost, steps + 1
            if steps > _MOST:
                raise CurateError(
                    f"flops={self.flops:g}: that is more than {_MOST:,} steps, which are counted one by one; set "
                    "max_steps instead."
                )
        else:
            return steps
        if not steps:
            before = f", {self.spent:.3g} of which are spent before it" if self.spent else ""
            raise CurateError(
                f"flops={self.flops:g}: the first step takes {cost:.3g} FLOPs, more than this budget{before}; give at "
                f"least {self.spent + cost:.3g}, or a smaller batch_size."
            )
        return steps
