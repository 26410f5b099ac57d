"""The cost of a pass through a model: tokens, padding, FLOPs by formula and measured, seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Usage:
    """The cost of running samples through a model, named as the ledger's columns.

    tokens: of the samples, what they share once if it was computed once; padded_tokens: including padding. flops,
    flops_paper, flops_counted: by our formula, by the papers', and measured (None unless requested; see
    curate.models.flops). cut: samples longer than the context. partial: samples of which some turns could not be
    located. seconds: None where only the pass as a whole is timed. phases: the parts charged separately, by name.
    """

    device: str
    n_params: int
    tokens: int = 0
    padded_tokens: int = 0
    flops: float = 0.0
    flops_paper: float = 0.0
    cut: int = 0
    partial: int = 0
    flops_counted: float | None = None
    seconds: float | None = None
    phases: dict[str, Usage] = field(default_factory=dict)

    def part(self, share: float) -> Usage:
        """A copy scaled to the given share of the cost."""
        return replace(
            self,
            **{name: round(share * getattr(self, name)) for name in ("tokens", "padded_tokens", "cut", "partial")},
            **{name: share * getattr(self, name) for name in ("flops", "flops_paper")},
            **{
                name: None if (v := getattr(self, name)) is None else share * v for name in ("flops_counted", "seconds")
            },
        )

    def add(self, other: Usage) -> None:
        """Add another cost to this one, phases included."""
        for name in ("tokens", "padded_tokens", "flops", "flops_paper", "cut", "partial"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("flops_counted", "seconds"):
            if (amount := getattr(other, name)) is not None:
                setattr(self, name, (getattr(self, name) or 0.0) + amount)
        for phase, usage in other.phases.items():
            if phase in self.phases:
                self.phases[phase].add(usage)
            else:
                self.phases[phase] = replace(usage)
