"""What was tried, by kind, and how it ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Tally:
    """How often each outcome was, by the kind of what was tried; and the words on every one that was not to be."""

    part: str
    outcomes: tuple[str, ...]
    bad: tuple[str, ...]
    by_kind: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)
    tried: int = 0
    last: str = ""

    def add(self, kind: str, outcome: str, told: str) -> None:
        self.tried += 1
        self.by_kind[kind][outcome] += 1
        if outcome in self.bad:
            self.wrong.append(f"{outcome}: {told[:400]}")

    def __str__(self) -> str:
        width = max(map(len, (*self.by_kind, self.part)), default=0)
        head = f"{self.part:{width}}  {'tried':>6}  " + "  ".join(f"{name:>10}" for name in self.outcomes)
        whole: Counter[str] = sum(self.by_kind.values(), Counter())
        rows = [(kind, self.by_kind[kind]) for kind in sorted(self.by_kind)] + [("all", whole)]
        return "\n".join(
            [
                head,
                *(
                    f"{kind:{width}}  {n.total():6}  " + "  ".join(f"{n[o]:10}" for o in self.outcomes)
                    for kind, n in rows
                ),
            ]
        )
