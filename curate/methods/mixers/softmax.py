from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import require
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Softmax(Mixer):
    """Domains by the mean of a score, through a softmax.

    Formula, with s_d the mean of the column (--by) over the domain:  w_d = g(s_d) / sum of g(s),
    g(s) = exp(s / temperature)

    Cost: none beside the score's.

    Departures: the temperature is in the score's own units, so no value suits all scores; with `standardize=true` s_d
    is first divided by the standard deviation over the domains.

    Reference: none of its own; the form in which domain scores become sampling weights, as in "Perplexity-correlation"
    and influence-based mixing of domains.

    >>> found = Softmax(1.0).mix(Domains(["a", "b"], np.array([9.0, 1.0]), np.array([0.0, np.log(3)])))
    >>> found.weights.round(6).tolist()
    [0.25, 0.75]
    """

    uses_values: ClassVar = True

    temperature: float = 1.0
    """In units of the score (of its standard deviation over domains, where standardize=true): the lower, the more the
    best domain gets."""
    standardize: bool = False
    """Whether the score is divided by its standard deviation over the domains."""

    def __post_init__(self) -> None:
        require(f"softmax.temperature={self.temperature}", self.temperature > 0, "a number above 0")

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        assert domains.values is not None
        values = domains.values
        if self.standardize and (spread := values.std()) > 0:
            values = values / spread
        weights = np.exp((values - values.max()) / self.temperature)
        return Mixed(weights / weights.sum())
