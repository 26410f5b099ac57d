"""A training run, from its latest checkpoint on: what the verb `train` does, and what comes before a score.

Started by `accelerate launch` or `torchrun` it is one of several processes, of which the first alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
from tqdm import tqdm

from curate.errors import CurateError, DivergedError
from curate.hashing import fingerprint
from curate.kinds.executor import forget_peak, peak_bytes
from curate.kinds.registry import Target
from curate.models.load import ModelChoice
from curate.runs.config import Training, refuse_other_run, run_recipe
from curate.runs.evaluation import Judge, judged
from curate.runs.fitted_mask import refreshed
from curate.runs.samples import Rows, anchors_of, documents_of, encoded_one_by_one, left_out, require_drawable
from curate.store.files import remove_tree
from curate.store.ledger import Meter, charged
from curate.store.run_record import Checkpoint, Run
from curate.store.schema import METRICS, TRAINED

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.dataset import Data
    from curate.training.loop import Done, Trainer
    from curate.training.masked_parameters import Refreshed
    from curate.training.trainable import Trainee

_PHASES = ("train", "losses", "anchors", "candidates", "target", "selection", "base losses", "evaluate")


@dataclass
class Trained:
    """What a training did."""

    name: str
    folder: str = ""
    steps: int = 0
    steps_now: int = 0
    samples: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> samples
    cut: int = 0
    loss: float | None = None  # of the last step
    weight_mean: float | None = None
    flops: float = 0.0
    by_epoch: list[dict[str, Any]] = field(default_factory=list)  # weights, and what they were made of
    by_source: list[dict[str, Any]] = field(default_factory=list)  # share of the samples seen, and of their weight
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    planned: dict[str, Any] | None = None


@dataclass(frozen=True)
class Account:
    """On whose account a training goes in the ledger: stage, methods, name; and what phases are called there."""

    stage: str
    methods: list[str]
    name: str
    phases: Mapping[str, str] = field(default_factory=dict)


# --- the run ---------------------------------------------------------------------------------------------


def _opened(run: Run, training: Training, rows: Rows | None, target: Target | None) -> None:
    """Begin the run, or find it as it was begun. Raises CurateError where it is another."""
    recipe, old = run_recipe(run.ws, run.name, training, rows, target), run.recipe
    if old is not None:
        try:
            refuse_other_run(run.name, old, recipe)
        except CurateError:
            if not run.beside and run.place is None:
                raise
            remove_tree(run.folder, marker="run.json")  # what another `fresh` had begun
            old = None
    if old is None:
        remove_tree(run.folder)  # of a removal that was cut short
        run.begin({**recipe, "account": run.account})
    run.sweep()


class _Meters:
    """The accounts of a run's phases, each a row of the ledger."""

    def __init__(self, run: Run, training: Training, account: Account | None, stack: ExitStack, writes: bool):
        self.flops = 0.0
        account = account or Account("train", [training.weighting.name], run.name)
        self._meters: dict[str, Meter] = {}
        for phase in _PHASES if writes else ():
            columns = {"methods": account.methods, "name": account.name, "model": training.model.name}
            phase_s = {**columns, "phase": account.phases.get(phase, phase), "run": run.account}
            self._meters[phase] = stack.enter_context(charged(run.ws.path, account.stage, **phase_s))

    def __getitem__(self, phase: str) -> Meter:
        return self._meters[phase]

    def charge(self, phase: str, samples: int, usage: Any) -> None:
        self.flops += usage.flops
        if self._meters:
            self._meters[phase].add(usage)
            self._meters[phase].begin(samples)


