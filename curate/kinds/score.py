"""Scores: methods that turn samples into a column, and what they can require (a target, models, a warm-up, anchors)."""

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
    """The T samples of a target's val split (or the splits that a method uses), and their sub-tasks ('' for none)."""

    name: str
    text: Text
    subtasks: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(cls, samples: Sequence[Any], subtasks: Sequence[str] = ()) -> Target:
        """A target from in-memory samples, in the form that Text.of takes."""
        from curate.kinds.text import Text

        return cls("target", Text.of(samples), tuple(subtasks) or ("",) * len(samples), "")


class Score(Method):
    """Turns samples into a column.

    scope 'row': a sample's score depends on that sample alone, so new shards are scored and old ones remain valid;
    'pool': it depends on the other samples, so new data makes it stale.
    columns: further columns, name -> numpy dtype, or 'id' for a sample's id as uint64, with 0 for none.
    splits: the splits of a target that it uses as examples; 'test' only to find that split's samples in the pool.
    unit_bytes: characters of text per committed unit. models: the roles of the models it needs; a --model without a
    role is the first. usual_models: role -> the default model. checkpoints: which checkpoints of a training it uses:
    none, the last, or each; 'each' requires at least one. scores_warmup: whether the samples of its own warm-up are
    scored too. same_models: role -> the role whose model it shares by default. of_pairs: whether only preference pairs
    have a score; others are NULL with the reason. ranks_in_bfloat16: whether its order with matrix products in bfloat16
    was measured to be that of float32 (Spearman's correlation at least 0.99), so that model.dtype=auto may use them.
    predicts_a_step: whether it is a prediction of a step's effect on the target's loss, from the states pool.0 and
    task.0 (mean gradients), so that how far it holds is measured when it was computed in this machine's processes.
    """

    scope: ClassVar[Literal["row", "pool"]]
    uses_target: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("val",)
    models: ClassVar[tuple[str, ...]] = ()
    usual_models: ClassVar[Mapping[str, str]] = {}
    same_models: ClassVar[Mapping[str, str]] = {}
    checkpoints: ClassVar[Literal["none", "last", "each"]] = "none"
    scores_warmup: ClassVar[bool] = True
    of_pairs: ClassVar[bool] = False
    ranks_in_bfloat16: ClassVar[bool] = False
    predicts_a_step: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {}
    unit_bytes: ClassVar[int] = 16 << 20

    @abstractmethod
    def passes(self, target: Target | None) -> Sequence[Pass]:
        """The passes in order; only the last one has no `reduce`."""

    def used_models(self) -> Sequence[str]:
        """The roles of the models that matter with these settings."""
        return self.models

    def vectors(self) -> Pass | None:
        """The pass that computes a vector of each sample: the rows of `vector` [B, D], of any norm; None: no vectors.

        It does not depend on the target: the vectors are stored under their own name and shared by all targets. The
        score is then computed from them by the single pass of `passes(target)`; without a target only vectors are made.
        """
        return None

    def target_vectors(self) -> Pass | None:
        """The pass that computes the vectors of the target's samples; by default the same as for the pool."""
        return self.vectors()

    def warm_up(self) -> Warmup | None:
        """The training whose checkpoints it uses if none are given; None: it has no warm-up."""
        return None

    def replay(self) -> Replay | None:
        """The training on the whole pool that it replays backwards, in a first pass over="training"; None: none."""
        return None

    def compared(self) -> Comparisons | None:
        """The pairs of samples that it compares, in a first pass over="pairs"; None: none."""
        return None

    def anchors(self) -> HeldOutShare | None:
        """The share of samples held out for passes over anchors, and not scored; None: nothing is held out."""
        return None

    def of_parameters(self, state: Arrays, moments: Any) -> Callable[[str], np.ndarray] | None:
        """The scores of the model's parameters, from the states of the counting passes and the optimizer's moments
        (curate.gradients.optimizer_state.Moments; None where the score uses none): name -> float64 of its shape; None
        for most scores."""
        return None

    def note(self, columns: Mapping[str, np.ndarray], target: Target | None = None) -> str:
        """A remark for the user on the finished score, from its columns over the whole pool [N], the score itself among
        them (NaN where it is null), and its target; '': no remark."""
        return ""

    def state_note(self, before: Mapping[str, np.ndarray]) -> str:
        """A remark for the user from the states of the counting passes, of which an array is read when it is asked for;
        '': no remark."""
        return ""

    def keeps_subtasks(self) -> bool:
        """Whether the table has the map column `subtasks`."""
        return False


@dataclass(frozen=True)
class HeldOutShare:
    """A random share of the pool, drawn with the seed, that a score uses as anchors and does not score."""

    share: float
    seed: int


@dataclass(frozen=True)
class Warmup:
    """A training run that precedes a score or a mask, on a random `share` of the pool drawn with the seed. settings:
    names and values of curate.training.settings. A checkpoint is kept after every epoch, with the optimizer state.
    in_papers: whether its cost is part of what the papers' convention counts."""

    share: float
    seed: int
    settings: Mapping[str, Any]
    in_papers: bool = True


@dataclass(frozen=True)
class Replay:
    """A training on the whole pool that is differentiated. settings: names and values of curate.training.settings.
    seed: of the order of samples, and of LoRA's matrices."""

    settings: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Comparisons:
    """Pairs of samples: of a random `share` of the pool, each with about so many `others`; drawn with the seed."""

    others: int
    share: float
    seed: int


def near_target(aggregate: Aggregate, keep_subtasks: bool) -> Pass:
    """The pass that scores each vector by its cosine similarity with the vectors of the target."""
    open_anchors = partial(Anchors.of, aggregate=aggregate, keep_subtasks=keep_subtasks)
    return Pass("score", lambda batch, anchors: anchors.nearness(batch), open=open_anchors, flops=Anchors.flops)


def run(score: Score, batches: Sequence[Any], target: Target | None = None) -> list[Columns]:
    """Run all passes over in-memory batches, without a workspace; returns one result per batch."""
    *counting, last = score.passes(target)
    state: Arrays = {}
    for step in counting:
        opened = step.open(state) if step.open else state
        state = {**state, **step.state((step.map(batch, opened) for batch in batches), state)}
    opened = last.open(state) if last.open else state
    return [last.map(batch, opened) for batch in batches]
