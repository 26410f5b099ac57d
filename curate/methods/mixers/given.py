from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.errors import CurateError, nearest
from curate.kinds.fields import pair
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies


@dataclass(frozen=True)
class Given(Mixer):
    """Weights as given, by domain name.

    Formula:  w_d = given_d / sum of given;  a domain that is not named weighs 0

    Cost: none.

    Departures: none.

    Reference: none; for weights that were found elsewhere.

    >>> Given("a=1,b=3").mix(Domains(["a", "b", "c"], np.array([9.0, 1.0, 1.0]))).weights.tolist()
    [0.25, 0.75, 0.0]
    """

    weights: str = ""
    """DOMAIN=WEIGHT (or DOMAIN:WEIGHT), separated by commas."""

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        if not self.weights:
            raise CurateError(
                f"say which weights: --set weights={domains.names[0]}=1,…; the domains are {', '.join(domains.names)}."
            )
        by_domain = dict.fromkeys(domains.names, 0.0)
        for entry in self.weights.split(","):
            name, text = pair(entry)
            if (name := name.strip()) not in by_domain:
                raise CurateError(f"there is no domain '{name}' to mix, or it is empty: {nearest(name, domains.names)}")
            by_domain[name] = _number(text, entry)
        weights = np.array([by_domain[name] for name in domains.names])
        if not weights.any():
            raise CurateError(f"the weights {self.weights} are all 0; one at least is above.")
        return Mixed(weights / weights.sum())


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise CurateError(f"the weight '{where}': write it as DOMAIN=WEIGHT, a number of 0 or more.")
    return value
