"""Scores: what turns samples into a column, and what one may ask for (a target, models, a warm-up, anchors)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.kinds.method import Method
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.vectors import Aggregate, Anchors

if TYPE_CHECKING:  # a machine that only runs models has no Arrow, polars or torch to be imported here
    from curate.kinds.text import Text


@dataclass(frozen=True)
class Target:
    """The val split of a target, or those a method asks for: its T samples and the sub-task of each ('' for none)."""

    name: str
    text: Text
    subtasks: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(cls, samples: Sequence[Any], subtasks: Sequence[str] = ()) -> Target:
        """A target from memory; samples as Text.of takes them."""
        from curate.kinds.text import Text

        return cls("target", Text.of(samples), tuple(subtasks) or ("",) * len(samples), "")


class Score(Method):
    """Turns samples into a column.

    scope 'row': a sample's score depends on that sample alone, so new shards are filled in and old ones
    stand; 'pool': it depends on the others, so new data makes it stale.
    columns: further columns, name -> numpy dtype, or 'id' for a sample's id as a number, uint64, and 0 for none.
    splits: those of a target that are its examples, where it uses one; 'test' only to find it in the pool.
    unit_bytes: text per committed unit. models: the roles of the models
    it needs, the first being the one that a bare --model names. usual_models: role -> the one taken where none is
    named. checkpoints: how many of a training it looks at: none, the last, or each; 'each' needs some.
    scores_warmup: whether the samples of its own warm-up are scored too. same_models: role -> the role whose model it
    takes where none is named.
    """

    scope: ClassVar[Literal["row", "pool"]]
    uses_target: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("val",)
    models: ClassVar[tuple[str, ...]] = ()
    usual_models: ClassVar[Mapping[str, str]] = {}
    same_models: ClassVar[Mapping[str, str]] = {}
    checkpoints: ClassVar[Literal["none", "last", "each"]] = "none"
    scores_warmup: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {}
    unit_bytes: ClassVar[int] = 16 << 20

    @abstractmethod
    def passes(self, target: Target | None) -> Sequence[Pass]:
        """The passes in order; only the last has no `reduce`."""

    def vectors(self) -> Pass | None:
        """The pass that makes a vector of each sample: a row of `vector` [B, D], of any length.

        It is the same for every target: the vectors are stored under a name of their own and serve all. The score is
        then made of them, by the one pass of `passes(target)`; without a target there are the vectors only.
        """
        return None

    def target_vectors(self) -> Pass | None:
        """The pass that makes a vector of each of a target's samples, where it is another."""
        return self.vectors()

    def warm_up(self) -> Warmup | None:
        """The training whose checkpoints it looks at where none are given; null where there is none."""
        return None

    def anchors(self) -> HeldOutShare | None:
        """The samples that are set aside for passes over anchors, and not scored; null where there are none."""
        return None

    def of_parameters(self, state: Arrays, moments: Any) -> Callable[[str], np.ndarray] | None:
        """What it makes of the model's parameters, from the states of its counting passes and the optimizer's moments
        (curate.gradients.optimizer_state.Moments): name -> float64, its shape; null for most."""
        return None

    def note(self, columns: Mapping[str, np.ndarray]) -> str:
        """What is to be said of a score once it is there, of its columns over the whole pool [N]; '' for nothing."""
        return ""

    def keeps_subtasks(self) -> bool:
        """Whether the table has the map column `subtasks`."""
        return False


@dataclass(frozen=True)
class HeldOutShare:
    """A share of the pool, drawn by the seed, that a score looks at and does not score."""

    share: float
    seed: int


@dataclass(frozen=True)
class Warmup:
    """A training that comes before a score or a mask: of `share` of the pool, drawn by the seed, as the settings say
    (names and values of curate.training.settings). A checkpoint is kept of every epoch, with the optimizer's state."""

    share: float
    seed: int
    settings: Mapping[str, Any]


def near_target(aggregate: Aggregate, keep_subtasks: bool) -> Pass:
    """The pass of a score on vectors that is their nearness to the target's."""
    anchors = partial(Anchors.of, aggregate=aggregate, keep_subtasks=keep_subtasks)
    return Pass("score", lambda batch, its: its.nearness(batch), open=anchors, flops=Anchors.flops)


def run(score: Score, batches: Sequence[Any], target: Target | None = None) -> list[Columns]:
    """All passes over batches in memory, one result per batch: a score without a workspace."""
    *counting, last = score.passes(target)
    state: Arrays = {}
    for step in counting:
        given = step.open(state) if step.open else state
        assert step.reduce is not None
        state = {**state, **step.reduce(step.map(batch, given) for batch in batches)}
    given = last.open(state) if last.open else state
    return [last.map(batch, given) for batch in batches]
