"""What a training run needs before its first step: tokenised samples, anchors, base losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.score import Target
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.documents import Documents, documents_of
from curate.runs.samples import TrainingRows, require_drawable
from curate.runs.tokenize import anchors_of, encoded_one_by_one
from curate.store.ledger import Meters
from curate.store.run_record import Run

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.dataset import Data
    from curate.training.settings import TrainSettings
    from curate.training.trainable import TrainableModel


def on_device(choice: ModelChoice, processes: Any) -> ModelChoice:
    """The model on this process's device."""
    several = processes.num_processes > 1 and choice.device == "auto"
    return replace(choice, device=str(processes.device)) if several else choice


@dataclass(frozen=True)
class Prepared:
    """What a training reads. row: of each sample, its row in the pool, int64 [N]; None for a stream. left_out: reason
    -> samples that cannot be trained on. cut, partial: samples truncated to the
    context, and of which some turns are not supervised. flops: spent on the base losses. notes: what a reader should
    know of how it was prepared."""

    data: Data
    row: np.ndarray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0
    partial: int = 0
    flops: float = 0.0
    notes: Sequence[str] = ()

    @property
    def samples(self) -> int:
        """The number of samples to train on; 0 for a stream, where it is not known before."""
        return 0 if self.row is None else len(self.row)


def prepare_data(
    run: Run,
    training: TrainingSpec,
    rows: TrainingRows,
    target: Target | None,
    model: TrainableModel,
    meters: Meters,
    processes: Any,
) -> Prepared:
    """Tokenise the samples, and compute what the weighting needs beforehand. meters: charged for the base losses.

    Raises CurateError if no sample can be trained on.
    """
    from curate.training.dataset import Data

    if rows.draws and training.settings.order != "shuffle":
        order = training.settings.order
        raise CurateError(f"a mixture is sampled at random, so it has no order={order}; leave that out.")
    found = _kept_documents(run, rows, training, model, processes)
    reasons = found.left_out(rows)
    kept = _trainable(reasons, rows, training)
    examples = found.examples(kept)
    draws = rows.draws and replace(rows.draws, domain=rows.draws.domain[kept], keys=rows.draws.keys[kept])
    documents = np.repeat(np.arange(len(examples)), rows.repeats[kept][examples.sample])
    anchors = _anchors(target, model, training.settings)
    column, base, flops = None if rows.column is None else rows.column[kept], None, 0.0
    needs = training.weighting.needs
    if "base_token_loss" in needs or "base_loss" in needs and column is None:
        base, flops = _base_losses(run, training, examples, model, meters, processes)
        if column is None:
            column = _means(base, examples)
    data = Data(examples, documents, rows.weight[kept], column, anchors, base)
    if draws:
        require_drawable(draws, rows.domains)
        data = replace(data, draws=draws, vocabulary=len(model.model.tokenizer))
        data = replace(data, documents=data.of_epoch(0))
    left_out = Counter(reasons[reasons != ""].tolist())
    notes = found.tokens.notes
    return Prepared(data, rows.row[kept], left_out, **found.marked(kept), flops=flops, notes=notes)


def _kept_documents(
    run: Run, rows: TrainingRows, training: TrainingSpec, model: TrainableModel, processes: Any
) -> Documents:
    """The samples in tokens; looked up once for several trainings of the same model and settings."""
    if rows.kept:
        return rows.kept["documents"]
    found = documents_of(run.ws, rows, training.settings, model.model, processes)
    if rows.kept is not None:
        rows.kept["documents"] = found
    return found


def _trainable(reasons: np.ndarray, rows: TrainingRows, training: TrainingSpec) -> np.ndarray:
    """Positions in `rows` of the samples that can be trained on, in order. reasons: why each cannot be, '' if it can.

    Raises CurateError if there is none.
    """
    kept = np.flatnonzero(reasons == "")
    if not len(kept):
        raise CurateError(f"none of the {len(rows.row)} samples can be trained on: {next(iter(reasons), '')}.")
    if training.settings.order == "pool":
        kept = kept[np.argsort(rows.row[kept], kind="stable")]
    return kept


def _anchors(target: Target | None, model: TrainableModel, settings: TrainSettings) -> Any:
    """The target's tokenised samples; None without a target."""
    if target is None:
        return None
    return anchors_of(target.text.samples(), target.name, model.model, settings.add_eos_token)


def prepare_stream(training: TrainingSpec, target: Target | None, model: TrainableModel, processes: Any) -> Prepared:
    """Training data that is read from a stream during training. Raises CurateError for several processes."""
    from curate.training.dataset import Data
    from curate.training.examples import Examples
    from curate.training.stream import Stream

    source = training.stream
    assert source is not None
    if processes.num_processes > 1:
        raise CurateError("a stream is read by one process, and several are running; train in one.")
    samples = encoded_one_by_one(source.records, training.settings, model.model)
    stream = Stream(samples, source.past.memory, source.past.replay, training.seed)
    return Prepared(
        replace(Data.of(Examples.of([])), anchors=_anchors(target, model, training.settings), stream=stream)
    )


def _base_losses(
    run: Run, training: TrainingSpec, examples: Any, model: TrainableModel, meters: Meters, processes: Any
) -> tuple[np.ndarray, float]:
    """The loss of every supervised token under the model that training started from, or the reference, and the FLOPs
    spent on it; stored, so that a resumed run does not recompute it."""
    from curate.store.commits import Parts
    from curate.training.inference import base_losses
    from curate.training.objective import Objective
    from curate.training.trainable import trainable

    parts = Parts(run.folder / "base", ".safetensors")
    stamp = fingerprint(examples.lengths.tolist(), examples.checksum())
    stored, record = parts.read("losses"), parts.record("losses") or {}
    if stored is not None and record.get("stamp") == stamp:
        return stored["loss"], 0.0
    if training.reference:
        trained_model = model.model
        model = trainable(on_device(training.reference, processes), replace(training.settings, lora_r=0))
        _refuse_other_words(training.reference.name, trained_model, model.model)
    elif run.checkpoints():  # the given model has been trained already
        given = Path(training.carried) if training.carried else None
        model = trainable(on_device(training.model, processes), training.settings, given, training.seed)
    bfloat16 = training.settings.in_bfloat16(model.model.device.type)  # as in training: else loss differences are noise
    objective, n = Objective(model.model, bfloat16, training.settings.compile), processes.num_processes
    losses, usage = base_losses(objective, examples, training.settings.count_flops, n)
    meters.charge("base losses", len(examples), usage)
    if processes.is_main_process:
        parts.commit("losses", {"loss": losses}, stamp=stamp)
    return losses, usage.flops


def _refuse_other_words(name: str, model: Any, reference: Any) -> None:
    """Raises CurateError for a reference model whose losses would be of other tokens."""
    if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab() or reference.context < model.context:
        difference = (
            "another vocabulary" if reference.context >= model.context else f"a context of {reference.context} tokens"
        )
        raise CurateError(
            f"the reference {name} has {difference}, and the model that is trained {len(model.tokenizer):,} tokens and "
            f"a context of {model.context}; compare with one of the same tokenizer."
        )


def _means(base: np.ndarray, examples: Any) -> np.ndarray:
    """Each sample's mean loss over the supervised tokens of all its documents."""
    sums = np.add.reduceat(base, np.cumsum(examples.counts) - examples.counts)
    return np.bincount(examples.sample, sums) / np.bincount(examples.sample, examples.counts)
