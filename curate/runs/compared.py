"""The pairs of samples that a score has a model compare: before its table is made, and kept in prepared/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import ids_as_integers, keyed_uniform
from curate.kinds.asking import PAIR
from curate.kinds.passes import Arrays
from curate.kinds.sample_text import says_something
from curate.kinds.score import Comparisons
from curate.kinds.text import Text
from curate.numerics.bradley_terry import design
from curate.progress import Progress
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.ledger import Meters
from curate.store.locks import FOREVER, Lock, lock
from curate.store.workspace import Shard
from curate.tables.spec import TableSpec

QUESTIONS = 2_048  # that go through the model together, and are committed


@dataclass(frozen=True)
class Pairs:
    """Samples in the order of their ids, uint64 [n], and which of them are compared: first, second, int64 [Q], each
    pair in both orders, in the order of the first, so that questions that begin alike are asked together."""

    ids: np.ndarray
    samples: pl.DataFrame
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, tables: Iterable[pa.Table], how: Comparisons) -> Pairs:
        """Of samples, in tables as Text has them, those in the share that have a text; one table at a time is read."""
        found = [_compared(table, how) for table in tables]
        samples = pl.concat([Text(Text.schema.empty_table()).frame, *found])
        ids = ids_as_integers(samples["id"].to_list())
        order = np.argsort(ids)
        pairs = design(len(order), how.others, np.random.default_rng(how.seed))
        first, second = np.concatenate([pairs, pairs[:, ::-1]]).T
        by_first = np.lexsort((second, first))
        return cls(ids[order], samples[order], first[by_first], second[by_first])

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Where each chunk of the questions begins and ends."""
        return ((a, min(a + QUESTIONS, len(self.first))) for a in range(0, len(self.first), QUESTIONS))

    def questions(self, places: Any) -> list[dict[str, Any]]:
        """The pairs at these places, as questions about pairs have them."""
        both = np.stack([self.first[places], self.second[places]], 1)
        needed, where = np.unique(both, return_inverse=True)
        samples = self.samples[needed].drop("id").to_dicts()
        return [{name: samples[i] for name, i in zip(PAIR, two, strict=True)} for two in where.reshape(-1, 2)]

    def partial(self, places: Any, columns: Arrays) -> Arrays:
        """What a pass over these pairs leaves."""
        kept = {name: np.asarray(values) for name, values in columns.items() if name != "error"}
        return {"one": self.ids[self.first[places]], "other": self.ids[self.second[places]], **kept}


def _compared(samples: pa.Table, how: Comparisons) -> pl.DataFrame:
    """Those of some samples that are in the share and have a text."""
    drawn = keyed_uniform(ids_as_integers(samples["id"].to_pylist()), how.seed, "samples that are compared") < how.share
    frame = Text(samples.filter(pa.array(drawn))).frame  # polars has no limit of 2 GiB for a column of texts
    return frame.filter(pl.Series([says_something(sample) for sample in frame.to_dicts()], dtype=pl.Boolean))


def pairs_of(shards: list[Shard], how: Comparisons) -> Pairs:
    """The pairs of a pool. Raises CurateError if there are none."""
    found = Pairs.of((read_table(shard.path, Text.schema.names) for shard in shards if shard.rows), how)
    if not len(found.first):
        raise CurateError(
            f"{len(found.ids)} samples of the pool have a text and are in the share of {how.share:g}; comparing takes "
            "two at least."
        )
    return found


def compared(job: TableSpec) -> None:
    """Have the model compare what the score of a table needs, unless that is done. Charged to the ledger; what was
    answered is kept, so that a command that was killed goes on with it."""
    parts, name = job.prepared(0, "")
    with lock(job.ws, f"prepared {parts.folder.name}", wait=FOREVER) as held_lock:
        done = parts.read(name) is not None
        _remove_others(parts, "" if done else name, name)
        if done:
            return
        how, step = job.method.compared(), job.passes[0]
        assert how is not None
        pairs = pairs_of(job.shards, how)
        names = {chunk: f"pairs-{name}-{chunk[0]:09}-{chunk[1]:09}" for chunk in pairs.chunks()}
        with ExitStack() as stack:
            meters = Meters(
                job.ws.path,
                "score",
                {step.name: step.name},
                stack,
                methods=[job.method.name],
                name=job.name,
                model=job.models["base"].name,
                prepared=f"{parts.folder.name}/{name}",
            )
            _ask(job, pairs, parts, names, meters, held_lock)
        partials = (parts.read(own) or {} for own in names.values())
        parts.commit(name, step.state(partials, {}), failed={})
        _remove_others(parts, "", name)


def _remove_others(parts: Parts, asked: str, state: str) -> None:
    """Remove what was answered for another pool, and the states of others. asked: of whose state it is kept."""
    for own in parts.names():
        if own != state and not (asked and own.startswith(f"pairs-{asked}-")):
            parts.remove(own)


def _ask(
    job: TableSpec, pairs: Pairs, parts: Parts, names: dict[tuple[int, int], str], meters: Meters, held_lock: Lock
) -> None:
    """Commit the partial of every chunk that has none."""
    from curate.gradients.roles import load_roles
    from curate.models.forward import score_samples

    todo = [chunk for chunk, own in names.items() if parts.read(own) is None]
    if not todo:
        return
    step, models = job.passes[0], load_roles(job.models)
    done = len(pairs.first) - sum(stop - start for start, stop in todo)
    with Progress(f"{job.name}: {step.name}", len(pairs.first), done=done, noun="questions") as bar:
        for start, stop in todo:
            held_lock.check()
            columns, usage = score_samples(models, pairs.questions(slice(start, stop)), {"x": step})
            parts.commit(names[start, stop], pairs.partial(slice(start, stop), dict(columns["x"])))
            meters.charge(step.name, stop - start, usage)
            bar.finished(stop - start, usage.tokens, "")