def advance(
    run: Run,
    training: Training,
    rows: Rows | None,
    target: Target | None,
    processes: Any,
    result: Trained,
    *,
    judges: Sequence[Judge] = (),
    account: Account | None = None,
) -> None:
    """Train a run to its end. Only for the claim's holder, and for the processes beside it.

    rows: null where it learns from a stream. account: on whose it goes in the ledger; null: the run's own.

    Raises CurateError where a run of that name is there and another, DivergedError where the loss diverges.
    """
    if processes.is_main_process:
        _opened(run, training, rows, target)
    processes.wait_for_everyone()
    from curate.training.trainable import trainee

    done = run.checkpoints()
    start = done[-1] if done else None
    with ExitStack() as stack:
        folder = stack.enter_context(start.local()) if start else None
        model = trainee(_on(training.model, processes), training.settings, folder)
        _forget_peak(model.model.device)
        meters = _Meters(run, training, account, stack, processes.is_main_process)
        if rows is None:
            data, row = _streamed(training, target, model, processes), None
        else:
            data, places = _data(run, training, rows, target, model, meters, result, processes)
            row = rows.row[places]
        mask = refreshed(training.mask, training.masking, model.model.model) if training.mask else None
        trainer = _trainer(model, data, training, processes, start, folder, mask)
        book = _Book(run, trainer, model, row, start, processes.is_main_process)
        trainable = (
            sum(len(i) for i in mask.selected.values()) if mask else sum(p.numel() for p in trainer.whole.values())
        )
        _tell(run, processes, steps=trainer.steps, samples=result.samples, trainable=trainable,
              optimizer_bytes=(12 if mask else 8) * trainable)  # fmt: skip
        _loop(book, training, judges, meters, result)
        if stream := trainer.data.stream:
            result.samples, result.left_out = stream.taken, dict(stream.left_out)
            _tell(run, processes, samples=result.samples)
        if result.steps_now:  # a run that was complete is left as it was
            _tell(run, processes, peak_bytes=max(_peak(model.model.device), (run.recipe or {}).get("peak_bytes") or 0))
        result.steps, result.flops = trainer.steps, meters.flops


def _forget_peak(device: Any) -> None:
    import torch

    forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: Any) -> int:
    """The most memory held since training began: of the GPU, or of this process."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def processes_of(choice: ModelChoice) -> Any:
    """All processes of this training, where accelerate or torchrun has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        from curate.training.distributed import Alone

        return Alone()
    from accelerate import Accelerator, InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first judges
    return Accelerator(cpu=choice.device == "cpu", mixed_precision="no", kwargs_handlers=[patient])


def _on(choice: ModelChoice, processes: Any) -> ModelChoice:
    """The model on this process's device."""
    several = processes.num_processes > 1 and choice.device == "auto"
    return replace(choice, device=str(processes.device)) if several else choice


def _tell(run: Run, processes: Any, **found: int) -> None:
    """Say in run.json what is known once the samples are in tokens."""
    recipe = run.recipe or {}
    if processes.is_main_process and not found.items() <= recipe.items():
        run.begin({**recipe, **found})
    processes.wait_for_everyone()


def _trainer(
    model: Trainee,
    data: Data,
    training: Training,
    processes: Any,
    start: Checkpoint | None,
    folder: Path | None,
    mask: Refreshed | None,
) -> Trainer:
    from safetensors.numpy import load_file
    from safetensors.torch import load_file as load_tensors

    from curate.training.loop import Snapshot, Trainer

    snapshot = None
    if start and folder:
        state = folder / "weighting.safetensors"
        size = orjson.loads((folder / "trainer.json").read_bytes()).get("micro_batch_size", 0)
        tensors, arrays = load_tensors(folder / "optimizer.safetensors"), load_file(state) if state.exists() else {}
        streamed = folder / "stream.safetensors"
        stream = load_file(streamed) if streamed.exists() else {}
        if stream and data.stream and training.stream:
            data.stream.load(stream, skip=not training.stream.past.continues)
        snapshot = Snapshot(start.step, tensors, arrays, size, stream)
    return Trainer(model.model, data, training.settings, training.weighting, processes, training.seed, snapshot, mask)


# --- samples in tokens -----------------------------------------------------------------------------------


def _data(
    run: Run,
    training: Training,
    rows: Rows,
    target: Target | None,
    model: Trainee,
    meters: _Meters,
    result: Trained,
    processes: Any,
) -> tuple[Data, np.ndarray]:
    """What is learnt, and which of `rows` the samples are that are left."""
    from curate.training.dataset import Data
    from curate.training.examples import Examples

    if rows.draws and training.settings.order != "shuffle":
        raise CurateError(f"a mixture is drawn by lot, so it has no order={training.settings.order}; leave that out.")
    encoded = documents_of(run.ws, rows, training.settings, model.model)
    whys = left_out(encoded, rows)
    for why in whys:
        if why:
            result.left_out[why] = result.left_out.get(why, 0) + 1
    places = np.flatnonzero(np.array([not why for why in whys]))
    if not len(places):
        raise CurateError(f"none of the {len(rows.row)} samples can be learnt from: {next(iter(result.left_out), '')}.")
    if training.settings.order == "pool":
        places = places[np.argsort(rows.row[places], kind="stable")]
    kept, of = [], []
    for position, place in enumerate(places):
        for piece in encoded[place]:
            kept.append(piece)
            of.append(position)
            result.cut += piece.cut
    examples = Examples.of(kept, of)
    result.samples = len(places)
    draws = rows.draws and replace(rows.draws, domain=rows.draws.domain[places], keys=rows.draws.keys[places])
    documents = np.repeat(np.arange(len(kept)), rows.repeats[places][examples.sample])
    anchors = _anchors(target, model)
    column, base = None if rows.column is None else rows.column[places], None
    needs = training.weighting.needs
    if "base_token_loss" in needs or "base_loss" in needs and column is None:
        base = _base_losses(run, training, examples, model, meters, processes)
        if column is None:
            column = _means(base, examples)
    data = Data(examples, documents, rows.weight[places], column, anchors, base)
    if draws:
        require_drawable(draws, rows.domains)
        data = replace(data, draws=draws, vocabulary=len(model.model.tokenizer))
        data = replace(data, documents=data.of_epoch(0))
    return data, places


