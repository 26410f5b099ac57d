"""What a training run needs before its first step: tokenised samples, anchors, base losses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.score import Target
from curate.models.choice import ModelChoice
from curate.runs.account import RunMeters, Trained
from curate.runs.config import TrainingSpec
from curate.runs.samples import TrainingRows, require_drawable
from curate.runs.tokenize import anchors_of, documents_of, encoded_one_by_one, left_out
from curate.store.run_record import Run

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.models.tokens import Encoded
    from curate.training.dataset import Data
    from curate.training.trainable import TrainableModel


def on_device(choice: ModelChoice, processes: Any) -> ModelChoice:
    """The model on this process's device."""
    several = processes.num_processes > 1 and choice.device == "auto"
    return replace(choice, device=str(processes.device)) if several else choice


def prepare_data(
    run: Run,
    training: TrainingSpec,
    rows: TrainingRows,
    target: Target | None,
    model: TrainableModel,
    meters: RunMeters,
    result: Trained,
    processes: Any,
) -> tuple[Data, np.ndarray]:
    """The training data, and the positions in `rows` of the samples that remain. Raises CurateError if none does."""
    from curate.training.dataset import Data
    from curate.training.examples import Examples

    if rows.draws and training.settings.order != "shuffle":
        order = training.settings.order
        raise CurateError(f"a mixture is sampled at random, so it has no order={order}; leave that out.")
    encoded = documents_of(run.ws, rows, training.settings, model.model)
    places = _trainable(encoded, rows, training, result)
    pieces = [(position, piece) for position, place in enumerate(places) for piece in encoded[place]]
    result.samples, result.cut = len(places), result.cut + sum(piece.cut for _, piece in pieces)
    examples = Examples.of([piece for _, piece in pieces], [position for position, _ in pieces])
    draws = rows.draws and replace(rows.draws, domain=rows.draws.domain[places], keys=rows.draws.keys[places])
    documents = np.repeat(np.arange(len(pieces)), rows.repeats[places][examples.sample])
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


def _trainable(encoded: list[list[Encoded]], rows: TrainingRows, training: TrainingSpec, result: Trained) -> np.ndarray:
    """Positions in `rows` of the samples that can be trained on, in order; the others are counted by reason.

    Raises CurateError if there is none.
    """
    whys = left_out(encoded, rows)
    for why in filter(None, whys):
        result.left_out[why] = result.left_out.get(why, 0) + 1
    places = np.flatnonzero(np.array([not why for why in whys]))
    if not len(places):
        raise CurateError(f"none of the {len(rows.row)} samples can be trained on: {next(iter(result.left_out), '')}.")
    if training.settings.order == "pool":
        places = places[np.argsort(rows.row[places], kind="stable")]
    return places


def _anchors(target: Target | None, model: TrainableModel) -> Any:
    """The target's tokenised samples; None without a target."""
    if target is None:
        return None
    return anchors_of(target.text.frame.select("messages", "text").to_dicts(), target.name, model.model)


def prepare_stream(training: TrainingSpec, target: Target | None, model: TrainableModel, processes: Any) -> Data:
    """Training data that is read from a stream during training. Raises CurateError for several processes."""
    from curate.training.dataset import Data
    from curate.training.examples import Examples
    from curate.training.stream import Stream

    feed = training.stream
    assert feed is not None
    if processes.num_processes > 1:
        raise CurateError("a stream is read by one process, and several are running; train in one.")
    samples = encoded_one_by_one(feed.records, training.settings, model.model)
    stream = Stream(samples, feed.past.memory, feed.past.replay, training.seed)
    return replace(Data.of(Examples.of([])), anchors=_anchors(target, model), stream=stream)


def _base_losses(
    run: Run, training: TrainingSpec, examples: Any, model: TrainableModel, meters: RunMeters, processes: Any
) -> np.ndarray:
    """The loss of every supervised token under the model that training started from, or the reference; stored, so that
    a resumed run does not recompute it."""
    from curate.store.commits import Parts
    from curate.training.inference import base_losses
    from curate.training.objective import Objective
    from curate.training.trainable import trainable

    parts = Parts(run.folder / "base", ".safetensors")
    stamp = fingerprint(examples.lengths.tolist(), int(examples.ids.astype(np.int64).sum()))
    stored, record = parts.read("losses"), parts.record("losses") or {}
    if stored is not None and record.get("stamp") == stamp:
        return stored["loss"]
    if training.reference:
        own, model = (
            model.model,
            trainable(on_device(training.reference, processes), replace(training.settings, lora_r=0)),
        )
        _refuse_other_words(training.reference.name, own, model.model)
    elif run.checkpoints():  # the given model has been trained already
        model = trainable(on_device(training.model, processes), training.settings)
    bfloat16 = training.settings.in_bfloat16(model.model.device.type)  # as in training: else loss differences are noise
    objective, n = Objective(model.model, bfloat16), processes.num_processes
    found, usage = base_losses(objective, examples, training.settings.count_flops, n)
    meters.charge("base losses", len(examples), usage)
    if processes.is_main_process:
        parts.commit("losses", {"loss": found}, stamp=stamp)
    return found


def _refuse_other_words(name: str, own: Any, other: Any) -> None:
    """Raises CurateError for a reference model whose losses would be of other tokens."""
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
