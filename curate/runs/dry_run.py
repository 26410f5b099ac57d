"""The work of scores before anything is computed (`curate score --dry-run`): FLOPs as the ledger would have them, bytes
of the tables, and seconds at the rates that the ledger has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.kinds.passes import ForwardRequest, Pass, View
from curate.kinds.score import Target
from curate.runs.compared import pairs_of
from curate.runs.foreseen_passes import ForeseenPasses, Samples
from curate.runs.foreseen_tokens import PoolTokens
from curate.runs.foreseen_training import foreseen_training
from curate.runs.recorded_rates import RecordedRates
from curate.runs.replayed import training_of
from curate.runs.samples import rows_of
from curate.runs.warmup import Uniform, drawn
from curate.store.workspace import Shard, Workspace
from curate.tables.engine import Scored, aims, computed_anew, missing_shards, stored_recipe, units_left
from curate.tables.model_worker import rows_of_pass
from curate.tables.plan import refuse_other_recipe
from curate.tables.spec import TableSpec
from curate.tables.units import Unit
from curate.tables.vector_table import vector_table, vectors_of

if TYPE_CHECKING:
    from curate.runs.foreseen_passes import Shared

_UNITS = 64  # units at most that are looked at; the others are like these
_QUESTIONS = 1_024  # questions at most that are tokenised
_ID, _NUMBER, _COUNT = (10.3, 5.0, 1.0)  # bytes, compressed: of an id in a table, a float, a small integer
_UNDONE, _UNDONE_LORA = 3.0, 2.25  # what it takes to undo a training, in trainings (curate.training.replay)
_GRADIENTS = ("forward", "backward", "projection")  # phases of a pass that computes gradients


class DryRun:
    """What the tables of one command would cost."""

    def __init__(self, ws: Workspace, fresh: bool):
        self.ws, self.fresh, self.rates = ws, fresh, RecordedRates(ws)

    @cached_property
    def tokens(self) -> PoolTokens:
        """The tokens of the pool's samples."""
        return PoolTokens(self.ws.shards())

    def group(self, jobs: Sequence[TableSpec]) -> list[tuple[TableSpec, Scored]]:
        """The work of each table of a group that shares passes; a shared pass is in the table that comes first."""
        shared: Shared = {}
        size = min(job.unit_size for job in jobs)
        return [(job, _Job(self, job, size, shared).result()) for job in jobs]


