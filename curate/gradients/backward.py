"""Per-sample gradients: samples forward and backward through a language model at its checkpoints.

    tokens ─ forward ─ mean loss of each sample's supervised tokens ─ backward ─ factors of its gradient ─ collectors

The loss of a batch is the sum of its samples' losses, so each sample's gradient is the one it would have alone. Dropout
is off. A sample whose gradient is not finite is left out, with the reason; samples of a batch do not interact, so the
others are unaffected.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from curate.errors import CurateError
from curate.gradients.checkpoint_weights import (
    copy_adapter,
    load_checkpoint,
    refuse_other_adapter,
    refuse_other_shapes,
)
from curate.gradients.fisher import fisher_losses
from curate.gradients.optimizer_state import Moments, load_moments, plain
from curate.gradients.per_sample import PerSample
from curate.gradients.tape import Tape
from curate.kinds.passes import Fisher
from curate.models.choice import ADAPTER, CheckpointChoice, resolve
from curate.models.flops import FORWARD, TRAINING, TrainingFlops, counted, forward_flops, paper_flops
from curate.models.forward import UNSUPERVISED, wide
from curate.models.language_model import LanguageModel
from curate.models.mixed_precision import round_frozen
from curate.models.tokens import Encoded, weights_of
from curate.models.usage import Usage

# A loss per sample [B] from: logits at supervised tokens [S, V], another model's or None, each token's sample [S], B.
Loss: TypeAlias = "Callable[[Tensor, Tensor | None, Tensor, int], Tensor]"
PHASES = ("forward", "backward", "projection")  # in the ledger; the last covers all processing of gradients
_CACHED = 600_000  # elements of a layer's hidden states per batch that fit the CPU cache


@dataclass(frozen=True)
class CheckpointView:
    """A model at one of its checkpoints.

    shapes: of the parameters whose gradients are taken. checkpoint, index: which checkpoint. moments: None unless the
    optimizer's state was requested. parameters: the parameters themselves; others: by role, the parameters of the same
    names in other models. linear: shapes of the linear layers' matrices, without embeddings and the output head.
    """

    shapes: Mapping[str, tuple[int, ...]]
    device: torch.device
    dtype: torch.dtype
    checkpoint: CheckpointChoice
    index: int = 0
    moments: Moments | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    linear: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of elements of each parameter."""
        return {name: int(np.prod(shape)) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class Gradients:
    """The per-sample gradients of a batch of B samples.

    parameters: each parameter's per-sample gradients, in factored form, for the samples that have one. good: their
    positions, int64. loss: every sample's mean loss, float64 [B]. error: why a sample has no gradient, '' if it has.
    """

    parameters: list[PerSample]
    good: np.ndarray
    loss: np.ndarray
    error: np.ndarray


class Backward:
    """Takes per-sample gradients of a language model, at one checkpoint at a time.

    For an adapter these are the gradients of its matrices, for a whole model those of all parameters.
    """

    def __init__(
        self,
        checkpoints: Sequence[CheckpointChoice],
        moments: bool = False,
        others: Mapping[str, LanguageModel] | None = None,
    ):
        """moments: also load the optimizer's state. others: by role, models that a loss may compare with."""
        self.checkpoints, self._moments, self._index = tuple(checkpoints), moments, -1
        self.others = others or {}
        self.go(0)

    @classmethod
    def of(
        cls, lm: LanguageModel, others: Mapping[str, LanguageModel] | None = None, bfloat16: bool | None = None
    ) -> Backward:
        """Wrap a model in memory: gradients of its trainable parameters, or of all if none is. bfloat16: whether
        matrix products are in bfloat16; None: depends on device and dtype."""
        self = cls.__new__(cls)
        self.others = others or {}
        self.checkpoints, self._moments, self._index = (CheckpointChoice(lm.choice),), False, 0
        self._take(lm)
        self._bfloat16 = self._bfloat16 if bfloat16 is None else bfloat16
        self.at = self._at(self.checkpoints[0])
        return self

    def go(self, index: int) -> CheckpointView:
        """Load the checkpoint of that index, unless it is loaded already; returns the view of it."""
        if index != self._index:
            checkpoint = self.checkpoints[index]
            folder, previous = resolve(checkpoint.model.name), self._index
            previous_folder = resolve(self.checkpoints[previous].model.name)
            if previous >= 0 and (folder / ADAPTER).exists() and (previous_folder / ADAPTER).exists():
                refuse_other_adapter(previous_folder, folder)
                copy_adapter(folder, self.parameters)
            else:
                previous_shapes = self.at.shapes if previous >= 0 else None
                self._take(load_checkpoint(checkpoint.model, folder))
                refuse_other_shapes(
                    previous_folder,
                    folder,
                    previous_shapes,
                    {name: tuple(p.shape) for name, p in self.parameters.items()},
                )
            self.at, self._index = self._at(checkpoint, index), index
        return self.at

    @property
    def linear(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the linear layers' matrices among the parameters, without embeddings and the output head."""
        model, head = self.lm.model, self.lm.model.get_output_embeddings()
        excluded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        excluded |= {id(p) for p in head.parameters()} if head is not None else set()
        return {n: tuple(p.shape) for n, p in self.parameters.items() if p.ndim == 2 and id(p) not in excluded}

    @property
    def half(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return self._bfloat16

    def _take(self, lm: LanguageModel) -> None:
        model = lm.model
        if next(model.parameters()).dtype == torch.float16:
            raise CurateError(
                f"{lm.choice.name}: in float16 small gradients vanish; use --set model.dtype=bfloat16, or float32."
            )
        by_name = {plain(name): parameter for name, parameter in model.named_parameters()}
        trained = {name: parameter for name, parameter in by_name.items() if parameter.requires_grad}
        self.parameters: dict[str, nn.Parameter] = trained or by_name
        self._every = tuple(by_name)
        model.requires_grad_(False)
        self.lm, self.tape, self.thin = lm, Tape(model, self.parameters), False  # thin: see Tape.recording
        head = {id(p) for p in lm.head.parameters()} if lm.plain_head else set()
        self._learns_head = any(id(p) in head for p in self.parameters.values())
        if lm.device.type == "cpu" and not lm.choice.batch_tokens:  # small batches stay in the processor's cache
            lm.batch_tokens = min(max(_CACHED // lm.width, 256), lm.batch_tokens)
        self._takes_places = "position_ids" in inspect.signature(lm.body.forward).parameters
        self._bfloat16 = lm.mixed or lm.device.type == "cuda" and lm.choice.dtype != "float32"
        if lm.mixed:
            round_frozen(model, self.parameters.values())
        with self.tape.recording():
            self._flops = TrainingFlops(model)

    def _at(self, checkpoint: CheckpointChoice, index: int = 0) -> CheckpointView:
        first = next(iter(self.parameters.values()))
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        moments = load_moments(checkpoint, self.parameters, self._every) if self._moments else None
        dtype = torch.promote_types(first.dtype, torch.float32)
        other_parameters = {
            role: {n: p for name, p in lm.model.named_parameters() if (n := plain(name)) in shapes}
            for role, lm in self.others.items()
        }
        return CheckpointView(
            shapes, first.device, dtype, checkpoint, index, moments, self.parameters, other_parameters, self.linear
        )

    # --- a batch -----------------------------------------------------------------------------------------

    def gradients(
        self,
        encoded: Sequence[Encoded],
        usage: Mapping[str, Usage],
        count: bool = False,
        loss: Loss | None = None,
        beside: str = "",
        fisher: Fisher | None = None,
    ) -> Gradients:
        """The gradients of tokenised samples; their cost is added to `usage`, for the phases forward and backward.
        count: measure FLOPs. loss, beside: as in `losses`. fisher: of these losses instead."""
        ids, supervised, lengths = self._padded(encoded)
        began = time.perf_counter()
        if fisher:
            loss = partial(fisher_losses, encoded=encoded, fisher=fisher)
        with self.tape.recording(self.thin):
            with counted(usage["forward"], count):
                losses = self.losses(ids, supervised, loss, beside)
                values = losses.detach().double().cpu().numpy()
            middle = time.perf_counter()
            with counted(usage["backward"], count):
                losses.sum().backward()
                finish(self.lm.device)
        parameters = list(self.tape.gradients())
        end = time.perf_counter()
        self._charge(usage, ids, supervised, lengths, middle - began, end - middle, beside)
        usage["backward"].flops += self.tape.flops
        unsupervised = (supervised.sum(1) == 0).cpu().numpy()
        finite = torch.stack([g.finite() for g in parameters]).all(0) & losses.detach().isfinite()
        error = np.where(finite.cpu().numpy(), "", "its gradient is not finite").astype(object)
        error[unsupervised] = UNSUPERVISED
        positions = np.flatnonzero(error == "")
        if len(positions) < len(encoded):
            these = torch.from_numpy(positions).to(self.lm.device)  # once, not for each parameter
            parameters = [g.of(these) for g in parameters]
        return Gradients(parameters, positions, values, error)

    def along(
        self,
        encoded: Sequence[Encoded],
        directions: Mapping[str, Tensor],
        derivative: Any,
        forwards: float,
        usage: Mapping[str, Usage],
        count: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The derivatives of samples' losses along K directions by `derivative` (`directions.forward_mode`,
        `differences`), float64 [B, K], and errors as in `gradients`. Charged as that many forward passes."""
        ids, supervised, lengths = self._padded(encoded)
        began, cost = time.perf_counter(), usage["forward"]
        with counted(cost, count):
            derivatives = derivative(self, ids, supervised, directions).cpu().numpy()
        n, longest = ids.shape
        cost.tokens += int(lengths.sum())
        cost.padded_tokens += ids.numel()
        cost.flops += forwards * forward_flops(self.lm.model, n, longest, self._head_rows(ids, supervised))
        cost.flops_paper += paper_flops(TRAINING, self.lm.n_params, n)
        cost.seconds = (cost.seconds or 0.0) + time.perf_counter() - began
        error = np.where(np.isfinite(derivatives).all(1), "", "its gradient is not finite").astype(object)
        error[(supervised.sum(1) == 0).cpu().numpy()] = UNSUPERVISED
        return derivatives, error

    def curved(
        self,
        encoded: Sequence[Encoded],
        direction: Mapping[str, Tensor],
        products_with: Any,
        usage: Mapping[str, Usage],
        count: bool = False,
        loss: Loss | None = None,
        beside: str = "",
    ) -> tuple[dict[str, Tensor], int]:
        """Products with the curvature by `products_with` (`directions.hessian_products`, `gauss_newton_products`),
        summed over the samples that have supervised tokens, and the number of these. Charged as two forward and two
        backward passes of all parameters."""
        kept = [sample for sample in encoded if sample.supervised[1:].any()]
        if not kept:
            return {}, 0
        ids, supervised, lengths = self._padded(kept)
        began, cost = time.perf_counter(), usage["backward"]
        with counted(cost, count):
            products = products_with(self, ids, supervised, direction, loss, beside)
            finish(self.lm.device)
        n, longest = ids.shape
        cost.tokens += int(lengths.sum())
        cost.padded_tokens += ids.numel()
        cost.flops += 6.0 * forward_flops(self.lm.model, n, longest, self._head_rows(ids, supervised))
        cost.flops_paper += 2 * paper_flops(TRAINING, self.lm.n_params, n)
        cost.seconds = (cost.seconds or 0.0) + time.perf_counter() - began
        return products, n

    def losses(self, ids: Tensor, supervised: Tensor, loss: Loss | None = None, beside: str = "") -> Tensor:
        """The mean loss of each sample's supervised tokens, [B]. ids, supervised: [B, T], padded on the right, which
        causal attention never sees; supervised may be the tokens' weights, by which their losses are multiplied. loss:
        another loss, of these logits and those of the model in the role `beside`."""
        mask = supervised[:, 1:] > 0
        logits, sample = wide(self._logits(self.lm, ids, mask, self._learns_head)), _samples_of(mask)
        if loss:
            with torch.no_grad():
                other_logits = wide(self._logits(self.others[beside], ids, mask, False)) if beside else None
            return loss(logits, other_logits, sample, len(ids))
        token_losses = cross_entropy(logits, ids[:, 1:][mask], reduction="none")
        if supervised.is_floating_point():
            token_losses = token_losses * supervised[:, 1:][mask]
        sums = token_losses.new_zeros(len(ids)).index_add(0, sample, token_losses)
        return sums / mask.sum(1).clamp(min=1)

    def logits_of(self, ids: Tensor, supervised: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the supervised tokens [S, V], and by how much each one's loss counts in its sample's, [S]."""
        mask = supervised[:, 1:] > 0
        logits, sample = wide(self._logits(self.lm, ids, mask, self._learns_head)), _samples_of(mask)
        return logits, (supervised[:, 1:][mask].to(logits) / mask.sum(1).to(logits)[sample])

    def _logits(self, lm: LanguageModel, ids: Tensor, mask: Tensor, by_sample: bool) -> Tensor:
        """A model's logits at supervised tokens, [S, V]."""
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if self._takes_places:  # one row per sample; otherwise gradients of position embeddings would be shared
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(*ids.shape)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bfloat16):
            if not lm.plain_head:
                return lm.model(**inputs).logits[:, :-1][mask]
            states = lm.body(**inputs).last_hidden_state[:, :-1]
            return self._by_sample(states, mask) if by_sample else lm.head(states[mask])

    def _by_sample(self, states: Tensor, mask: Tensor) -> Tensor:
        """The logits of supervised tokens [S, V], from hidden states padded per sample [B, T', D]; needed where the
        output head's own per-sample gradients are taken."""
        counts = mask.sum(1)
        longest = max(int(counts.max()), 1)
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :longest]  # supervised positions first
        valid = torch.arange(longest, device=mask.device) < counts[:, None]
        return self.lm.head(torch.gather(states, 1, order[:, :, None].expand(-1, -1, states.shape[2])))[valid]

    def _padded(self, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor, np.ndarray]:
        lengths = np.array([len(sample.ids) for sample in encoded])
        return (*self.padded(encoded, int(lengths.max())), lengths)

    def padded(self, encoded: Sequence[Encoded], longest: int) -> tuple[Tensor, Tensor]:
        """ids int64 and supervised, each [B, T], as `losses` takes them."""
        ids, _, supervised = self.lm.padded(encoded, longest)
        weights = weights_of(encoded)
        if weights is None:
            return ids, supervised
        weighted = torch.zeros(supervised.shape, device=ids.device)
        weighted[supervised] = torch.from_numpy(weights).float().to(ids.device)
        return ids, weighted

    def _head_rows(self, ids: Tensor, supervised: Tensor) -> int:
        """Number of a batch's tokens that go through the output head."""
        if not self.lm.plain_head:
            return ids.numel()
        counts = (supervised > 0).sum(1)
        return len(ids) * max(int(counts.max()), 1) if self._learns_head else int(counts.sum())

    def _charge(
        self,
        usage: Mapping[str, Usage],
        ids: Tensor,
        supervised: Tensor,
        lengths: np.ndarray,
        forward: float,
        backward: float,
        beside: str = "",
    ) -> None:
        n, longest = ids.shape
        head = self._head_rows(ids, supervised)
        if beside:
            other_model = self.others[beside]
            usage["forward"].flops += forward_flops(other_model.model, n, longest, head)
            usage["forward"].flops_paper += paper_flops(FORWARD, other_model.n_params, n)
        forward_only, total = forward_flops(self.lm.model, n, longest, head), self._flops.step(n, longest, head)
        for phase, flops, seconds in (("forward", forward_only, forward), ("backward", total - forward_only, backward)):
            cost = usage[phase]
            cost.tokens += int(lengths.sum())
            cost.padded_tokens += ids.numel()
            cost.flops += flops
            cost.flops_paper += paper_flops(FORWARD if phase == "forward" else TRAINING - FORWARD, self.lm.n_params, n)
            cost.seconds = (cost.seconds or 0.0) + seconds


def _samples_of(mask: Tensor) -> Tensor:
    """Which sample each of the S tokens of a mask [B, T] belongs to, int64 [S]."""
    return torch.arange(len(mask), device=mask.device)[:, None].expand(*mask.shape)[mask]


def finish(device: torch.device) -> None:
    """Synchronize with a GPU, so that its work is charged to the phase that started it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
