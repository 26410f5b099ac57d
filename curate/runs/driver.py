"""Runs a training from its latest checkpoint: used by the verb `train`, and for warm-ups of scores and proxy models.

Started by `accelerate launch` or `torchrun`, it is one of several processes, of which only the first writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import structs

from curate.errors import CurateError, CurateFailure, DivergedError
from curate.hashing import fingerprint
from curate.kinds.score import Target
from curate.machine import forget_peak, peak_bytes
from curate.models.choice import ModelChoice
from curate.models.tensor_files import read_arrays, read_tensors
from curate.progress import Progress
from curate.runs.account import Account, Trained, run_meters
from curate.runs.carried import carried_snapshot
from curate.runs.config import TrainingSpec, refuse_other_run, run_recipe
from curate.runs.curves import step_flops_of
from curate.runs.evaluation import EvalSpec, evaluate_model
from curate.runs.fitted_mask import refreshed
from curate.runs.prepare import on_device, prepare_data, prepare_stream
from curate.runs.recorder import Recorder
from curate.runs.samples import TrainingRows
from curate.runs.shared_judging import agreed
from curate.store.files import remove_tree
from curate.store.ledger import Meters
from curate.store.recipes import known
from curate.store.run_record import Checkpoint, Run
from curate.tables.run_costs import costs_of

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.budget import Budget
    from curate.training.dataset import Data
    from curate.training.loop import Trainer
    from curate.training.masked_parameters import Refreshed
    from curate.training.trainable import TrainableModel


def _opened(run: Run, training: TrainingSpec, rows: TrainingRows | None, target: Target | None) -> None:
    """Start the run, or check that the existing one has the same recipe. Raises CurateError if it differs."""
    recipe, existing = run_recipe(run.ws, run.name, training, rows, target), run.recipe
    if existing is not None:
        try:
            refuse_other_run(run.name, existing, recipe)
        except CurateError:
            if not run.beside and run.place is None:
                raise
            remove_tree(run.folder, marker="run.json")  # left by an earlier interrupted --fresh
            existing = None
    if existing is None:
        remove_tree(run.folder)  # left by an interrupted removal
        run.begin(structs.replace(recipe, account=run.account))
    run.remove_leftovers()


@contextmanager
def _forgotten_if_refused(run: Run, writes: bool) -> Iterator[None]:
    """What is refused before its first checkpoint is no run: the same name can be trained as it should have been."""
    try:
        yield
    except CurateError as error:
        if writes and not isinstance(error, CurateFailure) and not run.checkpoints():
            run.forget()
        raise


def run_training(
    run: Run,
    training: TrainingSpec,
    rows: TrainingRows | None,
    target: Target | None,
    processes: Any,
    *,
    evals: Sequence[EvalSpec] = (),
    account: Account | None = None,
) -> Trained:
    """Train a run to its end. Only to be called by the lock's holder and its fellow processes.

    rows: None when training on a stream. account: how the costs are entered in the ledger; None: as the run's own.

    Raises CurateError if a run of that name exists with another recipe, DivergedError if the loss diverges.
    """
    if processes.is_main_process:
        _opened(run, training, rows, target)
    processes.wait_for_everyone()
    from curate.training.trainable import trainable

    checkpoints = run.checkpoints()
    start = checkpoints[-1] if checkpoints else None
    with ExitStack() as stack:
        stack.enter_context(_forgotten_if_refused(run, processes.is_main_process))
        folder = stack.enter_context(start.local()) if start else None
        drawn = training.seed if run.place is None else 0  # what scores rest on stays what it is
        begun = folder or (Path(training.carried) if training.carried else None)
        model = trainable(on_device(training.model, processes), training.settings, begun, drawn)
        if training.settings.fsdp and processes.num_processes > 1:
            _shard(model, processes, evals)
        _forget_peak(model.model.device)
        meters = run_meters(run, training, account, stack, processes.is_main_process)
        if rows is None:
            prepared = prepare_stream(training, target, model, processes)
        else:
            prepared = prepare_data(run, training, rows, target, model, meters, processes)
        mask = refreshed(training.mask, training.masking, model.model.model) if training.mask else None
        budget = _budget(run, training, prepared.flops)
        trainer = _trainer(model, prepared.data, training, processes, start, folder, mask, budget)
        recorder = Recorder(run, trainer, model, prepared.row, start, processes.is_main_process)
        n_trainable = _trainable_elements(trainer, mask)
        _add_to_recipe(
            run,
            processes,
            steps=trainer.steps,
            samples=prepared.samples,
            trainable=n_trainable,
            optimizer_bytes=(12 if mask else 8) * n_trainable,
        )
        marks = _Marks(training.settings.eval_flops, budget.spent + float(step_flops_of(run).sum()))
        totals = _loop(recorder, training, evals, meters, marks, account is None or account.in_papers)
        samples, excluded = prepared.samples, prepared.left_out
        if stream := trainer.data.stream:
            samples, excluded = stream.taken, stream.left_out
            _add_to_recipe(run, processes, samples=samples)
        if totals.steps:  # a run that was complete already is left unchanged
            peak = max(_peak(model.model.device), run.require_recipe().peak_bytes or 0)
            _add_to_recipe(run, processes, peak_bytes=peak)
        return Trained(
            run.name,
            steps=trainer.steps,
            steps_now=totals.steps,
            samples=samples,
            left_out=dict(excluded),
            cut=prepared.cut,
            partial=prepared.partial,
            loss=totals.loss,
            weight_mean=totals.weight_mean,
            flops=totals.flops + prepared.flops,
            evaluations=totals.evaluations,
            warnings=list(prepared.notes),
        )


def _shard(model: TrainableModel, processes: Any, evals: Sequence[EvalSpec]) -> None:
    """Shard the model over the processes. Raises CurateError if it is to be evaluated by one of them meanwhile."""
    from curate.training.sharded_layers import shard

    if evals:
        raise CurateError("with fsdp each process has a part of the model, which none can evaluate; leave out --eval, "
                          "and `curate evaluate` the run afterwards.")  # fmt: skip
    shard(model.model, processes)


def _budget(run: Run, training: TrainingSpec, spent: float) -> Budget:
    """The run's budget in FLOPs. spent: on losses of the base model. Once known, its steps are those of the recipe, as
    the ledger may since have more of what was paid before."""
    from curate.training.budget import Budget

    recipe, settings = run.require_recipe(), training.settings
    if settings.flops and settings.flops_for == "everything":
        spent += costs_of(run.ws, {run.name: recipe}, {run.name: run.name})[0][run.name].prep
    return Budget(settings.flops, spent, known(recipe.steps) or 0 if settings.flops else 0)


def _trainable_elements(trainer: Trainer, mask: Refreshed | None) -> int:
    """The number of parameter elements that are trained."""
    if mask:
        return sum(len(positions) for positions in mask.selected.values())
    return sum(parameter.numel() for parameter in trainer.whole.values())


def _forget_peak(device: Any) -> None:
    import torch

    forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: Any) -> int:
    """Peak memory in bytes since training began: of the GPU, or of this process."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def processes_of(choice: ModelChoice) -> Any:
    """An Accelerator if accelerate or torchrun has started several processes, otherwise `Alone()`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        from curate.training.distributed import Alone

        return Alone()
    from accelerate import Accelerator, InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first evaluates
    return Accelerator(cpu=choice.device == "cpu", mixed_precision="no", kwargs_handlers=[patient])


def _add_to_recipe(run: Run, processes: Any, **changes: int) -> None:
    """Add to run.json what is known once the samples are tokenised."""
    if processes.is_main_process:
        recipe = run.require_recipe()
        if (updated := structs.replace(recipe, **changes)) != recipe:
            run.begin(updated)
    processes.wait_for_everyone()


def _trainer(
    model: TrainableModel,
    data: Data,
    training: TrainingSpec,
    processes: Any,
    start: Checkpoint | None,
    folder: Path | None,
    mask: Refreshed | None,
    budget: Budget,
) -> Trainer:
    from curate.training.loop import Snapshot, Trainer

    snapshot = carried_snapshot(Path(training.carried)) if training.carried else None
    if start and folder:
        state = folder / "weighting.safetensors"
        size = orjson.loads((folder / "trainer.json").read_bytes()).get("micro_batch_size", 0)
        tensors, arrays = read_tensors(folder / "optimizer.safetensors"), read_arrays(state) if state.exists() else {}
        streamed = folder / "stream.safetensors"
        stream = read_arrays(streamed) if streamed.exists() else {}
        if stream and data.stream and training.stream:
            data.stream.load(stream, skip=not training.stream.past.continues)
        snapshot = Snapshot(start.step, tensors, arrays, size, stream)
    how = (training.settings, training.weighting, processes, training.seed)
    return Trainer(model.model, data, *how, snapshot, mask, budget)


@dataclass
class _Taken:
    """The steps that were taken now: their number and FLOPs, the last one's figures, the latest evaluations."""

    steps: int = 0
    flops: float = 0.0
    loss: float | None = None
    weight_mean: float | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Marks:
    """Evaluations every so many FLOPs (0: none). spent: what has been spent so far."""

    every: float
    spent: float

    def passed(self, flops: float) -> bool:
        """Whether a step of so many FLOPs passes one."""
        before, self.spent = self.spent, self.spent + flops
        return bool(self.every) and self.spent // self.every > before // self.every


