from __future__ import annotations

from dataclasses import dataclass

from curate.errors import require
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Temperature(Mixer):
    """Between the pool as it is and all domains alike, by a temperature.

    Formula, with p_d the domain's share of the pool:  w_d = p_d^(1 / temperature) / sum of p^(1 / temperature)

    At 1, where it begins, it is `proportional`; the higher, the nearer to `uniform`.

    Cost: none.

    Departures: none; there is no usual temperature: multilingual models took 1.4 to 5 and more.

    Reference: Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild" (2019), Section 4.

    >>> import numpy as np
    >>> Temperature(2.0).mix(Domains(["a", "b"], np.array([9.0, 1.0]))).weights.tolist()
    [0.75, 0.25]
    """

    temperature: float = 1.0
    """1: in proportion; the higher, the more alike."""

    def __post_init__(self) -> None:
        require(f"temperature.temperature={self.temperature}", self.temperature > 0, "a number above 0")

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        weights = domains.share ** (1 / self.temperature)
        return Mixed(weights / weights.sum())
