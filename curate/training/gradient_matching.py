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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from curate.training.examples import Examples
from curate.training.optimizer import Preconditioner, adams_scale
from curate.training.settings import TrainSettings

TARGET, SECOND = "matching.target", "matching.second"  # stored with the optimizer's state: what is kept between steps


@dataclass
class StepCandidates:
    """The results of one pass over a step's B candidates, in the order of `documents`.

    loss: each one's mean loss, float64 [B]. good: positions of those that may be selected. products: inner products of
    their gradients; None if not compared. gradients: factors for the good ones, from a single micro-batch; None if
    there were several. usage: the cost. outputs: a Forward of the good ones; None unless requested.
    """

    documents: np.ndarray
    loss: np.ndarray
    good: np.ndarray
    products: Products | None
    gradients: list[PerSample] | None
    usage: Usage
    outputs: Any = None


class Chooser:
    """Compares candidates' gradients for a weighting that selects, and sums those of the selected ones.

    model: whose trained parameters are compared; `optimizer` updates them. target: samples of the target; None for a
    weighting that uses none. one_pass: whether factors are kept until the selection is known. Raises CurateError for
    settings or models it cannot work with.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
        matching: Matching,
        target: Examples | None,
        seed: int,
    ):
        if settings.gradient_checkpointing:
            raise CurateError("gradient_checkpointing forgets what the comparison of gradients needs; leave it "
                              "out, or use a smaller micro_batch_size.")  # fmt: skip
        self.settings, self.matching, self.optimizer, self.seed = settings, matching, optimizer, seed
        self.one_pass = True
        trained = [p for p in model.model.parameters() if p.requires_grad]
        self.backward = Backward.of(model, bfloat16=settings.in_bfloat16(model.device.type))
        self.backward.thin = not self._by_token
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
        self.sketcher = Sketcher(shapes, settings.projection, seed, model.device)
        self.target, self.second = dict[str, Tensor](), dict[str, Tensor]()
        self._seen = 0  # steps accumulated in the second moments
        self._target = _supervised(target) if target is not None and matching.target else []
        if target is not None and matching.target and not self._target:
            raise CurateError("no sample of the target has a supervised token within the context, so it has no "
                              "gradient; give the target answers.")  # fmt: skip

    # --- what a checkpoint holds --------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The state to be stored in a checkpoint, by name."""
        state = {f"{TARGET}.{name}": value.cpu() for name, value in self.target.items()}
        state |= {f"{SECOND}.{name}": value.cpu() for name, value in self.second.items()}
        return state | ({f"{SECOND}.": torch.tensor(self._seen)} if self._seen else {})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` gave; other names are ignored."""
        device = self.backward.lm.device
        for key, value in tensors.items():
            if key.startswith(f"{TARGET}."):
                self.target[key.removeprefix(f"{TARGET}.")] = value.to(device)
            elif key == f"{SECOND}.":
                self._seen = int(value)
            elif key.startswith(f"{SECOND}."):
                self.second[key.removeprefix(f"{SECOND}.")] = value.to(device)

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
        total: dict[str, Tensor] = {}
        n_finite, training = 0, model.training
        for group in _groups(np.sort(drawn), self.settings.micro_batch_size):
            model.eval()
            try:
                gradients = self._pass([self._target[i] for i in group], usage)
            finally:  # also if memory runs out, after which the step is retried
                model.train(training)
            n_finite += len(gradients.good)
            with counted(usage, self.settings.count_flops):
                for gradient in self._compared(gradients.parameters):
                    summed = gradient.total()
                    total[gradient.name] = total[gradient.name] + summed if gradient.name in total else summed
                    usage.flops += gradient.flops()
        if not n_finite:
            raise CurateError("none of the target's samples that were drawn has a finite gradient under the model.")
        precondition = self.matching.precondition == "before" and not self.matching.candidates
        scales = Preconditioner(self.optimizer) if precondition else None
        with counted(usage, self.settings.count_flops):
            for name, gradient in total.items():
                gradient /= n_finite
                scale = scales.of(self.parameters[name]) if scales else None
                self.target[name] = self.sketcher.whole(name, gradient if scale is None else scale * gradient)
                usage.flops += self.sketcher.whole_flops(name)
        finish(self.backward.lm.device)
        usage.seconds = time.perf_counter() - began
        return usage

    # --- the candidates -----------------------------------------------------------------------------------

    def look(
        self,
        examples: Examples,
        groups: Sequence[np.ndarray],
        scale: np.ndarray,
        selection: Usage,
        sow: Callable[[int], None],
    ) -> StepCandidates:
        """Run candidates forward and backward and compare their gradients; the cost of comparing is added to
        `selection`.

        groups: documents of each micro-batch. scale: the factor of each one's mean loss in the step's loss, float64, in
        their order. sow: seeds the random state (dropout) for a micro-batch, by its number.
        """
        usage = self.backward.lm.usage()
        kept: list[PerSample] | None = None
        sketches: dict[str, list[Any]] = {}
        losses, positions, offset = [], [], 0
        single_batch = self.one_pass and len(groups) == 1
        for place, documents in enumerate(groups):
            sow(place)
            encoded = [Encoded(*examples.tokens_of(int(d))) for d in documents]
            gradients = self._pass(encoded, usage)
            losses.append(gradients.loss)
            positions.append(offset + gradients.good)
            offset += len(documents)
            if single_batch:
                kept = gradients.parameters
                continue
            for name, sketch in self._sketches(gradients.parameters, selection):
                sketches.setdefault(name, []).append(sketch)
        all_documents, usable = np.concatenate(groups), np.concatenate(positions)
        parts = self._sketches(kept, selection) if kept is not None else ((n, _joined(s)) for n, s in sketches.items())
        products = self._products(parts, scale[usable], selection)
        return StepCandidates(all_documents, np.concatenate(losses), usable, products, kept, usage)

    def learn(self, found: StepCandidates, weights: np.ndarray, tokens: np.ndarray | None) -> float:
        """Set every trained parameter's gradient to the weighted sum of the good candidates' gradients.

        weights: float64 [good]. tokens: float64 [good, T], additional weights per token. Returns the FLOPs.
        """
        assert found.gradients is not None
        chosen = np.flatnonzero(weights if tokens is None else weights * np.abs(tokens).sum(1))
        device, flops = self.backward.lm.device, 0.0
        positions = to_device(chosen, device)
        factors = to_device(weights[chosen] if tokens is None else weights[chosen, None] * tokens[chosen], device)
        for gradient in found.gradients:
            part = gradient.of(positions)
            parameter = self.parameters[gradient.name]
            value = factors.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.grad = part.total(value).to(parameter.dtype)
            flops += part.flops()
        finish(self.backward.lm.device)
        return flops

    def learnt(self) -> None:
        """Update the second moments of projected gradients with the gradient that the optimizer is given."""
        if self.matching.precondition != "projected":
            return
        self._seen += 1
        for name in self.sketcher.shapes:
            gradient = self.parameters[name].grad
            if gradient is not None:
                square = self.sketcher.whole(name, gradient).square() * (1 - self.settings.beta2)
                self.second[name] = self.settings.beta2 * self.second[name] + square if name in self.second else square

    # --- sketches and their products ----------------------------------------------------------------------

    def _pass(self, encoded: Sequence[Encoded], usage: Usage) -> Gradients:
        """Per-sample gradients, with the parameters frozen so that none gets a gradient of its own."""
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
        """For every compared layer: its sketches [B, r, c], or both projected factors of every token if needed."""
        scales = self._scales()
        for gradient in self._compared(gradients):
            with self._clocked(usage):
                if self._by_token:
                    assert isinstance(gradient, Outer)
                    usage.flops += self.sketcher.tokens_flops(gradient)
                    sketches: Any = self.sketcher.tokens(gradient)
                elif scales and (scale := scales.of(self.parameters[gradient.name])) is not None:
                    sketches = torch.cat([self.sketcher.whole(b.name, scale * b.full()) for b in gradient.blocks()])
                    usage.flops += gradient.flops() + len(sketches) * self.sketcher.whole_flops(gradient.name)
                else:
                    usage.flops += self.sketcher.flops(gradient)
                    sketches = self.sketcher.of(gradient)
            yield gradient.name, sketches

    @contextmanager
    def _clocked(self, usage: Usage) -> Iterator[None]:
        """Charge the seconds of the enclosed code, and its FLOPs if they are measured, to `usage`."""
        began = time.perf_counter()
        with counted(usage, self.settings.count_flops):
            yield
        usage.seconds = (usage.seconds or 0.0) + time.perf_counter() - began

    @cached_property
    def _by_token(self) -> bool:
        """Whether per-token factors are needed, for token products or for the curvature."""
        return self.matching.tokens or self.matching.curvature != "none"

    def _scales(self) -> Preconditioner | None:
        """Adam's preconditioner D of layers' full matrices, if candidates are preconditioned before projection."""
        before = self.matching.candidates and self.matching.precondition == "before"
        return Preconditioner(self.optimizer) if before else None

    def _sought(self, name: str) -> Tensor | None:
        """The preconditioned sketch of the target's gradient; None without a target."""
        q = self.target.get(name)
        projected = self.matching.precondition == "projected" and not self.matching.candidates
        return q * self._projected_scale(name) if q is not None and projected and name in self.second else q

    def _projected_scale(self, name: str) -> Tensor:
        settings = self.settings
        return adams_scale(self.second[name], self._seen, (settings.beta1, settings.beta2), settings.eps)

    def _products(self, parts: Any, scale: np.ndarray, usage: Usage) -> Products:
        """Inner products summed over all layers, with each candidate's gradient multiplied by its scale."""
        n, device = len(scale), self.backward.lm.device  # sums stay on the device, so that no layer synchronises
        shapes = {"gram": (n, n), "aligned": (n,), "square": (), "curved": (n, n), "influence": (n,)}
        sums = {key: torch.zeros(shape, dtype=torch.float64, device=device) for key, shape in shapes.items()}
        tokens = None
        for name, part in parts:
            with self._clocked(usage):
                rows, columns = part if self._by_token else (part, part)
                sketch = rows.transpose(1, 2) @ columns if self._by_token else part
                if self.matching.candidates and self.matching.precondition == "projected" and name in self.second:
                    sketch = sketch * self._projected_scale(name)
                q, flat = self._sought(name), sketch.flatten(1)
                sums["gram"] += flat @ flat.T
                usage.flops += 2.0 * n * n * flat.shape[1]
                if q is not None:
                    sums["aligned"] += (flat @ q.to(flat.dtype).flatten()[:, None])[:, 0]
                    sums["square"] += q.double().square().sum()
                    usage.flops += 2.0 * flat.numel()
                if self.matching.curvature != "none":
                    usage.flops += self._curve(sums, sketch, rows, columns, q)
                if self.matching.tokens and q is not None:
                    layer_tokens = ((rows @ q.to(rows.dtype)) * columns).sum(2).double()
                    usage.flops += 2.0 * rows.numel() * columns.shape[2]
                    tokens = layer_tokens if tokens is None else tokens + layer_tokens
        with self._clocked(usage):
            total = {key: value.cpu().numpy() for key, value in sums.items()}  # the only point where a GPU synchronises
        c = scale[:, None]
        gram = {key: c * total[key] * scale for key in ("gram", "curved")}
        along = {key: scale * total[key] for key in ("aligned", "influence")}
        has_target, curvature = bool(self.target), self.matching.curvature
        return Products(
            gram["gram"],
            along["aligned"] if has_target else None,
            float(total["square"]),
            gram["curved"] if curvature == "kfac" else None,
            along["influence"] if curvature == "inverse" else None,
            None if tokens is None else c * tokens.cpu().numpy(),
        )

    def _curve(self, sums: dict[str, Tensor], sketch: Tensor, rows: Tensor, columns: Tensor, q: Tensor | None) -> float:
        """Products with a layer's Kronecker-factored curvature (K-FAC):  H = E (x) A,  with A the mean of x x^T over
        tokens and E the sum of e e^T over a sample's tokens, averaged over samples; both in the sketch's dimensions.
        Added to `sums`; returns the FLOPs."""
        e, a = rows.flatten(0, 1), columns.flatten(0, 1)
        valid = (e != 0).any(1) & (a != 0).any(1)  # padding has no error
        e, a = e[valid], a[valid]
        left, right = e.T @ e / len(rows), a.T @ a / max(len(a), 1)
        left, right = (self._damped(factor) for factor in (left, right))
        flops = 2.0 * e.numel() * e.shape[1] + 2.0 * a.numel() * a.shape[1]
        if self.matching.curvature == "kfac":
            curved = (left @ sketch @ right).flatten(1)
            sums["curved"] += sketch.flatten(1) @ curved.T
            return flops + 2.0 * sketch.numel() * (len(left) + len(right)) + 2.0 * len(sketch) * sketch.numel()
        if q is not None:
            solved = torch.linalg.solve(left, torch.linalg.solve(right, q.to(left.dtype), left=False))
            sums["influence"] += (sketch.flatten(1) @ solved.flatten()[:, None])[:, 0]
        return flops + 2.0 * sketch.numel()

    def _damped(self, factor: Tensor) -> Tensor:
        mean = factor.diagonal().mean()
        return factor + (self.matching.damping * mean + torch.finfo(factor.dtype).tiny) * torch.eye(
            len(factor), dtype=factor.dtype, device=factor.device
        )


def _joined(parts: Sequence[Any]) -> Any:
    """Sketches of several micro-batches concatenated; per-token factors are padded to the longest."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    longest = max(rows.shape[1] for rows, _ in parts)
    sides = []
    for side in (0, 1):
        padded = [nn.functional.pad(p[side], (0, 0, 0, longest - p[side].shape[1])) for p in parts]
        sides.append(torch.cat(padded))
    return tuple(sides)


def _groups(positions: np.ndarray, size: int) -> list[np.ndarray]:
    size = size or len(positions)
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _supervised(target: Examples) -> list[Encoded]:
    """The target's samples that have supervised tokens."""
    return [Encoded(*target.tokens_of(int(i))) for i in np.flatnonzero(target.counts)]