def _loop(
    recorder: Recorder,
    training: TrainingSpec,
    evals: Sequence[EvalSpec],
    meters: Meters,
    marks: _Marks,
    in_papers: bool,
) -> _Taken:
    """Take every remaining step, with checkpoints and evaluations in between. in_papers: whether the papers' convention
    counts it."""
    from curate.training.step_weights import Diverged

    trainer, settings, totals = recorder.trainer, training.settings, _Taken()
    name, done, shown = recorder.run.name, trainer.step, recorder.writes
    with Progress(name, trainer.steps, done=done, noun="steps", shown=shown, listens=False) as bar:
        try:
            for step_result in trainer.run():
                for phase, usage in step_result.usage.items():
                    usage.flops_paper *= in_papers
                    meters.charge(phase, step_result.samples[phase], usage)
                    totals.flops += usage.flops
                recorder.enter(step_result, settings.keep_weights)
                totals.steps += 1
                totals.loss, totals.weight_mean = step_result.metrics["loss"], step_result.metrics["weight_mean"]
                bar.finished(1, step_result.metrics["tokens"], f"loss {totals.loss:.3f}")
                is_last, number = step_result.step == trainer.steps, step_result.step
                passed = marks.passed(step_result.metrics["flops"])
                if evals and marks.every:  # all judge together, and each counts its own FLOPs
                    passed = agreed(trainer.processes, passed)
                is_due = settings.checkpoint_every and number % settings.checkpoint_every == 0
                if is_last or is_due or settings.checkpoint_epochs and step_result.last_of_epoch:
                    recorder.commit(is_last, settings.keep_checkpoints)
                if is_last or passed or settings.eval_every and number % settings.eval_every == 0:
                    totals.evaluations = _evaluate(recorder, evals, meters, number)
        except Diverged as error:
            raise DivergedError(
                f"the run '{recorder.run.name}' was stopped: {error}, and {_last_good(recorder)}; use a smaller lr, "
                "or a clip above 0, and train under another name."
            ) from None
    if not totals.steps:
        totals.evaluations = _evaluate(recorder, evals, meters, trainer.step)
    trainer.processes.wait_for_everyone()
    return totals


def _last_good(recorder: Recorder) -> str:
    step = recorder.last_good
    return f"the checkpoint of step {step} is good" if step else "there is no checkpoint yet"


def _evaluate(recorder: Recorder, evals: Sequence[EvalSpec], meters: Meters, step: int) -> list[dict[str, Any]]:
    """Evaluate the current model by the metrics, in all processes; only the first one has the results."""
    if not evals:
        return []
    lm = recorder.model.model
    lm.model.eval()
    objective = recorder.trainer.objective
    stamp = fingerprint(recorder.run.stamp(step), objective.arithmetic())
    with objective.precision():
        meter, processes = meters["evaluate"] if recorder.writes else None, recorder.trainer.processes
        return evaluate_model(recorder.run.ws, recorder.run.evaluations, evals, lm, step, stamp, meter, processes)