class _Job:
    """One table of a dry run. shared: the requests of the tables before it, whose passes it uses."""

    def __init__(self, run: DryRun, job: TableSpec, size: float, shared: Shared):
        self.run, self.job, self.size, self.shared = run, job, size, shared
        self.passes = ForeseenPasses(job)

    def result(self) -> Scored:
        """The work of each pass."""
        job = self.job
        if not self.run.fresh:
            refuse_other_recipe(stored_recipe(job), job)
        result = Scored(job.name, job.method.name, job.recipe.target or None, job.kind)
        if job.checkpoint_set.planned and (job.kind == "vectors" or job.vectors is None):
            result.planned.append(self._warm_up())
        previous_state = ""
        for index, step in enumerate(job.passes):
            if not step.reduce:
                result.planned += self._last(step)
                continue
            parts, state = job.prepared(index, previous_state)
            previous_state = f"{parts.folder.name}/{state}"
            result.planned.append(self._counting(step, done=bool(parts.record(state))))
        if job.method.predicts_a_step:
            result.planned.append(self._reach(bool(result.planned[-1]["rows"])))
        return result

    def _reach(self, computed: bool) -> dict[str, Any]:
        """How far the prediction holds: the target's loss at each distance, and where it begins."""
        from curate.training.reach import DISPLACEMENTS

        request = ForwardRequest(per_token=lambda at: at.log_p)
        step = Pass("reach", lambda batch, state: {}, lambda partials: {}, requests={"loss": request}, over="target")
        row = self._aim("reach", step, self.job.target if computed else None, ("reach",))
        times = len(DISPLACEMENTS) + 1
        return row | {key: times * row[key] for key in ("rows", "text_chars", "flops")}

    def _warm_up(self) -> dict[str, Any]:
        """The preceding training."""
        from curate.training.settings import TrainSettings

        job, warmup = self.job, self.job.method.warm_up()
        assert warmup is not None
        settings = TrainSettings(**warmup.settings, checkpoint_epochs=True, keep_checkpoints=0)
        ws, rows = job.ws, drawn(job.ws, warmup)
        training = foreseen_training(
            ws, rows, job.models["base"], settings, Uniform(), seed=warmup.seed, tokens=self.run.tokens
        )
        chars = int(warmup.share * sum(shard.n_chars for shard in job.shards))
        amounts = {"rows": training["samples"], "text_chars": chars}
        return self._row("warm-up", 0, 1, amounts, training["flops"], training["bytes"], ("warm-up", "train"))

    def _replayed(self, step: Pass, done: bool) -> dict[str, Any]:
        """A training, nearly all of it again, and its steps undone: each takes a forward and a backward pass, and a
        backward pass through both, in which nothing frozen has a gradient."""
        phases = ("train", "replay", "undo")
        if done:
            return self._row(step.name, 0, 0, {"rows": 0, "text_chars": 0}, 0.0, 0.0, phases)
        job, replay = self.job, self.job.method.replay()
        assert replay is not None
        spec = training_of(job.models["base"], replay)
        rows, how = rows_of(job.ws, None, None, False), (spec.model, spec.settings, spec.weighting)
        training = foreseen_training(job.ws, rows, *how, seed=spec.seed, tokens=self.run.tokens)
        amounts = {"rows": training["samples"], "text_chars": sum(shard.n_chars for shard in job.shards)}
        times = 2 + (_UNDONE_LORA if spec.settings.lora_r else _UNDONE)
        return self._row(step.name, 0, 1, amounts, times * training["flops"], 8.0 * training["samples"], phases)

    def _compared(self, step: Pass, done: bool) -> dict[str, Any]:
        """Pairs of samples: as for so many questions, of which some are tokenised."""
        how = self.job.method.compared()
        assert how is not None
        if done:
            return self._row(step.name, 0, 0, {"rows": 0, "text_chars": 0}, 0.0, 0.0, self._phases(step))
        pairs = pairs_of(self.job.shards, how)
        n = len(pairs.first)
        looked = np.unique(np.linspace(0, n - 1, _QUESTIONS).astype(int))
        samples: Samples = [lambda model, view: self.passes.counted(model, pairs.questions(looked), view)]
        flops = n / len(looked) * self.passes.flops(step, samples, {})
        chars = sum(shard.n_chars for shard in self.job.shards)
        amounts = {"rows": n, "text_chars": round(2 * n * chars / max(1, self.job.ws.n_rows()))}
        return self._row(step.name, 0, 1, amounts, flops, 0.0, self._phases(step))

    def _counting(self, step: Pass, done: bool) -> dict[str, Any]:
        """A counting pass, over the pool or over the target or the anchors."""
        if step.over == "training":
            return self._replayed(step, done)
        if step.over == "pairs":
            return self._compared(step, done)
        if step.over != "pool":
            return self._aim(step.name, step, None if done else self.job.aim(step))
        shards = [] if done else self.job.shards
        units = [u for shard in shards for u in self.job.units_of(shard, self.job.held_out.left_out.get(shard.name))]
        return self._pool(step, shards, units, {}, 0.0)

    def _last(self, step: Pass) -> list[dict[str, Any]]:
        """The last pass, and that over the target, where vectors are made."""
        job = self.job
        anew = computed_anew(job, self.run.fresh)
        shards = job.shards if anew else missing_shards(job)
        units = units_left(job, shards, self.size, anew)
        row = self._pool(step, shards, units, self.shared, self._bytes(sum(unit.samples for unit in units)))
        if not aims(job, anew):
            return [row]
        return [row, self._aim(f"{step.name} of the target", job.method.target_vectors() or step, job.target)]

    def _pool(
        self, step: Pass, shards: Sequence[Shard], units: Sequence[Unit], shared: Shared, size: float
    ) -> dict[str, Any]:
        rows = sum(rows_of_pass(unit, step) for unit in units)
        share = rows / max(1, sum(unit.samples for unit in units))
        chars = round(share * sum(shard.n_chars for shard in shards))
        flops = share * self._flops(step, units, shared) if rows else 0.0
        return self._row(
            step.name, len(shards), len(units), {"rows": rows, "text_chars": chars}, flops, size, self._phases(step)
        )

    def _aim(
        self, name: str, step: Pass, examples: Target | None, phases: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """A pass over the target's examples, or over the anchors."""
        phases = phases or self._phases(step)
        if examples is None:
            return self._row(name, 0, 0, {"rows": 0, "text_chars": 0}, 0.0, 0.0, phases)
        samples: Samples = [lambda model, view: self.passes.counted(model, examples.text.samples(), view)]
        flops = self.passes.flops(step, samples, {})
        amounts = {"rows": len(examples.subtasks), "text_chars": int(examples.text.whole.str.len_chars().sum())}
        size = self._bytes(len(examples.subtasks)) if not step.reduce else 0.0
        return self._row(name, 0, 1, amounts, flops, size, phases)

    def _flops(self, step: Pass, units: Sequence[Unit], shared: Shared) -> float:
        if not step.requests:
            return sum(unit.samples for unit in units) * self._flops_per_sample(step)
        looked = [units[i] for i in np.unique(np.linspace(0, len(units) - 1, _UNITS).astype(int))]
        scale = sum(unit.cost for unit in units) / sum(unit.cost for unit in looked)
        return scale * self.passes.flops(step, [self._of_unit(unit) for unit in looked], shared)

    def _of_unit(self, unit: Unit) -> Any:
        def tokens(model: Any, view: View) -> tuple[np.ndarray, np.ndarray]:
            lengths, counts = (a[unit.start : unit.stop].copy() for a in self.run.tokens.of(unit.shard, model, view))
            lengths[[row - unit.start for row in unit.failed]] = 0
            return lengths, counts

        return tokens

    def _flops_per_sample(self, step: Pass) -> float:
        """Of a pass over vectors: by the target's vectors, of whose values it does not depend."""
        job = self.job
        if not step.flops:
            return 0.0
        if job.vectors is None or job.target is None:
            return float(step.flops(step.open({}) if step.open else {}))
        raw = np.ones((len(job.target.subtasks), *_shape(job.vectors)), np.float32)
        ids, subtasks = pa.array(map(str, range(len(raw)))), pa.array(job.target.subtasks, pa.string())
        shares = [1 / raw.shape[1]] * raw.shape[1] if raw.ndim == 3 else []
        vectors: Any = vectors_of(vector_table(ids, {"vector": raw}, subtasks, shares))
        return float(step.flops(step.open(vectors) if step.open else vectors))

    def _bytes(self, rows: int) -> float:
        """Bytes of a table's rows."""
        if self.job.kind == "vectors":
            shape = _shape(self.job)
            return rows * (_ID + 2.0 * np.prod(shape) + 4.0 * (shape[0] if len(shape) == 2 else 1))
        widths = {"float32": _NUMBER, "float64": 2 * _NUMBER, "id": _ID}
        return rows * (_ID + _NUMBER + sum(widths.get(kind, _COUNT) for kind in self.job.method.columns.values()))

    def _phases(self, step: Pass) -> Sequence[str]:
        return _GRADIENTS if self.job.checkpoints and step.requests else (step.name,)

    def _row(
        self,
        name: str,
        shards: int,
        units: int,
        amounts: dict[str, int],
        flops: float,
        size: float,
        phases: Sequence[str],
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "pass": name,
            "shards": shards,
            "units": units,
            **amounts,
            "flops": flops,
            "bytes": round(size),
            "device": self.passes.device if flops else "cpu",
        }
        models = ", ".join(dict.fromkeys(choice.name for choice in self.job.models.values()))
        if self.job.models and not flops:  # nothing to do, or another table's pass does it
            return {**row, "seconds": 0.0}
        return {**row, "seconds": self.run.rates.seconds([self.job.method.name], models, phases, row)}


def _shape(vectors: TableSpec) -> tuple[int, ...]:
    """The shape of a sample's vector."""
    count = len(vectors.checkpoint_set.checkpoints)
    if not vectors.both_ways:
        return (ForeseenPasses(vectors).width,)
    dim = getattr(vectors.method, "dim", None) or ForeseenPasses(vectors).width
    return (vectors.checkpoint_set.planned or count, int(dim))
