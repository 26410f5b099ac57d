"""Inner products of a step's candidates with each other and with the target, of sketches of their gradients.

It keeps between steps, and a checkpoint holds: the target's gradient, the curvature of the target's samples, and the
second moments of projected gradients.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curate.gradients.per_sample import Outer, Thin
from curate.gradients.sketches import Sketcher
from curate.kinds.signals import Matching, Products
from curate.models.flops import counted
from curate.models.usage import Usage
from curate.training.distributed import objects
from curate.training.optimizer import Scales, adams_scale
from curate.training.settings import TrainSettings
from curate.training.shared_candidates import sum_of_tensors

TARGET, SECOND, LEFT, RIGHT = (f"matching.{part}" for part in ("target", "second", "left", "right"))


@dataclass
class TargetSums:
    """Sums over samples of the target, by layer: of gradients [m, n], or of sketches by position [T, r, c]; and of what
    the curvature's factors are made of, with the number of tokens in them."""

    samples: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    right: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class GradientProducts:
    """Inner products of sketches, as a weighting wishes them (matching). settings: of the training."""

    def __init__(self, matching: Matching, sketcher: Sketcher, settings: TrainSettings, device: torch.device):
        self.matching, self.sketcher, self.settings, self.device = matching, sketcher, settings, device
        self.target, self.second = dict[str, Tensor](), dict[str, Tensor]()
        self.curvature: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen = 0  # steps accumulated in the second moments

    # --- what a checkpoint holds --------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The state to be stored in a checkpoint, by name."""
        kinds = {TARGET: self.target, SECOND: self.second}
        kinds |= {key: {n: f[i] for n, f in self.curvature.items()} for i, key in enumerate((LEFT, RIGHT))}
        state = {f"{kind}.{name}": value.cpu() for kind, values in kinds.items() for name, value in values.items()}
        return state | ({f"{SECOND}.": torch.tensor(self._seen)} if self._seen else {})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` gave; other names are ignored."""
        factors: dict[str, dict[str, Tensor]] = {LEFT: {}, RIGHT: {}}
        kinds = {TARGET: self.target, SECOND: self.second, **factors}
        for key, value in tensors.items():
            kind = next((kind for kind in kinds if key.startswith(f"{kind}.")), None)
            if key == f"{SECOND}.":
                self._seen = int(value)
            elif kind:
                kinds[kind][key.removeprefix(f"{kind}.")] = value.to(self.device)
        self.curvature = {name: (left, factors[RIGHT][name]) for name, left in factors[LEFT].items()}

    def learnt(self, gradients: Mapping[str, Tensor]) -> None:
        """Update the second moments of projected gradients with those that the optimizer is given, by name."""
        if self.matching.precondition != "projected":
            return
        self._seen += 1
        for name in self.sketcher.shapes:
            if name in gradients:
                square = self.sketcher.whole(name, gradients[name]).square() * (1 - self.settings.beta2)
                self.second[name] = self.settings.beta2 * self.second[name] + square if name in self.second else square

    # --- the target ---------------------------------------------------------------------------------------

    def add(self, sums: TargetSums, gradient: Outer | Thin) -> float:
        """Add a layer's gradients of some of the target's samples to `sums`; returns the FLOPs."""
        name, flops = gradient.name, gradient.flops()
        if self.target_by_token:
            assert isinstance(gradient, Outer)
            rows, columns = self.sketcher.tokens(gradient)
            flops = self.sketcher.tokens_flops(gradient)
            if self.matching.factors == "target":
                self._add_factors(sums, name, rows, columns)
                flops += 2.0 * rows.numel() * rows.shape[2] + 2.0 * columns.numel() * columns.shape[2]
            if self.matching.positions == "same":
                by_position = torch.einsum("btr,btc->trc", rows, columns)
                sums.gradients[name] = _sum_padded(sums.gradients.get(name), by_position)
                return flops
        total = gradient.total()
        sums.gradients[name] = sums.gradients[name] + total if name in sums.gradients else total
        return flops

    def keep(
        self,
        sums: TargetSums,
        samples: int,
        scales: Scales | None,
        parameters: Mapping[str, nn.Parameter],
        processes: Any,
    ) -> float:
        """Make the target's gradient and curvature of sums over its samples; returns the FLOPs.

        samples: their number, in all processes; only sketches are summed over those. scales: Adam's preconditioner, if
        the target is preconditioned before projection, or a mask.
        """
        flops, kept = 0.0, dict[str, Tensor]()
        for name, total in sums.gradients.items():
            mean = total / samples
            if self.matching.positions == "same":
                kept[name] = mean
                continue
            scale = scales.of(parameters[name]) if scales else None
            kept[name] = self.sketcher.whole(name, mean if scale is None else scale * mean)
            flops += self.sketcher.whole_flops(name)
        self.target |= sum_of_tensors(processes, kept)
        lefts, rights = (sum_of_tensors(processes, side) for side in (sums.left, sums.right))
        tokens = Counter[str]()
        for its in objects(processes, sums.tokens):
            tokens.update(its)
        for name, left in lefts.items():
            self.curvature[name] = (left / samples, rights[name] / max(tokens[name], 1))
        return flops

    def _add_factors(self, sums: TargetSums, name: str, rows: Tensor, columns: Tensor) -> None:
        left, right, tokens = _factors(rows, columns)
        sums.left[name] = sums.left[name] + left if name in sums.left else left
        sums.right[name] = sums.right[name] + right if name in sums.right else right
        sums.tokens[name] = sums.tokens.get(name, 0) + tokens

    # --- the candidates -----------------------------------------------------------------------------------

    def sketches(
        self, gradients: Iterable[Outer | Thin], scales: Scales | None, parameters: Any, usage: Usage
    ) -> Iterator[tuple[str, Any]]:
        """For every layer: its sketches [B, r, c], or both projected factors of every token if they are needed.

        scales: Adam's preconditioner, if the candidates are preconditioned before projection, or a mask. The cost is
        added to `usage`.
        """
        for gradient in gradients:
            with self.clocked(usage):
                if self.by_token:
                    assert isinstance(gradient, Outer)
                    usage.flops += self.sketcher.tokens_flops(gradient)
                    sketches: Any = self.sketcher.tokens(gradient)
                elif scales and (scale := scales.of(parameters[gradient.name])) is not None:
                    sketches = torch.cat([self.sketcher.whole(b.name, scale * b.full()) for b in gradient.blocks()])
                    usage.flops += gradient.flops() + len(sketches) * self.sketcher.whole_flops(gradient.name)
                else:
                    usage.flops += self.sketcher.flops(gradient)
                    sketches = self.sketcher.of(gradient)
            yield gradient.name, sketches

    @contextmanager
    def clocked(self, usage: Usage) -> Iterator[None]:
        """Charge the seconds of the enclosed code, and its FLOPs if they are measured, to `usage`."""
        began = time.perf_counter()
        with counted(usage, self.settings.count_flops):
            yield
        usage.seconds = (usage.seconds or 0.0) + time.perf_counter() - began

    @cached_property
    def by_token(self) -> bool:
        """Whether per-token factors of the candidates are needed."""
        matching = self.matching
        candidates = matching.curvature != "none" and matching.factors == "candidates"
        return matching.tokens or candidates or matching.positions == "same"

    @property
    def target_by_token(self) -> bool:
        """Whether per-token factors of the target's samples are needed."""
        return self.matching.factors == "target" or self.matching.positions == "same"

    def _sought(self, name: str) -> Tensor | None:
        """The preconditioned sketch of the target's gradient; None without a target."""
        q = self.target.get(name)
        projected = self.matching.precondition == "projected" and not self.matching.candidates
        return q * self._projected_scale(name) if q is not None and projected and name in self.second else q

    def _projected_scale(self, name: str) -> Tensor:
        settings = self.settings
        return adams_scale(self.second[name], self._seen, (settings.beta1, settings.beta2), settings.eps)

    def of(self, parts: Iterable[tuple[str, Any]], scale: np.ndarray, usage: Usage) -> Products:
        """Inner products summed over all layers, of what `sketches` gave, with each candidate's gradient multiplied by
        its scale, float64 [B]. The cost is added to `usage`."""
        n = len(scale)  # sums stay on the device, so that no layer synchronises
        shapes = {"gram": (n, n), "aligned": (n,), "square": (), "curved": (n, n), "influence": (n,)}
        sums = {key: torch.zeros(shape, dtype=torch.float64, device=self.device) for key, shape in shapes.items()}
        tokens = None
        for name, part in parts:
            with self.clocked(usage):
                rows, columns = part if self.by_token else (part, part)
                if self.matching.positions == "same":
                    usage.flops += self._add_positions(sums, rows, columns, self._sought(name))
                    continue
                sketch = rows.transpose(1, 2) @ columns if self.by_token else part
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
                    usage.flops += self._add_curved(sums, name, sketch, rows, columns, q)
                if self.matching.tokens and q is not None:
                    layer_tokens = ((rows @ q.to(rows.dtype)) * columns).sum(2).double()
                    usage.flops += 2.0 * rows.numel() * columns.shape[2]
                    tokens = layer_tokens if tokens is None else tokens + layer_tokens
        with self.clocked(usage):
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

    def _add_positions(self, sums: dict[str, Tensor], rows: Tensor, columns: Tensor, q: Tensor | None) -> float:
        """Products restricted to tokens at the same position; returns the FLOPs. rows [B, T, r], columns [B, T, c],
        q [T', r, c].

            <g_i, g_j> = sum over t of (e_it . e_jt) (x_it . x_jt)
        """
        by_place = [side.transpose(0, 1) for side in (rows, columns)]  # [T, B, r], [T, B, c]
        pairs = [side @ side.transpose(1, 2) for side in by_place]
        sums["gram"] += (pairs[0] * pairs[1]).sum(0)
        flops = 2.0 * len(rows) * (rows.numel() + columns.numel())
        if q is not None:
            length = min(rows.shape[1], len(q))
            image = by_place[0][:length] @ q[:length].to(rows.dtype)
            sums["aligned"] += (image * by_place[1][:length]).sum((0, 2))
            sums["square"] += q.double().square().sum()
            flops += 2.0 * len(rows) * q[:length].numel()
        return flops

    def _add_curved(
        self, sums: dict[str, Tensor], name: str, sketch: Tensor, rows: Tensor, columns: Tensor, q: Tensor | None
    ) -> float:
        """Products with a layer's Kronecker-factored curvature (K-FAC):  H = E (x) A,  with A the mean of x x^T over
        tokens and E the sum of e e^T over a sample's tokens, averaged over samples; both in the sketch's dimensions.
        Added to `sums`; returns the FLOPs."""
        flops = 0.0
        if self.matching.factors == "target":
            left, right = (factor.to(sketch.dtype) for factor in self.curvature[name])
        else:
            left, right, tokens = _factors(rows, columns)
            left, right = left / len(rows), right / max(tokens, 1)
            flops = 2.0 * rows.numel() * rows.shape[2] + 2.0 * columns.numel() * columns.shape[2]
        left, right = (self._damped(factor) for factor in (left, right))
        if self.matching.curvature == "kfac":
            curved = (left @ sketch @ right).flatten(1)
            sums["curved"] += sketch.flatten(1) @ curved.T
            return flops + 2.0 * sketch.numel() * (len(left) + len(right)) + 2.0 * len(sketch) * sketch.numel()
        if q is not None:
            solved = torch.linalg.solve(left, torch.linalg.solve(right, q.to(left.dtype), left=False))
            sums["influence"] += (sketch.flatten(1) @ solved.flatten()[:, None])[:, 0]
        return flops + 2.0 * sketch.numel()

    def _damped(self, factor: Tensor) -> Tensor:
        if not self.matching.damping:
            return factor
        mean = factor.diagonal().mean()
        return factor + (self.matching.damping * mean + torch.finfo(factor.dtype).tiny) * torch.eye(
            len(factor), dtype=factor.dtype, device=factor.device
        )


def _factors(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sums of e e^T and of x x^T over tokens, padding apart, which has no error; and the number of tokens."""
    e, a = rows.flatten(0, 1), columns.flatten(0, 1)
    valid = (e != 0).any(1) & (a != 0).any(1)
    e, a = e[valid], a[valid]
    return e.T @ e, a.T @ a, len(a)


def _sum_padded(a: Tensor | None, b: Tensor) -> Tensor:
    """The sum of two tensors [T, r, c], the shorter one continued with zeros."""
    if a is None:
        return b
    longest = max(len(a), len(b))
    first, second = (nn.functional.pad(one, (0, 0, 0, 0, 0, longest - len(one))) for one in (a, b))
    return first + second


def joined(parts: Sequence[Any]) -> Any:
    """Sketches of several micro-batches concatenated; per-token factors are padded to the longest."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    longest = max(rows.shape[1] for rows, _ in parts)
    sides = []
    for side in (0, 1):
        padded = [nn.functional.pad(p[side], (0, 0, 0, longest - p[side].shape[1])) for p in parts]
        sides.append(torch.cat(padded))
    return tuple(sides)
