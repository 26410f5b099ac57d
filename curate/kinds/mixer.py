"""Mixers: domains in, their weights out, with small proxy models where a method trains some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from curate.kinds.method import Method
from curate.kinds.passes import Arrays
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Domains:
    """D domains of a pool, by name.

    sizes: float64 [D], in the unit that their weights are shares of: samples or tokens. values: float64 [D], of each
    the mean of the user's column; null where none was named.
    """

    names: Sequence[str]
    sizes: np.ndarray
    values: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray:
        """Of each domain in the pool, float64 [D], summing to 1."""
        return self.sizes / self.sizes.sum()


@dataclass(frozen=True)
class Mixed:
    """Weights of domains, float64 [D], summing to 1; and what is to be told of how they were found."""

    weights: np.ndarray
    info: Mapping[str, float] = field(default_factory=dict)


class Proxies(ABC):
    """Small models that a mixer may have trained on mixtures; how, the user says."""

    @abstractmethod
    def train(self, label: str, weights: np.ndarray, weighting: Weighting | None = None, reference: str = "") -> Arrays:
        """Train one on a mixture, float64 [D]; returns what its weighting remembers in the end. reference: the label
        of an earlier one, whose losses the weighting compares with."""

    @abstractmethod
    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        """Train one on each of N mixtures, float64 [N, D]; returns their losses on the K targets, float64 [N, K]."""


class Mixer(Method):
    """Turns domains into weights.

    uses_values: whether it looks at a column of the samples. trains: whether it has proxies trained. evaluates: whether
    these are judged on targets.
    """

    uses_values: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    evaluates: ClassVar[bool] = False

    @abstractmethod
    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        """The weights of the domains."""
