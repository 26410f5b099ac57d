"""A training by another trainer, recorded as a run of a workspace: its steps, its cost, its model at the end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from curate.errors import CurateError
from curate.integrations.step_selection import Taken
from curate.integrations.target import causal_lm
from curate.integrations.trainer_settings import recomputes
from curate.integrations.window import Part
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.models.flops import TRAINING, TrainingFlops, paper_flops
from curate.models.usage import Usage
from curate.numerics.statistics import effective_size
from curate.runs.samples import pool_ids
from curate.store.ledger import Meters
from curate.store.locks import lock
from curate.store.recipes import RunRecipe
from curate.store.run_record import Run
from curate.store.schema import METRICS, TRAINED
from curate.store.workspace import Workspace, __version__
from curate.tables.inputs import method_recipe, model_recipe, target_fingerprint
from curate.training.distributed import gather
from curate.training.settings import TrainSettings
from curate.training.step_costs import step_metrics

_PHASES = ("train", "anchors", "base losses")
_SELECTING = ("train", "candidates", "selection", "target", "losses", "base losses")


class Recording:
    """Writes a run of a workspace as the trainer goes. Only the first process writes.

    settings: the trainer's, as `curate train` has them. ids: of the training set's samples in the pool, [N]; None: they
    are not known, and the table `trained` has none. Raises CurateError for a run of that name that is finished, or was
    not this trainer's, unless it is resumed."""

    def __init__(
        self,
        ws: Workspace,
        name: str,
        trainer: Any,
        weighting: Weighting,
        settings: TrainSettings,
        target: str | None,
        ids: Sequence[str] | None,
    ):
        ws.check_name(name, "run")
        self._ws, self._name, self._trainer, self._weighting = ws, name, trainer, weighting
        self._settings = settings
        self._target, self._run, self._stack = target, Run(ws, name), ExitStack()
        self._writes = trainer.accelerator.is_main_process
        self._rows = None if ids is None else _rows_of(ws, ids)
        self._metrics: list[dict[str, Any]] = []
        self._trained: list[pa.Table] = []
        self._flops: TrainingFlops | None = None
        self._meters: Meters | None = None
        self._saved = 0
        self.begun = False

    def __enter__(self) -> Recording:
        model = causal_lm(self._trainer.model)
        was_training = model.training
        self._flops = TrainingFlops(model)
        model.train(was_training)
        if self._writes:
            self._stack.enter_context(lock(self._ws, f"run {self._name}"))
        columns = {"methods": [self._weighting.name], "name": self._name, "model": model.config.name_or_path}
        names = _SELECTING if self._weighting.chooses else _PHASES
        phases = {phase: phase for phase in names} if self._writes else {}
        self._meters = Meters(self._ws.path, "train", phases, self._stack, **columns, run=self._run.account)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self, step: int, steps: int) -> None:
        """Write the run's recipe before the first step, or go on with what is recorded up to `step`."""
        self._saved, self.begun = step, True
        if not self._writes:
            return
        recipe = self._recipe(steps)
        existing = self._run.recipe
        if existing is not None and not existing.trainer:
            raise CurateError(f"the run '{self._name}' was trained by curate; record this training under another name.")
        if existing is not None and self._run.is_complete():
            raise CurateError(
                f"the run '{self._name}' exists and is finished; record this training under another name, or "
                f"`curate drop {self._name}` first."
            )
        if existing is not None and not step:
            self._run.forget()
            existing = None
        if existing is None:
            self._run.begin(recipe)
        for parts in (self._run.metrics, self._run.trained):
            for name in parts.names():
                if int(name.removeprefix("part-")) > step:  # of a training that was killed behind its checkpoint
                    parts.remove(name)

    def charge(self, phase: str, samples: int, cost: Usage) -> None:
        """Enter a cost in the ledger that is not a step's."""
        assert self._meters is not None
        if self._writes:
            self._meters.charge(phase, samples, cost)

    def enter(self, number: int, parts: list[Part], loss: float, look: tuple[int, Usage] | None) -> None:
        """Add a step. loss: its mean over the supervised tokens, where the documents' losses are not known. look: the
        samples and the cost of a look at the target before it."""
        trainer = self._trainer
        processes = trainer.accelerator
        weights, losses, measures, counts, places = _together(processes, parts)
        assert self._flops is not None and self._meters is not None
        again, flops, tokens, padded = recomputes(trainer.args), 0.0, 0, 0
        for rows, longest, its in (part.shape for part in parts):
            flops += self._flops.step(rows, longest, rows * longest, again)  # these trainers make all logits
            tokens, padded = tokens + its, padded + rows * longest
        ((sums, _),) = gather(processes, [np.array([[flops, tokens, padded, loss]], np.float64)])
        flops, tokens, padded, _ = sums.sum(0).tolist()
        loss = float(sums[:, 3].mean())
        if not self._writes:
            return
        model = self._flops.model
        cost = Usage(str(trainer.args.device.type), sum(p.numel() for p in model.parameters()))
        cost.tokens, cost.padded_tokens, cost.flops, cost.seconds = int(tokens), int(padded), flops, None
        cost.flops_paper = paper_flops(TRAINING, cost.n_params, len(weights))
        self._meters.charge("train", len(weights), cost)
        if look is not None:
            self.charge("anchors", *look)
        known = np.isfinite(losses)
        epoch = int(trainer.state.epoch or 0) + 1
        mean = float((losses * counts)[known].sum() / counts[known].sum()) if known.any() else loss
        self._metrics.append(
            {
                "step": number,
                "epoch": epoch,
                "loss": mean,
                "weighted_loss": float((weights * losses * counts)[known].sum() / counts.sum())
                if known.any()
                else loss,
                "lr": float(trainer._get_learning_rate()),
                "samples": len(weights),
                "tokens": int(tokens),
                "supervised": int(counts.sum()),
                "weight_mean": float(weights.mean()),
                "weight_min": float(weights.min()),
                "weight_max": float(weights.max()),
                "weights": len(weights),
                "effective_samples": effective_size(np.abs(weights)),
                "chosen": int((weights != 0).sum()),
                "unfit": 0,
                "fallback": 0,
                "flops": flops + (look[1].flops if look else 0.0),
            }
        )
        self._note(number, places, weights, losses, measures)

    def select(self, number: int, taken: Taken) -> None:
        """Add a step that was selected in."""
        if not self._writes:
            return
        trainer, step = self._trainer, taken.step
        for phase, cost in taken.costs.items():
            self.charge(phase, taken.samples[phase], cost)
        epoch = int(trainer.state.epoch or 0)
        metrics = step_metrics(taken.examples, self._settings, step.seen, number, epoch, 1, np.nan, step.divisor)
        of_the_trainer = {"lr": float(trainer._get_learning_rate()), "grad_norm": None}
        flops = sum(cost.flops for cost in taken.costs.values())
        counts = {"unfit": step.unfit, "fallback": int(step.fallback), "flops": flops}
        self._metrics.append({**metrics, **of_the_trainer, **counts})
        self._note(number, taken.places, *step.seen[1:4])

    def _note(
        self, number: int, places: np.ndarray, weights: np.ndarray, losses: np.ndarray, measures: np.ndarray
    ) -> None:
        """Add a step's samples to the table `trained`, if it is known which they are."""
        if self._rows is None or not (places >= 0).all():
            return
        n, epoch = len(weights), int(self._trainer.state.epoch or 0) + 1
        columns = {"step": np.full(n, number), "epoch": np.full(n, epoch), "row": self._rows[places]}
        floats = {"weight": weights, "loss": losses, "measure": measures}
        columns |= {name: values.astype(np.float32) for name, values in floats.items()}
        self._trained.append(pa.table(columns, schema=TRAINED))

    def save(self, step: int) -> None:
        """Write the rows since the last time, with a checkpoint of the trainer's."""
        if not self._writes or step == self._saved:
            return
        tables = self._tables()
        for kind, table in tables.items():
            if table is not None and table.num_rows:
                (self._run.metrics if kind == "metrics" else self._run.trained).commit(f"part-{step:06d}", table)
        self._saved = step

    def end(self, step: int) -> None:
        """Write the model that was trained, and the run is complete."""
        trainer = self._trainer
        if not self._writes:
            return

        def write(folder: Path) -> None:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            with suppress(AttributeError):
                trainer.processing_class.save_pretrained(folder)
            (folder / "trainer.json").write_bytes(orjson.dumps({"step": step, "micro_batch_size": 0}))

        self._run.commit(step, True, self._tables(), write)
        for parts in (self._run.metrics, self._run.trained):
            parts.certify()

    def _tables(self) -> dict[str, pa.Table | None]:
        tables = {
            "metrics": pa.Table.from_pylist(self._metrics, schema=METRICS) if self._metrics else None,
            "trained": pa.concat_tables(self._trained) if self._trained else None,
        }
        self._metrics, self._trained = [], []
        return tables

    def _recipe(self, steps: int) -> RunRecipe:
        trainer, args, settings = self._trainer, self._trainer.args, self._settings
        model = causal_lm(trainer.model)
        every, default = asdict(settings), asdict(TrainSettings())
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        return RunRecipe(
            name=self._name,
            curate=__version__,
            model=model_recipe(ModelChoice(model.config.name_or_path)),
            manifest=None,
            selection=None,
            weighting=method_recipe(self._weighting),
            by=None,
            scores={},
            target=self._target,
            target_fingerprint=target_fingerprint(self._ws, self._target) if self._target else None,
            settings=every,
            changed={key: value for key, value in every.items() if value != default[key]},
            seed=args.seed,
            samples=len(trainer.train_dataset),
            steps=steps,
            trainable=trained,
            optimizer_bytes=8 * trained,
            trainer=trainer_name(trainer),
            account=self._run.account,
        )


