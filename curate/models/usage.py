"""What a pass through a model has cost: tokens, padding, FLOPs by formula and measured, seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Usage:
    """What samples cost on their way through a model, by the names of the ledger's columns.

    tokens: those of samples; padded_tokens: with padding. flops, flops_paper, flops_counted: by our formula, by the
    papers', and measured, which is null where it was not asked for (curate.models.flops). cut: samples longer than the
    context. seconds: null where the pass as a whole is timed. phases: what of it is charged apart, by name.
    """

    device: str
    n_params: int
    tokens: int = 0
    padded_tokens: int = 0
    flops: float = 0.0
    flops_paper: float = 0.0
    cut: int = 0
    flops_counted: float | None = None
    seconds: float | None = None
    phases: dict[str, Usage] = field(default_factory=dict)

    def part(self, share: float) -> Usage:
        """So much of it."""
        return replace(
            self,
            **{name: round(share * getattr(self, name)) for name in ("tokens", "padded_tokens", "cut")},
            **{name: share * getattr(self, name) for name in ("flops", "flops_paper")},
            **{
                name: None if (v := getattr(self, name)) is None else share * v for name in ("flops_counted", "seconds")
            },
        )

    def add(self, other: Usage) -> None:
        for name in ("tokens", "padded_tokens", "flops", "flops_paper", "cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("flops_counted", "seconds"):
            if (more := getattr(other, name)) is not None:
                setattr(self, name, (getattr(self, name) or 0.0) + more)
        for phase, its in other.phases.items():
            if phase in self.phases:
                self.phases[phase].add(its)
            else:
                self.phases[phase] = replace(its)
