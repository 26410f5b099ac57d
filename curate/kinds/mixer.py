"""Mixers: domains in, domain weights out; some methods train small proxy models to find them."""

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
    """The D domains of a pool, by name.

    sizes: float64 [D], in the unit of the weights: samples or tokens. values: float64 [D], the mean of the user's
    column over each domain; None if no column was given.
    """

    names: Sequence[str]
    sizes: np.ndarray
    values: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray:
        """The share of each domain in the pool, float64 [D], summing to 1."""
        return self.sizes / self.sizes.sum()


@dataclass(frozen=True)
class Mixed:
    """Domain weights, float64 [D], summing to 1; info: figures to report on how they were found."""

    weights: np.ndarray
    info: Mapping[str, float] = field(default_factory=dict)


class Proxies(ABC):
    """Small proxy models that a mixer can have trained on mixtures, with the user's training settings."""

    @abstractmethod
    def train(self, label: str, weights: np.ndarray, weighting: Weighting | None = None, reference: str = "") -> Arrays:
        """Train a proxy on a mixture, float64 [D]; returns the final state of its weighting. reference: the label of an
        earlier proxy, whose losses the weighting compares with."""

    @abstractmethod
    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        """Train a proxy on each of N mixtures, float64 [N, D]; returns the losses on the K targets, float64 [N, K]."""


class Mixer(Method):
    """Turns domains into weights.

    uses_values: whether it uses a column of the samples. trains: whether it trains proxies. evaluates: whether the
    proxies are evaluated on targets.
    """

    uses_values: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    evaluates: ClassVar[bool] = False

    @abstractmethod
    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        """Compute the weights of the domains."""
