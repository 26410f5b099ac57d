from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Uniform(Mixer):
    """Every domain has the same weight.

    Formula:  w_d = 1 / D

    Cost: none.

    Departures: none.

    Reference: the usual baseline, as in Xie et al., "DoReMi" (2023), Section 3.

    >>> Uniform().mix(Domains(["a", "b"], np.array([9.0, 1.0]))).weights.tolist()
    [0.5, 0.5]
    """

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        return Mixed(np.full(len(domains.names), 1 / len(domains.names)))
