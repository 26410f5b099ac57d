"""FLOPs of a pass through models, by the ledger's own formulas, from the models' shapes and counts of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from curate.kinds.passes import ForwardRequest, GradientRequest, Pass, View
from curate.models.choice import ADAPTER, ModelChoice, resolve
from curate.runs.foreseen_tokens import Tokens, counted
from curate.tables.spec import TableSpec

if TYPE_CHECKING:  # loaded only when there is a model to foresee
    from curate.gradients.foreseen import ForeseenGradients
    from curate.models.forward import Model

Shared: TypeAlias = "dict[tuple[Any, View], list[ForwardRequest | GradientRequest]]"
Samples: TypeAlias = "list[Callable[[Model, View], Tokens]]"  # of each unit: its samples' tokens, by model and view
_GRADIENT = "gradients of the base model"


class ForeseenPasses:
    """The passes of one table through its models."""

    counted = staticmethod(counted)

    def __init__(self, job: TableSpec):
        self.job = job
        self._models: dict[tuple[ModelChoice, str], Model] = {}

    @property
    def device(self) -> str:
        """The device of its first model, as the ledger calls it."""
        return self.model(next(iter(self.job.models))).usage().device if self.job.models else "cpu"

    @property
    def width(self) -> int:
        """The hidden size of its first model."""
        return self.model(next(iter(self.job.models))).width

    def model(self, role: str) -> Model:
        """A model's shapes."""
        from curate.models.skeleton import kind_of, skeleton

        key = (self.job.models[role], kind_of(role))
        if key not in self._models:
            self._models[key] = skeleton(*key)
        return self._models[key]

    def flops(self, step: Pass, samples: Samples, shared: Shared) -> float:
        """FLOPs of a pass. samples: of each unit. shared: the requests of earlier tables, whose passes through the
        models are not taken again; those of this pass are added."""
        total = 0.0
        for (key, view), (role, requests) in self._ways(step).items():
            before = shared.setdefault((key, view), [])
            after = [*before, *requests]
            total += self._way(role, view, samples, after) - self._way(role, view, samples, before)
            shared[key, view] = after
        return total

    def _ways(self, step: Pass) -> dict[tuple[Any, View], tuple[str, list[Any]]]:
        """The passes through a model that the requests need: of requests to one model with one view there is one."""
        ways: dict[tuple[Any, View], tuple[str, list[Any]]] = {}
        for request in step.requests.values():
            differentiated = request.model == "base" and bool(self.job.checkpoints)
            key = _GRADIENT if differentiated else self.job.models[request.model]
            ways.setdefault((key, request.view), (request.model, []))[1].append(request)
        return ways

    def _way(self, role: str, view: View, samples: Samples, requests: Sequence[Any]) -> float:
        if not requests:
            return 0.0
        if isinstance(requests[0], GradientRequest):
            return self._there_and_back(view, samples, requests)
        if all(request.counts_only for request in requests):
            return 0.0
        from curate.models.flops import forward_flops
        from curate.models.forward import WINDOW
        from curate.models.prefixes import pays
        from curate.models.skeleton import batches

        model = self.model(role)
        with_head = any(request.per_token for request in requests)
        plain = getattr(model, "plain_head", True)
        total, in_common = 0.0, getattr(model, "in_common", lambda view: 0)(view)
        for tokens in samples:
            lengths, counted = tokens(model, view)
            there = lengths > 0
            worth = there.any() and pays(in_common, int(there.sum()), int((lengths - in_common)[there].sum()))
            shared = in_common if worth else 0
            windows = -(-len(lengths) // WINDOW)
            total += windows * forward_flops(model.model, 1, shared, 0)
            for n, longest, counts in batches(np.where(there, lengths - shared, 0), counted, model.batch_tokens):
                rows = (int(counts.sum()) if plain else n * longest) if with_head else 0
                total += forward_flops(model.model, n, longest, rows, before=shared)
        return total

    def _there_and_back(self, view: View, samples: Samples, requests: Sequence[GradientRequest]) -> float:
        from curate.models.skeleton import batches

        gradients, every = self.gradients, [request for request in requests if request.every]
        total, checkpoints = 0.0, self._checkpoints()
        for tokens in samples:
            for n, longest, counts in batches(*tokens(gradients.lm, view), gradients.lm.batch_tokens):
                total += gradients.flops(n, longest, counts, requests)
                if every and checkpoints > 1:
                    total += (checkpoints - 1) * gradients.flops(n, longest, counts, every)
        return total

    def _checkpoints(self) -> int:
        return self.job.checkpoint_set.planned or len(self.job.checkpoint_set.checkpoints)

    @cached_property
    def gradients(self) -> ForeseenGradients:
        """The model whose gradients are taken: with LoRA's matrices, if they are what is trained."""
        from curate.gradients.foreseen import ForeseenGradients
        from curate.models.language_model import LanguageModel
        from curate.models.skeleton import add_lora, skeleton

        choice = self.job.checkpoint_set.checkpoints[-1].model
        lm = skeleton(choice)
        assert isinstance(lm, LanguageModel)
        rank, targets = self._lora(choice)
        if rank:
            add_lora(lm, rank, targets)
        found = ForeseenGradients(lm)
        groups = [found.groups_of(r) for step in self.job.passes[:-1] for r in _gradient_requests(step)]
        found.directions = max([1, *groups])
        return found

    def _lora(self, choice: ModelChoice) -> tuple[int, str | list[str]]:
        """The rank of LoRA's matrices, 0 without, and the layers that have some."""
        if self.job.checkpoint_set.planned:
            warmup = self.job.method.warm_up()
            settings: Mapping[str, Any] = warmup.settings if warmup else {}
            return int(settings.get("lora_r", 0)), settings.get("lora_targets", "all-linear")
        adapter = resolve(choice.name) / ADAPTER
        if not adapter.exists():
            return 0, ""
        stored = json.loads(adapter.read_text(encoding="utf-8"))
        return int(stored["r"]), stored["target_modules"]


def _gradient_requests(step: Pass) -> list[GradientRequest]:
    return [request for request in step.requests.values() if isinstance(request, GradientRequest)]
