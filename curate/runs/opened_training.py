"""A training, loaded and not begun: the model, the samples' tokens, and those of a target that it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.kinds.score import Target
from curate.runs.config import TrainingSpec
from curate.runs.prepare import prepare_data
from curate.runs.samples import TrainingRows, pool_ids
from curate.runs.tokenize import anchors_of
from curate.store.ledger import Meters
from curate.store.run_record import Run

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.training.trainable import TrainableModel


@dataclass(frozen=True)
class OpenedTraining:
    """What trainings on samples of a pool need. rows: of the samples that can be trained on, in the pool. asked: the
    target's tokens."""

    model: TrainableModel
    data: Any
    rows: np.ndarray
    asked: Any

    @classmethod
    def of(
        cls, run: Run, training: TrainingSpec, rows: np.ndarray, weighed: Target | None, asked: Target, meters: Meters
    ) -> OpenedTraining:
        """Load the model, and tokenise the samples at some rows of the pool. run: whose folder has the losses of the
        base model, if the weighting needs them; meters: charged for these. weighed: the target of the weighting, asked:
        that whose losses are measured. Raises CurateError if no sample is usable."""
        from curate.training.distributed import Alone
        from curate.training.trainable import trainable

        model = trainable(training.model, training.settings, None, training.seed)
        one = np.ones(len(rows))
        ids = pool_ids(run.ws).take(pa.array(rows))
        given = TrainingRows(rows, ids, one, one.astype(np.int64), None, None, [])
        prepared = prepare_data(run, training, given, weighed, model, meters, Alone())
        assert prepared.row is not None
        return cls(model, prepared.data, prepared.row, anchors_of(asked.text.samples(), asked.name, model.model))
