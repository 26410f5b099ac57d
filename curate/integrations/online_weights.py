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
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.integrations.base_losses import BaseLosses
from curate.integrations.collators import PLACES, Carrying, TokensOnly, shape_of
from curate.integrations.documents import documents_of
from curate.integrations.recording import Recording
from curate.integrations.refusals import refuse, refuse_settings, refuse_trainer, tell_half
from curate.integrations.step_selection import StepSelection
from curate.integrations.target import TargetLooks, causal_lm, target_samples
from curate.integrations.trainer_settings import settings_of
from curate.integrations.watched_model import Watched
from curate.integrations.window import Part, StepWeigher
from curate.kinds.weighting import Weighting
from curate.models.usage import Usage
from curate.numerics.statistics import effective_size
from curate.training.distributed import gather

STATE = "online_weights.safetensors"  # in the trainer's checkpoints
_VALUES = "curate_column"  # of a batch: the samples' values of the column
_PLAIN = "uniform"  # gives every sample the weight 1: the trainer is left as it is


class OnlineWeights:
    """A mix-in for transformers' Trainer: write it before the trainer's class.

    weighting: a weighting, or the name of one (`curate methods weighting`). anchors: the target's samples, for a
    weighting that compares with a target: dictionaries in any format that `curate ingest` reads, or with `input_ids`;
    or the name of a target in `workspace`. column: of the training set, for a weighting that uses one. run: a name,
    under which the training is recorded in `workspace`: its steps, its cost in the ledger, and the model at the end,
    for `curate evaluate` and `curate compare`; where the training set has the samples' ids in a column `id`, also each
    one's weight in every step.

    The log has the weights' mean and standard deviation, the least and the largest, and the effective share of the
    samples, (sum w)^2 / (n sum w^2); of a weighting that chooses also `candidate_loss`, the mean over all candidates'
    tokens, as the loss is that of the chosen, weighted. Checkpoints have the weighting's state, and training resumes
    from it.

    A weighting of single samples costs what it says of itself; one that needs all losses of a step keeps the graphs of
    the step's micro-batches until the last one is there, which takes the memory of a micro-batch as large as the step.

    options: the same arguments as an attribute of the class, for a trainer that another program makes.

    Raises CurateError for a weighting, or a trainer's setting, with which this cannot be done.
    """

    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *args: Any,
        weighting: Weighting | str | None = None,
        anchors: Sequence[Mapping[str, Any]] | str | None = None,
        workspace: AnyWorkspace | None = None,
        column: str | None = None,
        run: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        given = {"weighting": weighting, "anchors": anchors, "workspace": workspace, "column": column, "run": run}
        given |= {"settings": settings}
        names = tuple(given)
        given = {**self.options, **{name: value for name, value in given.items() if value is not None}}
        weighting, anchors, workspace, column, run, settings = (given.get(name) for name in names)
        if weighting is None:
            raise CurateError("OnlineWeights needs weighting=, one of `curate methods weighting`.")
        self._weighting, self._column = method_of(Weighting, weighting), column  # type: ignore[type-abstract]
        refuse(self._weighting, column)
        self._watched: Watched | None = None
        super().__init__(*args, **kwargs)
        trainer: Any = self
        tell_half(trainer.model)
        self._weigher = StepWeigher(self._weighting, trainer.accelerator)
        self._begun, self._iterator = False, None
        self._window: list[Part] = []
        self._held: list[Tensor] = []
        self._plain: list[float] = []
        self._logged: list[np.ndarray] = []
        self._of_candidates: list[float] = []
        self._looked: Usage | None = None
        self._looks: TargetLooks | None = None
        self._selection: StepSelection | None = None
        self._recording: Recording | None = None
        self._base: BaseLosses | None = None
        self._leaves = self._weighting.name == _PLAIN  # the trainer's loss as it is
        self._collate = trainer.data_collator
        needs = self._weighting.needs
        self._compares = "base_token_loss" in needs or "base_loss" in needs and column is None
        if self._compares:
            self._number_samples()
        if self._weighting.chooses:
            target = partial(target_samples, anchors, workspace)
            self._selection = StepSelection(trainer, self._weighting, target, settings)
            trainer.add_callback(_BeforeOptimizer(self._selection))
        else:
            refuse_settings(settings)
        if run is not None:
            own = self._selection.settings if self._selection else settings_of(trainer)
            self._recording = self._recorded(run, own, anchors, workspace)
        if self._leaves:
            return
        refuse_trainer(trainer, self._weigher.together)
        if column is not None:
            self._carry(column, _VALUES)
        if self._selection:
            return
        if self._weighting.uses_target:
            self._looks = TargetLooks(self._weighting, anchors, workspace, trainer)
        if "states" in self._weighting.needs:
            causal_lm(trainer.model).base_model.register_forward_hook(self._see)

    def _recorded(self, run: str, settings: Any, anchors: Any, workspace: AnyWorkspace | None) -> Recording:
        trainer: Any = self
        if workspace is None:
            raise CurateError(f"run='{run}' is recorded in a workspace; say in which, by workspace=.")
        ids = None
        columns = list(getattr(trainer.train_dataset, "column_names", None) or ())
        if "id" in columns:
            ids = trainer.train_dataset["id"]
            if not self._compares:
                self._number_samples()
        target = anchors if isinstance(anchors, str) else None
        return Recording(workspace_of(workspace), run, trainer, self._weighting, settings, target, ids)

    # --- what of the data goes with it -----------------------------------------------------------------------

    def _number_samples(self) -> None:
        """Let every sample's place in the training set go with the batches. Raises CurateError if that is packed."""
        trainer: Any = self
        names = list(getattr(trainer.train_dataset, "column_names", None) or ())
        if "seq_lengths" in names or not hasattr(trainer.train_dataset, "add_column"):
            raise CurateError(
                f"the weighting '{self._weighting.name}', or the recorded run, must know which samples a batch has: "
                "train without packing, on a Dataset of the library datasets."
            )
        trainer.train_dataset = trainer.train_dataset.add_column(PLACES, list(range(len(trainer.train_dataset))))
        self._carry(PLACES, PLACES)

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
        trainer.data_collator = Carrying(trainer.data_collator, column, name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        carried = [name for name in (self._column, PLACES) if name and name not in self._signature_columns]
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
            self._begun = True
            if self._selection:
                self._selection.begin(self._values())
            else:
                self._weigher.state = self._weighting.init(self._values())
        if self._recording and not self._recording.begun:
            self._recording.begin(trainer.state.global_step, trainer.state.max_steps)
            if self._base:
                self._recording.charge("base losses", self._base.samples, self._base.cost)
        number = trainer.state.global_step + 1
        if self._looks and self._looks.due(number, begun):
            self._weigher.state, self._looked = self._looks.take(number, self._weigher.state)

    def _values(self) -> np.ndarray | None:
        """The column of all samples, float64 [N]; of a weighting that compares with the base model, its mean losses."""
        trainer: Any = self
        if self._column is not None:
            return np.asarray(trainer.train_dataset[self._column], np.float64)
        return self._base.means() if self._base and "base_loss" in self._weighting.needs else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train and, if it is to be recorded, write the run."""
        if self._compares and self._base is None:  # before a checkpoint is loaded, if one is
            self._base = BaseLosses(self, self._weighting.name, TokensOnly(self._collate))
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
        column, places = inputs.pop(_VALUES, None), inputs.pop(PLACES, None)
        more = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        learns = trainer.model.training
        if not learns or self._leaves and not self._recording:
            return super().compute_loss(model, inputs, **more)  # type: ignore[misc]
        documents, shape = documents_of(inputs), shape_of(inputs)
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

        base = None
        if self._base and kept[1] is not None:
            base = self._base.tokens(kept[1])
            kept[0] = np.add.reduceat(base, np.cumsum(documents.counts) - documents.counts) / documents.counts

        def weighted(token: Tensor, states: Tensor | None) -> Tensor:
            return self._weighted(Part(token, documents.counts, states, kept[0], divisor, kept[1], shape, base=base))

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

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The trainer's step of a micro-batch; of a weighting that chooses, the last one's is the whole step's."""
        trainer: Any = self
        if self._selection is None:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        model.train()
        column, places = inputs.pop(_VALUES, None), inputs.pop(PLACES, None)
        if self._base and places is not None:
            column = torch.from_numpy(self._base.means()[places.cpu().numpy()])
        loss = 0.0
        if self._selection.add(inputs, column, places) == trainer.current_gradient_accumulation_steps:
            number = trainer.state.global_step + 1
            taken = self._selection.take(number, float(trainer._get_learning_rate()))
            if self._recording:
                self._recording.select(number, taken)
            if trainer.accelerator.is_main_process:  # they are of all processes
                self._logged.append(taken.step.seen[1])
            self._of_candidates.append(taken.candidate_loss)
            loss = taken.loss
        return torch.tensor(loss, device=trainer.args.device)

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
            if self._of_candidates:
                logs["candidate_loss"] = float(np.mean(self._of_candidates))
                self._of_candidates = []
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if self._recording:
            self._recording.save(trainer.state.global_step)
        if trainer.args.should_save and not self._leaves:
            folder = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
            own = self._selection or self._weigher
            (folder / STATE).write_bytes(own.stored())

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
        (self._selection or self._weigher).load(path.read_bytes())
        self._begun = True


class _BeforeOptimizer(TrainerCallback):  # type: ignore[misc]
    """Shows a selection the gradient that the optimizer is given."""

    def __init__(self, selection: StepSelection):
        self._selection = selection

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._selection.learnt()