def _together(processes: Any, parts: list[Part]) -> list[np.ndarray]:
    """Of all documents of a step, in all processes: weights, losses, measures (NaN where they are not known),
    supervised tokens, and places in the training set (-1 where they are not known)."""
    columns = []
    for part in parts:
        n = len(part.counts)
        losses = part.losses if len(part.token) else np.full(n, np.nan)
        measures = losses if part.measure is None else part.measure
        places = np.full(n, -1) if part.places is None else part.places
        columns.append((part.of_documents, losses, measures, part.counts, places))
    joined = [np.concatenate(values) for values in zip(*columns, strict=True)]
    return [values for values, _ in gather(processes, joined)]


def trainer_name(trainer: Any) -> str:
    """The trainer's class, the one that is not the user's own, with its library and version."""
    from importlib.metadata import version

    theirs = next(kind for kind in type(trainer).__mro__ if kind.__module__.split(".")[0] in ("trl", "transformers"))
    library = theirs.__module__.split(".")[0]
    return f"{library} {version(library)} {theirs.__name__}"


def _rows_of(ws: Workspace, ids: Sequence[str]) -> np.ndarray:
    """The rows in the pool of samples by their ids, int64. Raises CurateError for one that is not there."""
    row_of = {sample: row for row, sample in enumerate(pool_ids(ws).to_pylist())}
    missing = [sample for sample in ids if sample not in row_of]
    if missing:
        raise CurateError(
            f"{len(missing):,} of the {len(ids):,} samples of the training set are not in the pool of {ws.path} (the "
            f"first has the id '{missing[0]}'); leave out the column id, or name the workspace that they are from."
        )
    return np.array([row_of[sample] for sample in ids], np.int64)