def _anchors(target: Target | None, model: Trainee) -> Any:
    """The target's samples in tokens; null without a target."""
    if target is None:
        return None
    return anchors_of(target.text.frame.select("messages", "text").to_dicts(), target.name, model.model)


def _streamed(training: Training, target: Target | None, model: Trainee, processes: Any) -> Data:
    """Data that comes as it is learnt from."""
    from curate.training.dataset import Data
    from curate.training.examples import Examples
    from curate.training.stream import Stream

    feed = training.stream
    assert feed is not None
    if processes.num_processes > 1:
        raise CurateError("a stream is read by one process, and several are at work; train in one.")
    samples = encoded_one_by_one(feed.records, training.settings, model.model)
    stream = Stream(samples, feed.past.memory, feed.past.replay, training.seed)
    return replace(Data.of(Examples.of([])), anchors=_anchors(target, model), stream=stream)


def _base_losses(
    run: Run, training: Training, examples: Any, model: Trainee, meters: _Meters, processes: Any
) -> np.ndarray:
    """The loss of every supervised token under the model that training began with, or its reference; kept for when it
    goes on."""
    from curate.store.commits import Parts
    from curate.training.inference import base_losses
    from curate.training.objective import Objective
    from curate.training.trainable import trainee

    parts = Parts(run.folder / "base", ".safetensors")
    stamp = fingerprint(examples.lengths.tolist(), int(examples.ids.astype(np.int64).sum()))
    stored, record = parts.read("losses"), parts.record("losses") or {}
    if stored is not None and record.get("stamp") == stamp:
        return stored["loss"]
    if training.reference:
        own, model = model.model, trainee(_on(training.reference, processes), replace(training.settings, lora_r=0))
        _refuse_other_words(training.reference.name, own, model.model)
    elif run.checkpoints():  # the model at hand has learnt already
        model = trainee(_on(training.model, processes), training.settings)
    bfloat16 = training.settings.in_bfloat16(model.model.device.type)  # as in training, or their difference is noise
    objective, n = Objective(model.model, bfloat16), processes.num_processes
    found, usage = base_losses(objective, examples, training.settings.count_flops, n)
    meters.charge("base losses", len(examples), usage)
    if processes.is_main_process:
        parts.commit("losses", {"loss": found}, stamp=stamp)
    return found


def _refuse_other_words(name: str, own: Any, other: Any) -> None:
    """Raises CurateError for a reference whose losses are of other tokens."""
    if own.tokenizer.get_vocab() != other.tokenizer.get_vocab() or other.context < own.context:
        what = "another vocabulary" if other.context >= own.context else f"a context of {other.context} tokens"
        raise CurateError(
            f"the reference {name} has {what}, and the model that is trained {len(own.tokenizer):,} tokens and a "
            f"context of {own.context}; compare with one of the same tokenizer."
        )


def _means(base: np.ndarray, examples: Any) -> np.ndarray:
    """Each sample's mean loss over the supervised tokens of all its documents."""
    sums = np.add.reduceat(base, np.cumsum(examples.counts) - examples.counts)
    return np.bincount(examples.sample, sums) / np.bincount(examples.sample, examples.counts)


# --- step by step ----------------------------------------------------------------------------------------


