"""Running samples forward and backward once per checkpoint for the gradient collectors of several scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.gradients.backward import PHASES, Backward, CheckpointView, finish
from curate.gradients.directions import CURVATURES, WAYS, count_of, forwards
from curate.kinds.passes import GradientCollector, GradientRequest, View
from curate.models.choice import CheckpointChoice
from curate.models.flops import TRAINING, counted, paper_flops
from curate.models.forward import Key
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, Sample
from curate.models.usage import Usage
from curate.progress import in_parts


class GradientModel:
    """A language model at its checkpoints, through which samples go forward and backward."""

    def __init__(
        self,
        checkpoints: Sequence[CheckpointChoice],
        moments: bool = False,
        others: Mapping[str, LanguageModel] | None = None,
    ):
        self.backward = Backward(checkpoints, moments, others)

    @classmethod
    def of(cls, backward: Backward) -> GradientModel:
        """Wrap a model that is already in memory."""
        self = cls.__new__(cls)
        self.backward = backward
        return self

    def usage(self) -> Usage:
        """An empty usage record for the model, with one for each phase."""
        usage = self.backward.lm.usage()
        usage.phases = {phase: self.backward.lm.usage() for phase in PHASES}
        return usage

    def way(
        self, samples: Sequence[Sample], view: View, requests: Mapping[Key, GradientRequest], states: Mapping[str, Any]
    ) -> tuple[dict[Key, dict[str, Any]], Usage]:
        """The columns of each request for all samples, in order, and its accumulated `sums`; and the cost."""
        usage, last = self.usage(), len(self.backward.checkpoints) - 1
        parts: dict[Key, list[dict[str, Any]]] = {key: [] for key in requests}
        by_checkpoint = {
            index: {key: request for key, request in requests.items() if request.every or index == last}
            for index in range(last + 1)
        }
        with in_parts(sum(map(bool, by_checkpoint.values()))):
            for index, active in by_checkpoint.items():
                if active:
                    at = self.backward.go(index)
                    for key, result in self._at(at, samples, view, active, states, usage).items():
                        parts[key].append(result)
        for cost in usage.phases.values():
            usage.add(cost)
        return {key: _joined(parts[key], requests[key].every) for key in requests}, usage

    def _at(
        self,
        at: CheckpointView,
        samples: Sequence[Sample],
        view: View,
        requests: Mapping[Key, GradientRequest],
        states: Mapping[str, Any],
        usage: Usage,
    ) -> dict[Key, dict[str, Any]]:
        """Each request's columns and sums at a checkpoint; NaN, with the reason, where a sample has no gradient."""
        refused, errors = dict[int, str](), np.full(len(samples), "", object)
        kept = self._blank(at, len(samples), requests, states)
        sums: dict[Key, dict[str, Tensor]] = {key: {} for key in requests}

        def batch(encoded: Sequence[Encoded], places: np.ndarray) -> Any:
            return self._batch(at, encoded, places, requests, states, usage)

        for places, (results, error) in self.backward.lm.through(samples, view, refused, batch):
            errors[places] = error
            for key, (columns, added) in results.items():
                _put(kept[key], columns, places)
                for name, value in added.items():
                    sums[key][name] = sums[key].get(name, 0.0) + value.double()
        for place, why in refused.items():
            errors[place] = why
        failed = errors != ""
        for key, columns in kept.items():
            for values in columns.values():
                values[failed] = np.nan
            columns["error"] = errors.copy()
            columns["sums"] = {name: value.cpu().numpy() for name, value in sums[key].items()}
        return kept

    def _blank(
        self, at: CheckpointView, n: int, requests: Mapping[Key, GradientRequest], states: Mapping[str, Any]
    ) -> dict[Key, dict[str, Any]]:
        """The columns for n samples before any is processed: NaN, in the shapes that an empty batch gives."""
        empty = self._looked(at, [], np.zeros(0, np.int64), requests, states)
        for key, request in requests.items():
            if request.along:
                empty[key] = {"dot": np.zeros((0, count_of(request.along(at, states.get(key[0])))))}, {}
        kept: dict[Key, dict[str, Any]] = {key: {} for key in requests}
        for key, (columns, _) in empty.items():
            kept[key] = {name: np.full((n, *np.shape(v)[1:]), np.nan) for name, v in columns.items()}
        return kept

    def _batch(
        self,
        at: CheckpointView,
        encoded: Sequence[Encoded],
        places: np.ndarray,
        requests: Mapping[Key, GradientRequest],
        states: Mapping[str, Any],
        usage: Usage,
    ) -> tuple[dict[Key, Any], np.ndarray]:
        count = self.backward.lm.choice.count_flops
        costs = {phase: self.backward.lm.usage() for phase in PHASES}
        if at.index == len(self.backward.checkpoints) - 1:  # count once: every checkpoint truncates the same samples
            usage.cut += sum(sample.cut for sample in encoded)
            usage.partial += sum(sample.partial for sample in encoded)
        results, error = dict[Key, Any](), np.full(len(encoded), "", object)
        by_loss: dict[Any, dict[Key, GradientRequest]] = {}
        for key, request in requests.items():
            if request.watch:
                by_loss.setdefault((request.loss, request.beside, request.fisher), {})[key] = request
        for (loss, beside, fisher), watched in by_loss.items():
            gradients = self.backward.gradients(encoded, costs, count, loss, beside, fisher)
            error = np.where(error == "", gradients.error, error)
            used = np.array([_used(encoded[i]) for i in gradients.good], np.int64)
            collected = self._looked(
                at, gradients.parameters, places[gradients.good], watched, states, costs["projection"], used
            )
            results |= {key: (_spread(c, gradients.good, len(encoded)), sums) for key, (c, sums) in collected.items()}
        for key, request in requests.items():
            if request.along:
                q = request.along(at, states.get(key[0]))
                passes = forwards(request.by, count_of(q))
                values, reasons = self.backward.along(encoded, q, WAYS[request.by], passes, costs, count)
                results[key], error = ({"dot": values}, {}), np.where(error == "", reasons, error)
            if request.curved:
                q = request.curved(at, states.get(key[0]))
                curvature = CURVATURES[request.curvature]
                sums, n = self.backward.curved(encoded, q, curvature, costs, count, request.loss, request.beside)
                named = {f"hessian{at.index}/{name}": value for name, value in sums.items()}
                results[key] = {}, {**named, f"hessian{at.index}/samples": torch.tensor([n])}
        self._as_published(costs, requests, len(encoded))
        for phase, cost in costs.items():
            usage.phases[phase].add(cost)
        return results, error

    def _as_published(self, costs: Mapping[str, Usage], requests: Mapping[Key, GradientRequest], samples: int) -> None:
        """Where the requests' paper says what a sample costs, enter that: a third of it forward, as of a step."""
        published = [request.paper for request in requests.values() if request.paper is not None]
        if len(published) < len(requests):
            return
        step = paper_flops(TRAINING, self.backward.lm.n_params, samples)
        each = max(published) * step / len(self.backward.checkpoints)
        costs["forward"].flops_paper, costs["backward"].flops_paper = each / 3, 2 * each / 3

    def _looked(
        self,
        at: CheckpointView,
        parameters: Sequence[Any],
        places: np.ndarray,
        requests: Mapping[Key, GradientRequest],
        states: Mapping[str, Any],
        cost: Usage | None = None,
        used: np.ndarray | None = None,
    ) -> dict[Key, Any]:
        """The collectors' columns and sums for a batch."""
        began = time.perf_counter()
        collectors: dict[Key, GradientCollector] = {
            key: request.watch(at, states.get(key[0]), places) for key, request in requests.items() if request.watch
        }
        for collector in collectors.values():
            collector.begin(np.zeros(0, np.int64) if used is None else used)
        with torch.no_grad(), counted(cost, cost is not None and self.backward.lm.choice.count_flops):
            for gradient in parameters:
                for collector in collectors.values():
                    collector.take(gradient)
        collected = {key: (collector.columns(), collector.sums()) for key, collector in collectors.items()}
        finish(at.device)
        if cost is not None:
            cost.flops += sum(collector.flops() for collector in collectors.values())
            cost.seconds = time.perf_counter() - began
        return collected


