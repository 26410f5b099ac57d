"""A weight for every sample, anew in every step, in transformers' Trainer and what is made of it (TRL's SFTTrainer).

    class Weighted(OnlineWeights, SFTTrainer):
        pass

    Weighted(model=…, args=…, train_dataset=…, weighting="adapt", anchors=[…]).train()

A step's loss is  sum over its samples i of  w_i (sum of i's token losses) / N,  N the trainer's own number of
supervised tokens of the step, over all its micro-batches and processes: the trainer's loss, where every weight is 1.
The losses and hidden states that a weight is made of are those of the training's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.integrations.documents import documents_of
from curate.integrations.recording import Recording
from curate.integrations.target import TargetLooks, causal_lm
from curate.integrations.watched_model import Watched
from curate.integrations.window import Part, StepWeigher
from curate.kinds.weighting import Weighting
from curate.models.usage import Usage
from curate.numerics.statistics import effective_size
from curate.training.distributed import gather

STATE = "online_weights.safetensors"  # in the trainer's checkpoints
_VALUES = "curate_column"  # of a batch: the samples' values of the column
_PLACES = "curate_place"  # of a batch, and of the training set: where its samples are in that
_PLAIN = "uniform"  # gives every sample the weight 1: the trainer is left as it is
_NOT_YET = {"base_loss", "base_token_loss", "outputs", "domains"}


class OnlineWeights:
    """A mix-in for transformers' Trainer: write it before the trainer's class.

    weighting: a weighting, or the name of one (`curate methods weighting`). anchors: the target's samples, for a
    weighting that compares with a target: dictionaries in any format that `curate ingest` reads, or with `input_ids`;
    or the name of a target in `workspace`. column: of the training set, for a weighting that uses one. run: a name,
    under which the training is recorded in `workspace`: its steps, its cost in the ledger, and the model at the end,
    for `curate evaluate` and `curate compare`; where the training set has the samples' ids in a column `id`, also each
    one's weight in every step.

    The log has the weights' mean and standard deviation, the least and the largest, and the effective share of the
    samples, (sum w)^2 / (n sum w^2). Checkpoints have the weighting's state, and training resumes from it.

    A weighting of single samples costs what it says of itself; one that needs all losses of a step keeps the graphs of
    the step's micro-batches until the last one is there, which takes the memory of a micro-batch as large as the step.

    Raises CurateError for a weighting, or a trainer's setting, with which this cannot be done.
    """

    def __init__(
        self,
        *args: Any,
        weighting: Weighting | str,
        anchors: Sequence[Mapping[str, Any]] | str | None = None,
        workspace: AnyWorkspace | None = None,
        column: str | None = None,
        run: str | None = None,
        **kwargs: Any,
    ):
        self._weighting, self._column = method_of(Weighting, weighting), column  # type: ignore[type-abstract]
        _refuse(self._weighting, column)
        self._watched: Watched | None = None
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._weigher = StepWeigher(self._weighting, trainer.accelerator)
        self._begun, self._iterator = False, None
        self._window: list[Part] = []
        self._held: list[Tensor] = []
        self._plain: list[float] = []
        self._logged: list[np.ndarray] = []
        self._looked: Usage | None = None
        self._looks: TargetLooks | None = None
        self._recording: Recording | None = None
        self._leaves = self._weighting.name == _PLAIN  # the trainer's loss as it is
        if run is not None:
            self._recording = self._recorded(run, anchors, workspace)
        if self._leaves:
            return
        _refuse_trainer(trainer, self._weigher.together)
        if column is not None:
            self._carry(column, _VALUES)
        if self._weighting.uses_target:
            self._looks = TargetLooks(self._weighting, anchors, workspace, trainer)
        if "states" in self._weighting.needs:
            causal_lm(trainer.model).base_model.register_forward_hook(self._see)

    def _recorded(self, run: str, anchors: Any, workspace: AnyWorkspace | None) -> Recording:
        trainer: Any = self
        if workspace is None:
            raise CurateError(f"run='{run}' is recorded in a workspace; say in which, by workspace=.")
        ids = None
        columns = list(getattr(trainer.train_dataset, "column_names", None) or ())
        if "id" in columns:
            ids = trainer.train_dataset["id"]
            trainer.train_dataset = trainer.train_dataset.add_column(_PLACES, list(range(len(trainer.train_dataset))))
            self._carry(_PLACES, _PLACES)
        target = anchors if isinstance(anchors, str) else None
        return Recording(workspace_of(workspace), run, trainer, self._weighting, target, ids)

    # --- what of the data goes with it -----------------------------------------------------------------------

    def _carry(self, column: str, name: str) -> None:
        """Let the column go with the batches, as `name`. Raises CurateError if the training set has none."""
        trainer: Any = self
        names = list(getattr(trainer.train_dataset, "column_names", None) or ())
        if column not in names:
            packed = " (packing drops the columns of the samples)" if "seq_lengths" in names else ""
            raise CurateError(
                f"the training set has no column '{column}'{packed}, which the weighting '{self._weighting.name}' "
                f"uses; its columns are {', '.join(names) or 'unknown'}."
            )
        trainer.data_collator = _Carrying(trainer.data_collator, column, name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        carried = [name for name in (self._column, _PLACES) if name and name not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *carried]

    # --- a step ----------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step; before it, the looks at the target that are due."""
        self._before_step(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)  # type: ignore[misc]

    def _before_step(self, epoch_iterator: Iterator[Any]) -> None:
        trainer: Any = self
        begun = None
        if epoch_iterator is not self._iterator:
            self._iterator = epoch_iterator
            epoch = trainer.state.epoch or 0.0
            begun = round(epoch) if abs(epoch - round(epoch)) < 1e-6 else None  # else it goes on within one
        if not self._begun:
            values = None if self._column is None else np.asarray(trainer.train_dataset[self._column], np.float64)
            self._weigher.state, self._begun = self._weighting.init(values), True
            if self._recording:
                self._recording.begin(trainer.state.global_step, trainer.state.max_steps)
        number = trainer.state.global_step + 1
        if self._looks and self._looks.due(number, begun):
            self._weigher.state, self._looked = self._looks.take(number, self._weigher.state)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train and, if it is to be recorded, write the run."""
        if self._recording is None:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        with self._recording:
            result = super().train(*args, **kwargs)  # type: ignore[misc]
            self._recording.end(trainer.state.global_step)
        return result

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's loss of a micro-batch, with the weights; of one before the last of its step, where weights need
        all losses of the step, a 0: the last one's has theirs, too."""
        trainer: Any = self
        column, places = inputs.pop(_VALUES, None), inputs.pop(_PLACES, None)
        more = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        learns = trainer.model.training
        if not learns or self._leaves and not self._recording:
            return super().compute_loss(model, inputs, **more)  # type: ignore[misc]
        documents, shape = documents_of(inputs), _shape_of(inputs)
        kept = [None if one is None else one.cpu().numpy()[documents.kept] for one in (column, places)]
        divisor = len(documents.labels) if num_items_in_batch is None else num_items_in_batch
        if self._leaves:
            result = super().compute_loss(model, inputs, **more)  # type: ignore[misc]
            nothing = torch.zeros(0)
            part = Part(nothing, documents.counts, None, None, divisor, kept[1], shape, np.ones(len(documents.labels)))
            self._window.append(part)
            self._plain.append(float((result[0] if return_outputs else result).detach()))
            self._finish_step()
            return result

        def weighted(token: Tensor, states: Tensor | None) -> Tensor:
            return self._weighted(Part(token, documents.counts, states, kept[0], divisor, kept[1], shape))

        self._watched = watched = Watched(model, documents, "states" in self._weighting.needs, weighted)
        try:
            result = super().compute_loss(watched, inputs, **more)  # type: ignore[misc]
        finally:
            self._watched = None
        if not watched.called:
            raise CurateError(f"{type(self).__mro__[2].__name__} makes its loss without its model; weights need it.")
        loss, outputs = result if return_outputs else (result, None)
        loss = self._with_earlier(loss, num_items_in_batch is not None)
        return (loss, outputs) if return_outputs else loss

    @property
    def _is_last(self) -> bool:
        """Whether the last micro-batch of the step is there."""
        trainer: Any = self
        return len(self._window) == trainer.current_gradient_accumulation_steps

    def _weighted(self, part: Part) -> Tensor:
        """The losses of a micro-batch's tokens that are summed now: none, if their weights are not known yet."""
        trainer: Any = self
        self._window.append(part)
        if self._weigher.together and not self._is_last:
            return part.token.detach() * 0
        self._weigher.weigh(trainer.state.global_step + 1, self._window if self._weigher.together else [part])
        return part.weighted()

    def _with_earlier(self, loss: Tensor, over_all: bool) -> Tensor:
        """The trainer's loss of a micro-batch, with what waited for it, if the step's weights are known. over_all:
        whether its divisor is of all processes."""
        trainer: Any = self
        *earlier, last = self._window
        if not len(last.weights):
            if loss.requires_grad:  # what a trainer adds of its own, as a load-balancing loss
                self._held.append(loss)
            return torch.zeros((), device=loss.device, requires_grad=True)
        # As the trainer does with its own loss: the gradients of the processes are averaged.
        scale = trainer.accelerator.num_processes if over_all and trainer.args.average_tokens_across_devices else 1
        for part in earlier if self._weigher.together else ():
            loss = loss + scale * part.weighted().sum() / part.divisor
        loss, self._held = sum(self._held, loss), []
        last.forget()
        self._finish_step()
        return loss

    def _finish_step(self) -> None:
        """Note the weights of a step whose last micro-batch was there."""
        if not self._is_last:
            return
        parts, self._window = self._window, []
        self._logged += [part.of_documents for part in parts]
        if self._recording:
            trainer: Any = self
            own, self._plain = float(np.sum(self._plain)) if self._plain else np.nan, []
            looked = (self._looks.samples, self._looked) if self._looks and self._looked else None
            self._recording.enter(trainer.state.global_step + 1, parts, own, looked)
        self._looked = None

    def _see(self, module: Any, given: Any, output: Any) -> None:
        """Take the body's last hidden states, if it was called for a loss."""
        if self._watched is not None:
            self._watched.see(output.last_hidden_state)

    # --- what is kept ----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the weights since the last time."""
        if "loss" in logs and not self._leaves:
            trainer: Any = self
            ((weights, _),) = gather(trainer.accelerator, [np.concatenate([np.zeros(0), *self._logged])])
            self._logged = []
            if len(weights):
                logs |= {
                    "weight_mean": float(weights.mean()),
                    "weight_std": float(weights.std()),
                    "weight_min": float(weights.min()),
                    "weight_max": float(weights.max()),
                    "effective_share": effective_size(weights) / len(weights),
                }
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if self._recording:
            self._recording.save(trainer.state.global_step)
        if trainer.args.should_save and not self._leaves:
            folder = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
            state = {name: np.ascontiguousarray(values) for name, values in self._weigher.state.items()}
            (folder / STATE).write_bytes(save(state))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None or self._leaves:
            return
        path = Path(checkpoint, STATE)
        if not path.exists():
            raise CurateError(
                f"{checkpoint} has no {STATE}: it is of a training without these weights; go on from it without "
                "OnlineWeights, or begin anew."
            )
        self._weigher.state, self._begun = load(path.read_bytes()), True