class _Book:
    """What a run writes: the rows of its steps, and checkpoints."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        model: Trainee,
        rows: np.ndarray | None,
        start: Checkpoint | None,
        writes: bool,
    ):
        self.run, self.trainer, self.model, self.rows, self.writes = run, trainer, model, rows, writes
        self.last_good = start.step if start else 0
        self._metrics: list[dict[str, Any]] = []
        self._trained: list[pa.Table] = []

    def enter(self, done: Done, keep_weights: bool) -> None:
        self._metrics.append(done.metrics)
        if keep_weights:
            n, data = len(done.documents), self.trainer.data
            rows = self.rows if data.place is None else data.place
            assert rows is not None
            columns = {
                "step": np.full(n, done.step),
                "epoch": np.full(n, done.epoch + 1),
                "row": rows[data.examples.sample[done.documents]],
                "weight": done.weight.astype(np.float32),
                "loss": done.loss.astype(np.float32),
                "measure": done.measure.astype(np.float32),
            }
            self._trained.append(pa.table(columns, schema=TRAINED))

    def commit(self, last: bool, keep: int) -> None:
        snapshot = self.trainer.snapshot()
        self.last_good = snapshot.step
        tables = {
            "metrics": pa.Table.from_pylist(self._metrics, schema=METRICS),
            "trained": pa.concat_tables(self._trained) if self._trained else None,
        }
        self._metrics, self._trained = [], []
        if self.writes:
            self.run.commit(snapshot.step, last, tables, self._write(snapshot))
            self.run.keep(keep)

    def _write(self, snapshot: Any) -> Callable[[Path], None]:
        from safetensors.numpy import save_file
        from safetensors.torch import save_file as save_tensors

        def write(folder: Path) -> None:
            self.model.save(folder)
            save_tensors(snapshot.optimizer, folder / "optimizer.safetensors")
            if snapshot.weighting:
                save_file(snapshot.weighting, folder / "weighting.safetensors")
            if snapshot.stream:
                save_file(snapshot.stream, folder / "stream.safetensors")
            state = {"step": snapshot.step, "micro_batch_size": snapshot.micro_batch_size}
            (folder / "trainer.json").write_bytes(orjson.dumps(state))

        return write


def _loop(book: _Book, training: Training, judges: Sequence[Judge], meters: _Meters, result: Trained) -> None:
    """Take every step that is left, with checkpoints and evaluations in between."""
    from curate.training.step_weights import Diverged

    trainer, settings = book.trainer, training.settings
    with _progress(book.run.name, trainer.steps, trainer.step, book.writes) as bar:
        try:
            for done in trainer.run():
                for phase, usage in done.usage.items():
                    meters.charge(phase, done.samples[phase], usage)
                book.enter(done, settings.keep_weights)
                result.steps_now += 1
                result.loss, result.weight_mean = done.metrics["loss"], done.metrics["weight_mean"]
                bar.update(1)
                bar.set_postfix(loss=f"{done.metrics['loss']:.3f}", refresh=False)
                last = done.step == trainer.steps
                due = settings.checkpoint_every and done.step % settings.checkpoint_every == 0
                if last or due or settings.checkpoint_epochs and done.last_of_epoch:
                    book.commit(last, settings.keep_checkpoints)
                if last or settings.eval_every and done.step % settings.eval_every == 0:
                    result.evaluations = _judge(book, judges, meters, done.step)
        except Diverged as error:
            good = (
                f"the checkpoint of step {book.last_good} is good" if book.last_good else "there is no checkpoint yet"
            )
            raise DivergedError(
                f"the run '{book.run.name}' was stopped: {error}, and {good}; take a smaller lr, or a clip above 0, "
                "and train under another name."
            ) from None
    if not result.steps_now:
        result.evaluations = _judge(book, judges, meters, trainer.step)
    book.trainer.processes.wait_for_everyone()


def _judge(book: _Book, judges: Sequence[Judge], meters: _Meters, step: int) -> list[dict[str, Any]]:
    """What the metrics find of the model as it is; by the first process."""
    if not book.writes or not judges:
        return []
    lm = book.model.model
    lm.model.eval()
    objective = book.trainer.objective
    stamp = fingerprint(book.run.stamp(step), objective.arithmetic())
    with objective.precision():
        return judged(book.run.ws, book.run.evaluations, judges, lm, step, stamp, meters["evaluate"])


def _progress(name: str, steps: int, done: int, shown: bool) -> AbstractContextManager[Any]:
    if not shown:
        return nullcontext(tqdm(disable=True))
    return tqdm(total=steps, initial=done, desc=name, unit="step", disable=None, leave=False)
