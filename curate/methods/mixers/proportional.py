from __future__ import annotations

from dataclasses import dataclass

from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Proportional(Mixer):
    """Every domain is weighted by its size: the pool as it is.

    Formula, with n_d the domain's samples or tokens:  w_d = n_d / sum of n

    Cost: none.

    Departures: none.

    Reference: the usual baseline, as in Xie et al., "DoReMi" (2023), Section 3.

    >>> import numpy as np
    >>> Proportional().mix(Domains(["a", "b"], np.array([9.0, 1.0]))).weights.tolist()
    [0.9, 0.1]
    """

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        return Mixed(domains.share)