def _used(sample: Encoded) -> int:
    """How many of its tokens the loss depends on: those before its last supervised one."""
    counts = sample.supervised if sample.weight is None else sample.supervised & (sample.weight > 0)
    return int(np.flatnonzero(counts)[-1]) if counts.any() else 0


def _put(kept: dict[str, Any], columns: Mapping[str, np.ndarray], places: np.ndarray) -> None:
    """Write the columns of some samples into those of all, which take their dtype."""
    for name, values in columns.items():
        if kept[name].dtype != values.dtype:
            kept[name] = kept[name].astype(values.dtype)
        kept[name][places] = values


def _spread(columns: Mapping[str, np.ndarray], positions: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Columns of some of n samples as columns of all; NaN elsewhere."""
    if len(positions) == n:
        return dict(columns)
    spread = {}
    for name, values in columns.items():
        spread[name] = np.full((n, *values.shape[1:]), np.nan, values.dtype)
        spread[name][positions] = values
    return spread


def _joined(parts: Sequence[dict[str, Any]], stacked: bool) -> dict[str, Any]:
    """A request's results at one checkpoint, or stacked over all of them; a sample that fails at one checkpoint has an
    error for all."""
    if not stacked:
        return parts[0]
    errors, sums = parts[0]["error"], dict[str, Any]()
    for part in parts:
        errors = np.where(errors == "", part["error"], errors)
        for name, value in part["sums"].items():
            sums[name] = sums.get(name, 0.0) + value
    columns = {
        name: np.stack([part[name] for part in parts], axis=1) for name in parts[0] if name not in ("error", "sums")
    }
    return {**columns, "error": errors, "sums": sums}
