"""The exact derivative of a target's loss after a whole training, with respect to a weight of every training sample.

    train, with a snapshot at every segment's beginning ─► loss of the target, its gradient
    for each segment, the last first:   train it again, keeping every step ─► undo its steps, one by one
    undo a step:   AdamW and clipping ─► derivative by the step's gradient ─► by weights of samples, by parameters

The loss of a step is  sum over its samples i of  w_i omega_i (sum of i's token losses) / D.  What is differentiated are
the omega, all at 1: each multiplies its sample's losses wherever the sample occurs, in every epoch and in each of its
documents. w_i are the weights that the training has anyway (of its data and its weighting, which may not depend on the
model). D, the step's number of supervised tokens (of samples, with reduction=sample), is a constant: an omega changes
the gradient's length as well as its direction.

The training is the trainer's own (its batches, learning rates, clipping, AdamW), step for step. Attention is computed
by the kernel that has second derivatives, in the training too, so that what is undone is what was done; its losses
differ from those of a training by another kernel only by rounding.

Cost: the training; all of it but the last segment once more; and for each step a forward and a backward pass, and a
backward pass through both: 3 steps' worth where all parameters are trained, a little over 2 with LoRA. So 5 trainings,
or 4, in all, and the target's gradient.

Memory: in memory or, if there is a folder, in files, 3 numbers per parameter for each of about sqrt(T) snapshots, and 4
for each of about sqrt(T) steps of a segment. On the device, besides the model, 3 for the derivatives, 4 for the step
that is undone, and what a micro-batch takes: its graph of both passes is about three times that of training (five times
with rows of 512 tokens, as attention's matrices are kept), so micro-batches are divided where training's just fit.

Where it breaks: the derivative is exact, but says little about a change that is not small if the loss after training is
no smooth function of the weights. Large learning rates make it so, and Adam's first steps, whose update is nearly the
sign of the gradient. The paper asks for "metasmooth" trainings; the settings here that make one smoother are a larger
`eps`, a longer `warmup` and a smaller `lr`. AdamW is the trainer's only optimizer.

Reference: Engstrom et al., "Optimizing ML Training with Metagradient Descent" (arXiv:2503.13751); Ilyas and Engstrom,
"MAGIC: Near-Optimal Data Attribution for Deep Learning" (arXiv:2504.16430). Their REPLAY keeps O(k log_k T) snapshots
and trains again about log_k T times; about sqrt(T) snapshots need one more training only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.errors import CurateError
from curate.models.flops import counted
from curate.models.forward import out_of_memory, to_device
from curate.models.usage import Usage
from curate.training.adjoint import Adjoint, Taken
from curate.training.examples import Examples, Room, batch_of, micro_batches
from curate.training.kept_states import KeptStates, kept_states
from curate.training.loop import StepResult, Trainer
from curate.training.optimizer import load_optimizer, optimizer_tensors
from curate.training.replayable import require_replayable
from curate.training.step_weights import Micro

_WEIGHT, _GRADIENT, _MEAN, _SQUARE = "weight", "gradient", "exp_avg", "exp_avg_sq"
_GRAPHS = 3  # a graph of a forward and a backward pass keeps about as much as so many of a forward pass: 2.7 to 2.8


@dataclass(frozen=True)
class Metagradient:
    """What a training did to a target, of N training samples and E target examples.

    values: the derivative of `loss` with respect to each sample's weight, float64 [N]; below 0 where more weight on the
    sample lowers the loss, 0 where the training does not meet it. loss: of the target after training, the mean over its
    examples of each one's mean loss over its supervised tokens (or their sum by `shares`). losses: of each example,
    float64 [E]; NaN where it has no supervised token. steps: of the training. drift: the largest difference between a
    step's loss in the training and when it was trained again; 0 unless the device computes differently each time.
    usage: the cost by phase: `train`, `replay` (segments trained again), `target`, `undo`.
    """

    values: np.ndarray
    loss: float
    losses: np.ndarray
    steps: int
    drift: float
    usage: dict[str, Usage]


def segment_of(steps: int) -> int:
    """Steps between two snapshots, so that these and the steps kept of a segment are about as many."""
    return max(1, math.isqrt(max(0, steps - 1)) + 1)


def steps_in_all(steps: int, every: int = 0) -> int:
    """How often `metagradients` reports a step: when it is trained, trained again, and undone."""
    last = (steps - 1) % (every or segment_of(steps)) + 1 if steps else 0
    return 3 * steps - last


def metagradients(
    trainer: Trainer,
    asked: Examples,
    *,
    shares: np.ndarray | None = None,
    folder: Path | None = None,
    every: int = 0,
    told: Callable[[str], None] = lambda phase: None,
) -> Metagradient:
    """Train, and find the derivatives. Afterwards the model is the trained one; the trainer's optimizer is used up.

    trainer: before its first step. asked: the target's E examples. shares: what each example's loss counts, float64
    [E]; None: all with a supervised token alike, 1 in sum. folder: for snapshots, which are removed in the end; None:
    they are kept in memory. every: steps between snapshots; 0: about the root of their number. told: called with the
    phase after every step, `steps_in_all` times.

    Raises CurateError for a training that cannot be replayed (`require_replayable`), and for a target without
    supervised tokens; Diverged as the trainer does.
    """
    require_replayable(trainer)
    shares = _shares(asked, shares)
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), kept_states(folder) as states:
        return _Replay(trainer, states, every or segment_of(trainer.steps), told).run(asked, shares)


def _shares(asked: Examples, shares: np.ndarray | None) -> np.ndarray:
    """What each target example's loss counts, float64 [E]; 0 for those without a loss."""
    has_loss = asked.counts > 0
    if not has_loss.any():
        raise CurateError(
            f"none of the target's {len(asked)} examples has a supervised token, so it has no loss; give it examples "
            "with answers, or supervise all tokens (loss=all)."
        )
    if shares is None:
        return has_loss / has_loss.sum()
    shares = np.asarray(shares, np.float64)
    if shares.shape != has_loss.shape or not np.isfinite(shares).all() or shares[~has_loss].any():
        raise CurateError(
            f"shares are {len(asked)} finite numbers, one for each example of the target, and 0 for an example without "
            "supervised tokens."
        )
    return shares


