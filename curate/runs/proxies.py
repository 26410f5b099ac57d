"""Proxy models trained on mixtures, for mixers that use them: each is a run of its own in prepared/FINGERPRINT/.

They are identified by a fingerprint of what determines them, so a mixer that was killed or is run again reuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from curate.errors import CurateError, DivergedError
from curate.hashing import fingerprint, ids_as_integers
from curate.kinds.executor import Executor
from curate.kinds.mixer import Proxies
from curate.kinds.passes import Arrays
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice, weights_fingerprint
from curate.models.tensor_files import read_arrays
from curate.progress import Progress
from curate.runs.account import Account
from curate.runs.config import TrainingSpec, shaping
from curate.runs.driver import run_training
from curate.runs.evaluation import EvalSpec, questions
from curate.runs.samples import TrainingRows, rows_of
from curate.store.encoding import read_json, write_json
from curate.store.files import remove_tree
from curate.store.locks import FOREVER, lock
from curate.store.run_record import Run
from curate.store.workspace import Workspace, open_workspace, pool_fingerprint
from curate.training.settings import TrainSettings


@dataclass(frozen=True)
class Proxy:
    """How proxies are trained and evaluated.

    model: what each starts from. plain: the weighting under which every sample counts the same. evals: what a mixture
    is evaluated by. executor: what runs independent trainings in parallel.
    """

    model: ModelChoice
    plain: Weighting
    settings: TrainSettings = field(default_factory=TrainSettings)
    evals: Sequence[EvalSpec] = ()
    executor: Executor | None = None


@dataclass(frozen=True)
class Pool:
    """What mixtures are drawn from: the samples of a manifest, or all; each one's domain; the domains' names.

    rows_per_unit: float64 [D], converts a domain's weight to draws: 1 if weights are shares of samples, 1 over the mean
    tokens per sample if they are shares of tokens. Contains plain data only, as it is sent to workers.
    """

    path: str
    name: str
    mixer: str
    manifest: str | None
    domain: np.ndarray
    names: Sequence[str]
    rows_per_unit: np.ndarray
    seed: int

    @cached_property
    def ws(self) -> Workspace:
        """The workspace at `path`."""
        return open_workspace(self.path)

    @cached_property
    def rows(self) -> TrainingRows:
        """The samples to draw from; where their tokens are is kept for the next proxy."""
        return replace(rows_of(self.ws, self.manifest, None, False), kept={})

    @cached_property
    def keys(self) -> np.ndarray:
        """The samples' ids as uint64, which determine the order of draws."""
        return ids_as_integers(self.rows.id.to_pylist())

    @cached_property
    def stamp(self) -> str:
        """A fingerprint of the data that is drawn from."""
        arrays = [self.rows.row.tolist(), self.domain.tolist(), self.rows_per_unit.tolist()]
        return fingerprint(pool_fingerprint(self.ws.shards()), *arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached properties, which a worker recomputes."""
        return {key: value for key, value in self.__dict__.items() if key not in ("ws", "rows", "keys", "stamp")}

    def drawn(self, weights: np.ndarray) -> TrainingRows:
        """Samples drawn by the domains' weights, float64 [D], with a random domain for every draw."""
        from curate.training.mixture_sampler import Draws

        share = weights * self.rows_per_unit
        draws = Draws(self.domain, self.keys, share / share.sum(), len(self.domain), False, self.seed)
        return replace(self.rows, draws=draws, domains=self.names)


@dataclass(frozen=True)
class ProxyTrial:
    """One mixture to try. weights: float64 [D]."""

    index: int
    weights: np.ndarray

    samples = 1
    cost = 1.0

    def __str__(self) -> str:
        return f"the mixture {self.index}"


@dataclass(frozen=True)
class Trials:
    """What a worker needs to try mixtures."""

    pool: Pool
    proxy: Proxy

    def run_task(self, trial: ProxyTrial) -> list[float]:
        """Train a proxy on a mixture; returns its losses on the targets, lower is better; NaN if training diverged."""
        training = self.training()
        run = self.run(trial.weights)
        outcome = run.folder / "outcome.json"
        if outcome.exists():
            remove_tree(run.folder / "checkpoints")  # left by a killed process
            return [float(value) for value in read_json(outcome)["losses"]]
        losses = [float("nan")] * len(self.proxy.evals)
        try:
            evaluations = trained(self.pool, run, training, trial.weights, self.proxy.evals, "trial")
        except DivergedError:
            pass  # its losses stay NaN
        else:
            losses = [
                _loss(eval_spec, row["value"]) for eval_spec, row in zip(self.proxy.evals, evaluations, strict=True)
            ]
        write_json(outcome, {"weights": trial.weights.tolist(), "losses": [str(value) for value in losses]})
        remove_tree(run.folder / "checkpoints")  # hundreds of models that are not needed any more
        return losses

    def run(self, weights: np.ndarray) -> Run:
        """The run of the proxy for a mixture, whether it exists or not."""
        return run_of(self.pool, self.training(), weights, self._asked)

    @cached_property
    def _asked(self) -> str:
        """A fingerprint of what the proxies are evaluated on."""
        descriptions = []
        for eval_spec in self.proxy.evals:
            metric, question_dicts = (
                eval_spec.metric,
                [question.shape() for _, question in questions(self.pool.ws, eval_spec)],
            )
            descriptions.append(
                [
                    eval_spec.target,
                    eval_spec.split,
                    eval_spec.shots,
                    metric.name,
                    metric.version,
                    metric.shaping(),
                    question_dicts,
                ]
            )
        return fingerprint(descriptions)

    def training(self) -> TrainingSpec:
        """How every proxy is trained."""
        return TrainingSpec(self.proxy.model, self.proxy.plain, self.proxy.settings, seed=self.pool.seed)


def _loss(eval_spec: EvalSpec, value: float | None) -> float:
    """A metric's value as a loss, where lower is better; NaN for None."""
    if value is None:
        return float("nan")
    return value if eval_spec.metric.better == "lower" else -value


def run_of(pool: Pool, training: TrainingSpec, weights: np.ndarray, beside: str = "") -> Run:
    """The run of a proxy, whether it exists or not. beside: further inputs that identify it."""
    identity = fingerprint(
        "proxy",
        weights_fingerprint(training.model),
        training.model.shaping(),
        training.weighting.name,
        training.weighting.version,
        training.weighting.settings(),
        shaping(training.settings),
        training.seed,
        pool.stamp,
        np.asarray(weights).tolist(),
        beside,
    )
    return Run(pool.ws, f"proxy_{identity}", place=pool.ws.path / "prepared" / identity)


def trained(
    pool: Pool, run: Run, training: TrainingSpec, weights: np.ndarray, evals: Sequence[EvalSpec], label: str
) -> list[dict[str, Any]]:
    """Train a proxy to its end; returns its evaluations."""
    from curate.training.distributed import Alone

    if run.is_settled() and not evals:
        return []
    account = Account("mix", [pool.mixer], pool.name, {"train": label})
    with lock(pool.ws, f"prepared {run.folder.name}", wait=FOREVER) as held:
        done = run_training(
            replace(run, held=held), training, pool.drawn(weights), None, Alone(), evals=evals, account=account
        )
    return done.evaluations


class Trainings(Proxies):
    """The proxies of one mixer."""

    def __init__(self, pool: Pool, proxy: Proxy):
        self.pool, self.proxy = pool, proxy
        self._runs: dict[str, Run] = {}
        self.made: list[str] = []  # the runs' account names in the ledger

    def train(self, label: str, weights: np.ndarray, weighting: Weighting | None = None, reference: str = "") -> Arrays:
        training = Trials(self.pool, self.proxy).training()
        reference_run = ""
        if weighting:
            training = replace(training, weighting=weighting)
        if reference:
            run, reference_run = self._runs[reference], self._runs[reference].name
            folder = run.latest().folder
            training = replace(training, reference=replace(self.proxy.model, name=str(folder)))
        run = self._runs[label] = run_of(self.pool, training, weights, reference_run)
        self.made.append(run.account)
        trained(self.pool, run, training, weights, (), label)
        state = run.latest().folder / "weighting.safetensors"
        return read_arrays(Path(str(state))) if state.exists() else {}

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        from curate.kinds.executor import Tasks

        if self.proxy.executor is None:
            raise CurateError("say which executor trains the proxies: Proxy(…, executor=Local()).")
        losses = np.full((len(mixtures), len(self.proxy.evals)), np.nan)
        trials, workers = Trials(self.pool, self.proxy), self.proxy.executor.open()
        tasks = Tasks(ProxyTrial(i, weights) for i, weights in enumerate(mixtures))
        for weights in mixtures:
            self.made.append(trials.run(weights).account)
        with Progress("trials", len(mixtures), noun="proxies", listens=False) as bar:
            try:
                for trial, outcome in workers.run(trials.run_task, tasks, lambda task: None):
                    losses[trial.index] = outcome.result
                    bar.finished(1)
            finally:
                workers.close()
        return losses