class _Carrying:
    """A collator whose batches also have the values of a column, [n], as `name`, where every row has it."""

    def __init__(self, collator: Any, column: str, name: str):
        self._collator, self._column, self._name = collator, column, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collator, name)

    def __call__(self, rows: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        values = [row.get(self._column) for row in rows]
        others = [{key: value for key, value in row.items() if key != self._column} for row in rows]
        batch = dict(self._collator(others, *args, **kwargs))
        if any(value is None for value in values):
            return batch
        return {**batch, self._name: torch.from_numpy(np.asarray(values, np.int64 if self._name == _PLACES else float))}


def _shape_of(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows, tokens of a row, and tokens without padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return ids.shape[0], ids.shape[1], ids.numel() if mask is None else int(mask.sum())


def _refuse(weighting: Weighting, column: str | None) -> None:
    if weighting.chooses:
        raise CurateError(
            f"the weighting '{weighting.name}' chooses samples within a step, which only curate's own trainer does "
            "(`curate train --weighting`)."
        )
    needs = set(weighting.needs)
    if missing := sorted(needs & _NOT_YET - ({"base_loss"} if column else set())):
        of_column = "; give it as column=" if missing == ["base_loss"] else ", which only curate's own trainer has"
        raise CurateError(f"the weighting '{weighting.name}' needs {' and '.join(missing)}{of_column}.")
    if "column" in needs and column is None:
        raise CurateError(f"the weighting '{weighting.name}' uses a column of the training set; give column=.")
    if column is not None and not needs & {"column", "base_loss"}:
        raise CurateError(f"the weighting '{weighting.name}' uses no column; leave out column='{column}'.")


def _refuse_trainer(trainer: Any, together: bool) -> None:
    args = trainer.args
    if getattr(args, "loss_type", "nll") not in ("nll", "chunked_nll"):
        raise CurateError(f"loss_type={args.loss_type} weights tokens itself; take loss_type=nll.")
    if trainer.label_smoother is not None:
        raise CurateError("label_smoothing_factor makes a loss that is not of the labels alone; leave it out.")
    if trainer.compute_loss_func is not None:
        raise CurateError("compute_loss_func makes a loss of its own, which weights cannot enter; leave it out.")
    if together and trainer.accelerator.distributed_type.name == "DEEPSPEED":
        raise CurateError(
            "DeepSpeed takes every micro-batch's backward pass by itself, and this weighting needs all losses of a "
            "step before; use DDP."
        )
