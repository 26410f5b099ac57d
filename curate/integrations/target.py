"""The looks of a trainer at a target: hidden states of its samples under the current model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.passes import Arrays
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.runs.tokenize import anchors_of
from curate.store.input_formats import Reader, Refused
from curate.store.schema import CONTENT
from curate.tables.inputs import load_target
from curate.training.dataset import Data
from curate.training.examples import Examples
from curate.training.looks import Looks
from curate.training.objective import Objective

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class TargetLooks:
    """Takes a weighting's looks at its target, and at some of the samples that are trained on, within a trainer.

    anchors: the target's samples: dictionaries in any format that `curate ingest` reads, or with `input_ids`; or the
    name of a target in `workspace`. Raises CurateError if there are none, or the processes hold parts of the model."""

    def __init__(
        self,
        weighting: Weighting,
        anchors: Sequence[Mapping[str, Any]] | str | None,
        workspace: AnyWorkspace | None,
        trainer: Any,
    ):
        objective = objective_of(trainer, weighting.name)
        self._lm = objective.model
        self._looks = Looks(weighting, objective, trainer.accelerator, trainer.args.seed, False)
        data = trainer.train_dataset
        self._data = Data.of(
            _some(data) if weighting.background else Examples.of([]),
            anchors=target_samples(anchors, workspace, self._lm),
        )

    def due(self, number: int, begun: int | None) -> bool:
        """Whether there is one before step `number`. begun: the epoch, from 0, that begins with it."""
        return self._looks.due(number, begun)

    @property
    def samples(self) -> int:
        """How many samples a look is over."""
        return self._looks.samples(self._data)

    def take(self, number: int, state: Arrays) -> tuple[Arrays, Usage]:
        """The weighting's state after the look before step `number`, and the cost."""
        return self._looks.take(number, self._data, state)


def target_samples(
    anchors: Sequence[Mapping[str, Any]] | str | None, workspace: AnyWorkspace | None, lm: LanguageModel
) -> Examples:
    """The target's samples, as tokens of a model. Raises CurateError if there are none, or one cannot be read."""
    if isinstance(anchors, str) and workspace is not None:
        target = load_target(workspace_of(workspace), anchors)
        return anchors_of(target.text.samples(), anchors, lm)
    if isinstance(anchors, str):
        raise CurateError(f"anchors='{anchors}' is the name of a target; say which workspace= has it.")
    rows = list(anchors or ())
    if not rows:
        raise CurateError(
            "this weighting compares samples with a target; give anchors=, a list of its samples, or the name of a "
            "target with workspace=."
        )
    if all("input_ids" in row for row in rows):
        return Examples.of([_encoded(row["input_ids"]) for row in rows])
    reader, samples = Reader("auto", {}), []
    for i, row in enumerate(rows):
        try:
            sample = reader.sample(dict(row))
        except Refused as refused:
            raise CurateError(f"anchors[{i}] {refused}.") from None
        samples.append({column: getattr(sample, column) for column in CONTENT})
    return anchors_of(samples, "anchors", lm)


def objective_of(trainer: Any, weighting: str) -> Objective:
    """The trainer's model, to be asked besides its training. Raises CurateError if the processes hold parts of it."""
    kind = trainer.accelerator.distributed_type.name
    if kind in _SHARDED:
        raise CurateError(
            f"{kind} holds a part of the model in each process, and the weighting '{weighting}' asks the whole one "
            "besides the training; train on one device, or with copies on several (DDP)."
        )
    model = causal_lm(trainer.model)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    was_training = model.training
    lm = LanguageModel(ModelChoice(model.config.name_or_path or "the model"), (model, tokenizer))
    model.train(was_training)
    return Objective(lm, bfloat16=bool(trainer.args.bf16))


def causal_lm(model: Any) -> Any:
    """The language model itself, without an adapter around it; its body is `base_model`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _encoded(ids: Sequence[int]) -> Encoded:
    tokens = np.asarray(ids, np.int32)
    return Encoded(tokens, np.arange(len(tokens)) > 0)


def _some(dataset: Any) -> Examples:
    """The documents that are trained on, as tokens."""
    encoded = []
    for row in dataset:
        ends = np.cumsum(row.get("seq_lengths") or [len(row["input_ids"])])
        parts = np.split(np.asarray(row["input_ids"], np.int32), ends[:-1])
        encoded += [_encoded(part.tolist()) for part in parts]
    return Examples.of(encoded)
