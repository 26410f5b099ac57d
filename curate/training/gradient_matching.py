"""Selection inside the step: per-sample gradients of more candidates than are trained on, compared and then summed.

    candidates ─ forward, backward ─ factors of each one's gradient ─┬─ sketches ─┐
    target     ─ forward, backward ─ its gradient × D ─ sketch ──────┼────────────┴─ inner products ─ weighting ─┐
                                                                     └─ of the chosen: weighted sum ─ AdamW ─────┘

The backward pass forms no parameter gradients (curate.gradients.tape), so none are wasted on rejected candidates; the
step's gradient is computed from the stored factors, without a second pass. With several micro-batches, the factors of
all candidates would have to stay in memory; instead, the selected ones go through the model again. Only linear layers
are compared; embeddings, norms, biases and the output head are trained but not compared. The target's gradient is taken
without dropout, those of candidates with dropout, as they are trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from curate.errors import CurateError
from curate.gradients.backward import Backward, Gradients, finish
from curate.gradients.per_sample import Outer, PerSample, Thin
from curate.gradients.sketches import Sketcher
from curate.kinds.signals import Matching, Products
from curate.models.flops import counted
from curate.models.forward import to_device
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.training.distributed import Alone, objects
from curate.training.examples import Examples, length_parts
from curate.training.gradient_products import GradientProducts, TargetSums, joined
from curate.training.masked_parameters import MaskedParameters, MaskedScales
from curate.training.optimizer import Preconditioner, Scales
from curate.training.settings import TrainSettings
from curate.training.shared_candidates import SharedCandidates, sum_of_usage


@dataclass
class StepCandidates:
    """The results of one pass over a step's B candidates, of all processes, in the order of `documents`.

    loss: each one's mean loss, float64 [B]. good: positions of those that may be selected. products: inner products of
    their gradients; None if not compared. gradients: factors for those of the good ones that are this process's, which
    are the `own` ones of them, and how many, pass by pass; None if there were several micro-batches. usage: the cost.
    outputs: a Forward of the good ones; None unless requested.
    """

    documents: np.ndarray
    loss: np.ndarray
    good: np.ndarray
    products: Products | None
    gradients: list[tuple[int, list[PerSample]]] | None
    usage: Usage
    outputs: Any = None
    own: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class Chooser:
    """Compares candidates' gradients for a weighting that selects, and sums those of the selected ones.

    model: whose trained parameters are compared; `optimizer` updates them. target: samples of the target; None for a
    weighting that uses none. processes: that share a step. masked: the elements that are trained, if not all, which
    alone are compared; `optimizer` updates these. one_pass: whether factors are kept until the selection is
    known. Raises CurateError for settings or models it cannot work with.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
        matching: Matching,
        target: Examples | None,
        seed: int,
        processes: Any = None,
        masked: MaskedParameters | None = None,
    ):
        if settings.gradient_checkpointing:
            raise CurateError("gradient_checkpointing forgets what the comparison of gradients needs; leave it "
                              "out, or use a smaller micro_batch_size.")  # fmt: skip
        self.settings, self.matching, self.optimizer, self.seed = settings, matching, optimizer, seed
        self.one_pass, self.processes, self._masked = True, processes or Alone(), masked
        by_tokens = matching.tokens or matching.positions == "same" or matching.curvature != "none"
        if masked and by_tokens:
            raise CurateError("with a mask, gradients are compared as wholes, not token by token, nor by a layer's "
                              "curvature; leave out unit=token, positions=same and hessian, or the mask.")  # fmt: skip
        trained = [p for p in model.model.parameters() if p.requires_grad]
        self.backward = Backward.of(model, bfloat16=settings.in_bfloat16(model.device.type))
        self._trained = trained
        self._unfreeze()
        head = {id(p) for p in model.head.parameters()} if model.plain_head else set()
        self.parameters = self.backward.parameters
        shapes = self.backward.linear
        if not shapes:
            raise CurateError("no linear layer of the model is trained, so there is no gradient to compare.")
        if matching.tokens and any(id(p) in head for p in trained):
            raise CurateError("the output head sees the supervised tokens alone, so tokens cannot be weighted in it; "
                              "train LoRA (lora_r=8) with unit=token.")  # fmt: skip
        sketcher = Sketcher(shapes, settings.projection, seed, model.device)
        self.products = GradientProducts(matching, sketcher, settings, model.device)
        self._target = _supervised(target) if target is not None and matching.target else []
        if target is not None and matching.target and not self._target:
            raise CurateError("no sample of the target has a supervised token within the context, so it has no "
                              "gradient; give the target answers.")  # fmt: skip

    @property
    def sketcher(self) -> Sketcher:
        """Projects the gradients of the layers that are compared."""
        return self.products.sketcher

    # --- the target ---------------------------------------------------------------------------------------

    def due(self, number: int) -> bool:
        """Whether the target's gradient is to be recomputed before step `number`."""
        return bool(self._target) and (number - 1) % self.settings.target_every == 0

    @property
    def target_samples(self) -> int:
        """How many of the target's samples its gradient is taken over."""
        return min(self.settings.target_batch, len(self._target))

    def look_at_target(self, number: int) -> Usage:
        """Compute the gradient of the mean loss of a random batch of the target, and keep its sketch; returns the
        cost."""
        rng = np.random.default_rng([self.seed % 2**63, number, 1])
        drawn = rng.choice(len(self._target), self.target_samples, replace=False)
        usage, began, model = self.backward.lm.usage(), time.perf_counter(), self.backward.lm.model
        sums, training = TargetSums(), model.training
        for group in self._own_groups(np.sort(drawn)):
            model.eval()
            try:
                gradients = self._pass([self._target[i] for i in group], usage, self.products.target_by_token)
            finally:  # also if memory runs out, after which the step is retried
                model.train(training)
            sums.samples += len(gradients.good)
            with counted(usage, self.settings.count_flops):
                for gradient in self._compared(gradients.parameters):
                    usage.flops += self.products.add(sums, gradient)
        total = sum(objects(self.processes, sums.samples))
        if not total:
            raise CurateError("none of the target's samples that were drawn has a finite gradient under the model.")
        before = self.matching.precondition == "before" and not self.matching.candidates
        with counted(usage, self.settings.count_flops):
            scales = self._scales(before)
            usage.flops += self.products.keep(sums, total, scales, self.parameters, self.processes)
        finish(self.backward.lm.device)
        sum_of_usage(self.processes, usage)
        usage.seconds = time.perf_counter() - began
        return usage

    def _own_groups(self, positions: np.ndarray) -> list[np.ndarray]:
        """Of the target's samples, what this process passes: micro-batches in parts of similar length."""
        world = self.processes.num_processes
        size = self.settings.micro_batch_size or -(-len(positions) // world)
        lengths = np.array([len(self._target[i].ids) for i in positions])
        order = np.argsort(-lengths, kind="stable")
        positions, lengths = positions[order], lengths[order]
        worth, parts = self.settings.worth_a_pass(self.backward.lm.device.type), list[np.ndarray]()
        for start in range(self.processes.process_index * size, len(positions), size * world):
            group = slice(start, start + size)
            parts += [positions[group][a:b] for a, b in length_parts(lengths[group], worth)]
        return parts

    # --- the candidates -----------------------------------------------------------------------------------

    def look(
        self,
        examples: Examples,
        shared: SharedCandidates,
        scale: np.ndarray,
        selection: Usage,
        sow: Callable[[int], None],
    ) -> StepCandidates:
        """Run candidates forward and backward and compare their gradients; the cost of comparing is added to
        `selection`.

        scale: the factor of each one's mean loss in the step's loss, float64 [B]. sow: seeds the random state (dropout)
        for a micro-batch, by its number.
        """
        usage = self.backward.lm.usage()
        kept = list[tuple[int, list[PerSample]]]()
        sketches: dict[str, list[Any]] = {}
        losses, usable = [np.zeros(0)], [np.zeros(0, bool)]
        for place, documents in enumerate(shared.mine):
            sow(place)
            encoded = [Encoded(*examples.tokens_of(int(d))) for d in documents]
            gradients = self._pass(encoded, usage, self.products.by_token)
            losses.append(gradients.loss)
            usable.append(np.isin(np.arange(len(documents)), gradients.good))
            if self.one_pass and shared.at_once:
                kept.append((len(gradients.good), gradients.parameters))
                if len(shared.mine) == 1:
                    continue
            for name, sketch in self._sketches(gradients.parameters, selection):
                sketches.setdefault(name, []).append(sketch)
        good = shared.all_of(np.concatenate(usable))
        parts: Any = (
            self._sketches(kept[0][1], selection)
            if len(shared.mine) == 1 and kept
            else ((n, joined(s)) for n, s in sketches.items())
        )
        if shared.world > 1:
            parts = shared.sketches(dict(parts), good) if good.any() else ()
        products = self.products.of(parts, scale[good], selection)
        for cost in (usage, selection):
            sum_of_usage(self.processes, cost)
        own = np.flatnonzero(np.isin(np.flatnonzero(good), shared.own))
        return StepCandidates(
            shared.documents,
            shared.all_of(np.concatenate(losses)),
            np.flatnonzero(good),
            products,
            kept if self.one_pass and shared.at_once else None,
            usage,
            own=own,
        )

    def learn(self, found: StepCandidates, weights: np.ndarray, tokens: np.ndarray | None) -> float:
        """Set every trained parameter's gradient to the weighted sum of the good candidates' gradients.

        weights: float64 [good]. tokens: float64 [good, T], additional weights per token. Of several processes, each
        sums those of its own candidates. Returns the FLOPs.
        """
        assert found.gradients is not None
        own, device, flops, start = weights[found.own], self.backward.lm.device, 0.0, 0
        own_tokens = None if tokens is None else tokens[found.own]
        for parameter in self._trained:
            parameter.grad = None
        for count, gradients in found.gradients:
            part, start = slice(start, start + count), start + count
            longest = max((g.e.shape[1] for g in gradients if isinstance(g, Outer)), default=0)
            factors = own[part] if own_tokens is None else own[part, None] * own_tokens[part, :longest]
            chosen = np.flatnonzero(factors if own_tokens is None else np.abs(factors).sum(1))
            if not len(chosen):
                continue
            positions, value = to_device(chosen, device), to_device(factors[chosen], device)
            for gradient in gradients:
                parameter, summed = self.parameters[gradient.name], gradient.of(positions)
                total = summed.total(value.to(torch.promote_types(parameter.dtype, torch.float32))).to(parameter.dtype)
                parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
                flops += summed.flops()
        finish(self.backward.lm.device)
        return flops

    # --- passes through the model -------------------------------------------------------------------------

    def _pass(self, encoded: Sequence[Encoded], usage: Usage, by_token: bool) -> Gradients:
        """Per-sample gradients, with the parameters frozen so that none gets a gradient of its own. by_token: as
        factors of every token, also where a matrix is thin."""
        self.backward.thin = not by_token
        phases = {phase: self.backward.lm.usage() for phase in ("forward", "backward")}
        with self._frozen():
            gradients = self.backward.gradients(encoded, phases, self.settings.count_flops)
        phases["backward"].tokens = phases["backward"].padded_tokens = 0
        for cost in phases.values():
            usage.add(cost)
        return gradients

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        for parameter in self._trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            self._unfreeze()

    def _unfreeze(self) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(True)

    def _compared(self, gradients: Sequence[PerSample]) -> list[Outer | Thin]:
        return [g for g in gradients if isinstance(g, Outer | Thin) and g.name in self.sketcher.shapes]

    def _sketches(self, gradients: Sequence[PerSample], usage: Usage) -> Iterator[tuple[str, Any]]:
        before = self.matching.candidates and self.matching.precondition == "before"
        return self.products.sketches(self._compared(gradients), self._scales(before), self.parameters, usage)

    def _scales(self, adam: bool) -> Scales | None:
        """By what gradients are multiplied before projection. adam: by Adam's D."""
        preconditioner = Preconditioner(self.optimizer) if adam else None
        return MaskedScales(self._masked, preconditioner) if self._masked else preconditioner

    def learnt(self) -> None:
        """Between clipping and the optimizer's step: see the gradient that it is given."""
        whole = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self.products.learnt(self._masked.gradients() if self._masked else whole)


def _supervised(target: Examples) -> list[Encoded]:
    """The target's samples that have supervised tokens."""
    return [Encoded(*target.tokens_of(int(i))) for i in np.flatnonzero(target.counts)]
