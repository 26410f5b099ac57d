"""Samples drawn from domains by a mixture: a fixed quota of each domain, or a random domain for every draw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from curate.hashing import key_of, keyed_uniform
from curate.numerics.apportion import largest_remainders


@dataclass(frozen=True)
class Draws:
    """An endless sequence of samples, cut into epochs of `size` draws.

    domain: int64 [N], of each sample; -1: never drawn. keys: uint64 [N], the samples' ids, which determine the order.
    share: float64 [D], of each domain among the draws, summing to 1. exact: whether every epoch has each domain's exact
    quota; otherwise every draw's domain is random.

    A domain's samples come in one permutation after another, continuing over epochs, so none repeats before all have
    been drawn.
    """

    domain: np.ndarray
    keys: np.ndarray
    share: np.ndarray
    size: int
    exact: bool
    seed: int

    def counts(self, epoch: int) -> np.ndarray:
        """The number of draws from each domain in an epoch (from 0), int64 [D]."""
        if self.exact:
            return largest_remainders(self.share, self.size)
        rng = np.random.default_rng([key_of(self.seed, "mixture"), epoch])
        return rng.multinomial(self.size, self.share / self.share.sum())

    def samples(self, epoch: int) -> np.ndarray:
        """The samples of an epoch (from 0), int64 [size], grouped by domain."""
        drawn_before = sum((self.counts(e) for e in range(epoch)), np.zeros(len(self.share), np.int64))
        return np.concatenate([self._of(d, drawn_before[d], n) for d, n in enumerate(self.counts(epoch))])

    def _of(self, domain: int, start: int, count: int) -> np.ndarray:
        """`count` samples of a domain's endless order, from `start` on."""
        members = np.flatnonzero(self.domain == domain)
        if not count:
            return members[:0]
        rounds = range(start // len(members), (start + count - 1) // len(members) + 1)
        order = np.concatenate([members[self._shuffling(members, r)] for r in rounds])
        first = start - rounds.start * len(members)
        return order[first : first + count]

    def _shuffling(self, members: np.ndarray, round_: int) -> np.ndarray:
        return np.argsort(keyed_uniform(self.keys[members], self.seed, f"mixture, round {round_}"), kind="stable")

    def without(self, those: np.ndarray) -> Draws:
        """The same mixture, never drawing the given samples, bool [N]."""
        return replace(self, domain=np.where(those, -1, self.domain))
