"""What a run writes as it goes: metrics, weights, curves, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa

from curate.errors import CurateFailure
from curate.store.run_record import Checkpoint, Run
from curate.store.schema import METRICS, TRAINED

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.loop import StepResult, Trainer
    from curate.training.trainable import TrainableModel


class Recorder:
    """Collects the rows of a run's steps and writes them with its checkpoints."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        model: TrainableModel,
        rows: np.ndarray | None,
        start: Checkpoint | None,
        writes: bool,
    ):
        self.run, self.trainer, self.model, self.rows, self.writes = run, trainer, model, rows, writes
        self.last_good = start.step if start else 0
        self._metrics: list[dict[str, Any]] = []
        self._trained: list[pa.Table] = []

    def enter(self, done: StepResult, keep_weights: bool) -> None:
        """Add a step's metrics and, with keep_weights, every sample's weight and loss, to be written by `commit`."""
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
        """Write a checkpoint and the rows since the previous one; keep only the latest `keep` checkpoints (0: all)."""
        snapshot, parameters = self.trainer.snapshot(), self._gathered()
        self.last_good = snapshot.step
        tables = {
            "metrics": pa.Table.from_pylist(self._metrics, schema=METRICS),
            "trained": pa.concat_tables(self._trained) if self._trained else None,
        }
        self._metrics, self._trained = [], []
        if self.writes:
            self.run.refuse_gone()
            self.run.commit(snapshot.step, last, tables, self._write(snapshot, parameters))
            self.run.keep(keep)
            if not last:
                self._refuse_without_manifest(snapshot.step)

    def _refuse_without_manifest(self, step: int) -> None:
        """Raises CurateFailure if the manifest was dropped: this run could not be gone on with, nor be repeated."""
        run = self.run
        manifest = run.require_recipe().manifest if run.place is None else None
        if manifest and manifest not in run.ws.manifest_names():
            raise CurateFailure(
                f"the manifest '{manifest}' was dropped while the run '{run.name}' was trained on it; its checkpoint "
                f"of step {step} is kept: make the manifest again, and the same `curate train` goes on from there."
            )

    def _gathered(self) -> dict[str, Any] | None:
        """The parameters of a model of which each process has a part, for the one that writes; None for a whole one."""
        from curate.training.sharded_layers import is_sharded, whole_state

        model = self.model.adapter or self.model.model.model
        return whole_state(model, self.writes) if any(map(is_sharded, model.parameters())) else None

    def _write(self, snapshot: Any, parameters: dict[str, Any] | None) -> Callable[[Path], None]:
        from safetensors.numpy import save_file
        from safetensors.torch import save_file as save_tensors

        def write(folder: Path) -> None:
            self.model.save(folder, parameters)
            save_tensors(snapshot.optimizer, folder / "optimizer.safetensors")
            if snapshot.weighting:
                save_file(snapshot.weighting, folder / "weighting.safetensors")
            if snapshot.stream:
                save_file(snapshot.stream, folder / "stream.safetensors")
            state = {"step": snapshot.step, "micro_batch_size": snapshot.micro_batch_size}
            (folder / "trainer.json").write_bytes(orjson.dumps(state))

        return write
