"""Streaming candidates: an iterator that is read once, and a bounded replay memory of past samples.

A share of a step's candidates may be past ones, drawn at random from the memory; the others are the iterator's next.
The memory is a uniform sample of everything read (reservoir sampling): the n-th sample replaces one of the M kept with
probability M / n (Vitter 1985, Algorithm R). Draws are a pure function of the seed and the step; memory and position
are stored in checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from curate.errors import CurateFailure
from curate.kinds.passes import Arrays
from curate.models.tokens import Encoded
from curate.training.examples import Examples


class Stream:
    """A stream of tokenised samples with a replay memory.

    samples: the iterator; a sample that cannot be trained on has an `error`. memory: how many past samples are kept.
    replay: the share of a step's candidates drawn from them. seed: of the draws.
    """

    def __init__(self, samples: Iterator[Encoded], memory: int = 0, replay: float = 0.0, seed: int = 0):
        self._samples, self._memory, self._replay, self._seed = samples, memory, replay, seed
        self.place = self.taken = 0  # samples read so far, and those of them that can be trained on
        self.left_out: dict[str, int] = {}  # reason -> how many could not be trained on
        self._kept: list[tuple[int, Encoded]] = []

    def candidates(self, step: int, rows: int) -> tuple[Examples, np.ndarray]:
        """A step's candidates, and each one's position in the stream, int64 [rows]. Raises CurateFailure at its end."""
        rng = np.random.default_rng([self._seed % 2**63, step, 2])
        n_replayed = min(int(self._replay * rows), len(self._kept))
        replayed = (
            [self._kept[i] for i in np.sort(rng.choice(len(self._kept), n_replayed, replace=False))]
            if n_replayed
            else []
        )
        fresh = list[tuple[int, Encoded]]()
        for _ in range(rows - n_replayed):
            number, sample = self._next(step)
            fresh.append((number, sample))
            self._remember(number, sample, rng)
        combined = [*fresh, *replayed]
        return Examples.of([sample for _, sample in combined]), np.array([number for number, _ in combined], np.int64)

    def _next(self, step: int) -> tuple[int, Encoded]:
        for sample in self._samples:
            self.place += 1
            if not (reason := sample.error or ("" if sample.supervised.any() else "nothing of it is supervised")):
                self.taken += 1
                return self.place - 1, sample
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
        raise CurateFailure(
            f"the stream has ended after {self.place:,} samples, at step {step}; ask for fewer steps, or go on with a "
            f"longer one.{self._unused()}"
        )

    def _unused(self) -> str:
        """How many samples could not be trained on, and the most frequent reason; '' if all could."""
        if not self.left_out:
            return ""
        reason = max(self.left_out, key=lambda reason: self.left_out[reason])
        return f" {sum(self.left_out.values()):,} could not be trained on; the most frequent reason: one {reason}."

    def _remember(self, number: int, sample: Encoded, rng: np.random.Generator) -> None:
        if len(self._kept) < self._memory:
            self._kept.append((number, sample))
        elif self._memory and (slot := int(rng.integers(self.taken))) < self._memory:
            self._kept[slot] = (number, sample)

    def tensors(self) -> Arrays:
        """The stream's state for a checkpoint, as arrays by name."""
        kept = Examples.of([sample for _, sample in self._kept], [number for number, _ in self._kept])
        ends = np.concatenate([[0], np.cumsum(kept.lengths)]).astype(np.int64)
        arrays = {"ids": np.asarray(kept.ids), "supervised": np.asarray(kept.supervised)}
        arrays |= {"ends": ends, "number": kept.sample}
        reasons = np.frombuffer(json.dumps(self.left_out).encode(), np.uint8)
        if kept.weight is not None:
            arrays["weight"] = np.asarray(kept.weight)
        return {**arrays, "place": np.array([self.place, self.taken]), "left_out": reasons}

    def load(self, arrays: Arrays, skip: bool) -> None:
        """Resume from a checkpoint. skip: the iterator starts from the beginning, so skip what was read before. Raises
        CurateFailure if it is shorter than that."""
        self._kept = []
        ends = arrays["ends"]
        for number, start, stop in zip(arrays["number"], ends[:-1], ends[1:], strict=True):
            weight = arrays["weight"][start:stop] if "weight" in arrays else None
            one = Encoded(arrays["ids"][start:stop], arrays["supervised"][start:stop], weight=weight)
            self._kept.append((int(number), one))
        self.left_out = json.loads(arrays["left_out"].tobytes())
        place, self.taken = map(int, arrays["place"])
        if skip:
            for self.place in range(place):
                if next(self._samples, None) is None:
                    raise CurateFailure(f"the stream has {self.place:,} samples, and {place:,} had come before.")
        self.place = place
