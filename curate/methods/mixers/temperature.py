from __future__ import annotations

from dataclasses import dataclass

from curate.errors import require
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Temperature(Mixer):
    """Between the pool's own proportions and equal weights, by a temperature.

    Formula, with p_d the domain's share of the pool:  w_d = p_d^(1 / temperature) / sum of p^(1 / temperature)

    At 1, the default, it is `proportional`; the higher, the closer to `uniform`.

    Cost: none.

    Departures: none; there is no standard temperature: multilingual models used 1.4 to 5 and more.

    Reference: Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild" (2019), Section 4.

    >>> import numpy as np
    >>> Temperature(2.0).mix(Domains(["a", "b"], np.array([9.0, 1.0]))).weights.tolist()
    [0.75, 0.25]
    """

    temperature: float = 1.0
    """1: in proportion to size; the higher, the more equal."""

    def __post_init__(self) -> None:
        require(f"temperature.temperature={self.temperature}", self.temperature > 0, "a number above 0")

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        weights = domains.share ** (1 / self.temperature)
        return Mixed(weights / weights.sum())