class _Replay:
    """One training, forwards and backwards. states: where snapshots are kept. every: steps of a segment."""

    def __init__(self, trainer: Trainer, states: KeptStates, every: int, told: Callable[[str], None]):
        self.trainer, self.states, self.every, self.told = trainer, states, every, told
        self.parameters, self.examples = trainer.parameters, trainer.data.examples
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        groups = trainer.optimizer.param_groups
        self.groups = {names[id(parameter)]: group for group in groups for parameter in group["params"]}
        self.values = np.zeros(len(trainer.data.weights))
        self.usage: dict[str, Usage] = {}
        self.losses = np.zeros(trainer.steps)
        self.drift, self._keeps = 0.0, False

    def run(self, asked: Examples, shares: np.ndarray) -> Metagradient:
        """Train, ask, and undo every step."""
        trainer, steps = self.trainer, self.trainer.steps
        starts = range(0, steps, self.every)
        hook = trainer.optimizer.register_step_pre_hook(lambda *_: self._keep_before())
        try:
            for start in starts:
                self._begin(start)
                for result in self._trained("train", start, keep=start == starts[-1]):
                    self.losses[result.step - 1] = result.metrics["loss"]
            losses, adjoint = self._target(asked, shares)
            self.states.put("end", self._weights())
            for start in reversed(starts):
                if start != starts[-1]:
                    self._restore(start)
                    for result in self._trained("replay", start, keep=True):
                        change = abs(result.metrics["loss"] - self.losses[result.step - 1])
                        self.drift = max(self.drift, change)
                self._undo_segment(start, adjoint)
        finally:
            hook.remove()
        self._set_weights(self.states.take("end"))
        trainer.step = steps
        loss = float(np.nan_to_num(losses) @ shares)
        return Metagradient(self.values, loss, losses, steps, self.drift, self.usage)

    # --- forwards ----------------------------------------------------------------------------------------

    def _begin(self, start: int) -> None:
        """Keep what a segment can be trained again from; the last one need not be."""
        if start + self.every < self.trainer.steps:
            moments = optimizer_tensors(self.trainer.optimizer, self.parameters)
            self.states.put(f"from {start}", {**self._weights(), **_copied(moments)})

    def _restore(self, start: int) -> None:
        trainer, tensors = self.trainer, self.states.take(f"from {start}")
        self._set_weights(tensors)
        trainer.optimizer.state.clear()
        if len(tensors) > len(self.parameters):  # none before a training's first step
            load_optimizer(trainer.optimizer, self.parameters, tensors)
        trainer.step = start

    def _trained(self, phase: str, start: int, keep: bool) -> Iterator[StepResult]:
        """Train a segment that begins after step `start`. keep: what every step did."""
        self._keeps = keep
        for result in islice(self.trainer.run(), min(self.every, self.trainer.steps - start)):
            if keep:
                self._keep_after(result)
            self._charge(phase, result.usage["train"])
            yield result
            self.told(phase)
        self._keeps = False

    def _keep_before(self) -> None:
        """Called when a step's gradient is there, clipped, and its update is not."""
        if self._keeps:
            self._number = self.trainer.step + 1
            gradients = {f"{_GRADIENT}.{name}": p.grad for name, p in self.parameters.items() if p.grad is not None}
            self.states.put(f"before {self._number}", {**self._weights(), **_copied(gradients)})

    def _keep_after(self, result: StepResult) -> None:
        state = {name: self.trainer.optimizer.state[p] for name, p in self.parameters.items()}
        moments = {f"{what}.{name}": s[what] for name, s in state.items() for what in (_MEAN, _SQUARE)}
        count = next(iter(state.values()))["step"]
        figures = {"count": count, "norm": torch.tensor(result.metrics["grad_norm"], dtype=torch.float64)}
        self.states.put(f"after {result.step}", _copied({**moments, **figures}))

    # --- the target --------------------------------------------------------------------------------------

    def _target(self, asked: Examples, shares: np.ndarray) -> tuple[np.ndarray, Adjoint]:
        """The losses of the target's examples, float64 [E], and the gradient of their sum by shares."""
        trainer, began = self.trainer, time.perf_counter()
        rows = list(np.flatnonzero(asked.counts)[:, None])
        usage = trainer.costs.usage(asked, rows, trainer.micro_batch_size or trainer.settings.batch_size)
        losses = np.full(len(asked), np.nan)
        gradient = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        trainer.model.model.eval()

        def pulled(group: Sequence[np.ndarray]) -> list[Tensor | None]:
            batch = batch_of(asked, group, trainer.model.device)
            counts = asked.counts[batch.documents]
            found = trainer.objective.losses(batch)
            losses[batch.documents] = found.means(counts)
            by_token = np.repeat(shares[batch.documents] / counts, counts)
            loss = (found.token * to_device(by_token, found.token.device).to(found.token)).sum()
            return list(torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True))

        with counted(usage, trainer.settings.count_flops):
            size = trainer.micro_batch_size or trainer.settings.batch_size
            for _, parts in _divided(micro_batches(asked, rows, size, 1, trainer.costs.room), pulled):
                _add(gradient, parts)
        usage.seconds = time.perf_counter() - began
        self._charge("target", usage)
        return losses, Adjoint.of(gradient)

    # --- backwards ---------------------------------------------------------------------------------------

    def _undo_segment(self, start: int, adjoint: Adjoint) -> None:
        """Undo the steps of a segment, which have been kept, the last one first."""
        trainer = self.trainer
        trainer.optimizer.state.clear()  # frees the device's memory: what is needed of it has been kept
        trainer.step = start
        planned = list(islice(trainer.plan(), min(self.every, trainer.steps - start)))
        trainer.model.model.train()
        for step in reversed(planned):
            self._undo(step.number, step.rows, adjoint)
            self.told("undo")

    def _undo(self, number: int, rows: list[np.ndarray], adjoint: Adjoint) -> None:
        """Undo a step: add to the samples' derivatives, and to those of the parameters that it began from."""
        trainer, began = self.trainer, time.perf_counter()
        before, after = self.states.take(f"before {number}"), self.states.take(f"after {number}")
        self._set_weights(before)
        gradient, mean, square = (
            self._on_device(tensors, what) for tensors, what in ((before, _GRADIENT), (after, _MEAN), (after, _SQUARE))
        )
        lr = trainer.settings.learning_rate(number, trainer.steps)
        taken = Taken(gradient, mean, square, float(after["count"]), float(after["norm"]), lr)
        cotangent = adjoint.undo(taken, self.groups, trainer.settings.clip)
        room = trainer.costs.room and _Graphs(trainer.costs.room)
        whole = micro_batches(self.examples, rows, trainer.micro_batch_size, 1, room)
        groups = [part for group in whole for part in trainer.costs.parts(self.examples, group)]
        usage, scale = trainer.costs.second(self.examples, groups), trainer.passes.scale(rows)
        with counted(usage, trainer.settings.count_flops):
            pulled = _divided(groups, lambda group: self._pulled(number, group, scale, cotangent))
            for group, (*parts, weights) in pulled:
                _add(adjoint.weight, parts)
                assert weights is not None
                samples = self.examples.sample[np.concatenate(group)]
                np.add.at(self.values, samples, weights.double().cpu().numpy())
        usage.seconds = time.perf_counter() - began
        self._charge("undo", usage)

    def _pulled(
        self, number: int, group: Sequence[np.ndarray], scale: float, cotangent: Mapping[str, Tensor]
    ) -> list[Tensor | None]:
        """The derivatives of <cotangent, gradient of a micro-batch> with respect to the parameters and, last, to a
        factor 1 of each document's losses, [n]."""
        trainer, parameters = self.trainer, list(self.parameters.values())
        micro = Micro(batch_of(self.examples, group, trainer.model.device))
        documents = micro.batch.documents
        losses = trainer.objective.losses(micro.batch)
        trainer.weigher.weigh(number, micro, losses)  # the weights are those of the training: no function of the losses
        factors = torch.ones(len(documents), dtype=losses.token.dtype, device=losses.token.device, requires_grad=True)
        place = to_device(np.repeat(np.arange(len(documents)), self.examples.counts[documents]), factors.device)
        weighed = replace(losses, token=losses.token * factors[place])
        loss = trainer.weigher.weighted(micro, weighed, scale)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        along = [
            (g * cotangent[name]).sum() for name, g in zip(self.parameters, gradient, strict=True) if g is not None
        ]
        return list(torch.autograd.grad(torch.stack(along).sum(), [*parameters, factors], allow_unused=True))

    # --- tensors -----------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return _copied({f"{_WEIGHT}.{name}": parameter for name, parameter in self.parameters.items()})

    @torch.no_grad()
    def _set_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"{_WEIGHT}.{name}"])

    def _on_device(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        return {name: tensors[f"{what}.{name}"].to(p.device) for name, p in self.parameters.items()}

    def _charge(self, phase: str, usage: Usage) -> None:
        self.usage.setdefault(phase, self.trainer.model.usage()).add(usage)


@dataclass(frozen=True)
class _Graphs:
    """A room in which the graph of a forward and a backward pass has to fit. room: for those of a forward pass."""

    room: Room

    def fits(self, rows: int, longest: int, supervised: int) -> bool:
        """Whether it does, of so many rows, padded to the longest one's tokens, with so many supervised tokens."""
        return self.room.fits(_GRAPHS * rows, longest, _GRAPHS * supervised)


def _divided(
    groups: list[list[np.ndarray]], compute: Callable[[Sequence[np.ndarray]], list[Tensor | None]]
) -> Iterator[tuple[Sequence[np.ndarray], list[Tensor | None]]]:
    """Micro-batches with what is computed of each; one for which memory does not suffice is divided in two."""
    todo = groups[::-1]
    while todo:
        group = todo.pop()
        try:
            found = compute(group)
        except Exception as error:
            if not out_of_memory(error) or len(group) == 1:
                raise
            todo += [group[len(group) // 2 :], group[: len(group) // 2]]
            continue
        yield group, found


def _add(total: dict[str, Tensor], parts: Sequence[Tensor | None]) -> None:
    """Add tensors, in the order of the names, in place; None is 0."""
    for tensor, part in zip(total.values(), parts, strict=True):
        if part is not None:
            tensor.add_(part)


def _copied(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
