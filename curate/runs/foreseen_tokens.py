"""How many tokens the samples of a pool have, told from a random few that are tokenised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.kinds.passes import View
from curate.kinds.text import Text
from curate.store.encoding import read_table
from curate.store.workspace import Shard

if TYPE_CHECKING:
    from curate.models.forward import Model

SAMPLE = 1_024  # samples that are tokenised; their mean is then good to a percent or two
_SHARDS = 16  # shards at most that they are taken from
_AROUND = 4  # tokenised samples of nearly the same length that another sample may be like
Tokens = tuple[np.ndarray, np.ndarray]  # of each sample its tokens, 0 if it cannot go through; and the supervised ones


class PoolTokens:
    """The tokens of a pool's samples as a model sees them: counted for a random few (with a fixed seed), and for every
    other one those of a tokenised sample of nearly as many characters."""

    def __init__(self, shards: Sequence[Shard]):
        rng = np.random.default_rng(0)
        taken = sorted(rng.choice(len(shards), min(len(shards), _SHARDS), replace=False).tolist()) if shards else []
        sizes = np.array([shards[i].rows for i in taken], np.int64)
        rows = np.sort(rng.choice(int(sizes.sum()), min(int(sizes.sum()), SAMPLE), replace=False)) if taken else []
        shard_of, starts = np.searchsorted(np.cumsum(sizes), rows, "right"), np.cumsum(sizes) - sizes
        self._places: dict[str, np.ndarray] = {}  # the tokenised samples' rows in each shard
        tables, chars = [], []
        for number, i in enumerate(taken):
            places = np.asarray(rows)[shard_of == number] - starts[number]
            self._places[shards[i].name] = places
            table = read_table(shards[i].path, [*Text.schema.names, "n_chars"]).take(pa.array(places))
            chars.append(table["n_chars"].to_numpy())
            tables.append(table.drop_columns("n_chars"))
        self._samples = [sample for table in tables for sample in table.drop_columns("id").to_pylist()]
        self._chars = np.concatenate(chars or [np.zeros(0, np.int64)]).astype(np.float64)
        self._first = dict(
            zip(self._places, np.cumsum([0, *map(len, self._places.values())])[:-1].tolist(), strict=True)
        )
        self._counted: dict[tuple[Any, View], Tokens] = {}

    def of(self, shard: Shard, model: Model, view: View) -> Tokens:
        """The tokens of each sample of a shard, int64 [rows], and how many of them are supervised."""
        key = (model.choice, view)
        if key not in self._counted:
            self._counted[key] = counted(model, self._samples, view)
        lengths, counts = self._counted[key]
        chars = read_table(shard.path, ["n_chars"])["n_chars"].to_numpy().astype(np.float64)
        like = self._like(chars)
        share = (chars + 8) / (self._chars[like] + 8)
        found = np.minimum(np.rint(lengths[like] * share), model.context).astype(np.int64)
        found = np.where(lengths[like] > 0, np.maximum(found, 1), 0)
        supervised = np.minimum(np.rint(counts[like] * share).astype(np.int64), np.maximum(found - 1, 0))
        places = self._places.get(shard.name, np.zeros(0, np.int64))
        own = self._first.get(shard.name, 0) + np.arange(len(places))
        found[places], supervised[places] = lengths[own], counts[own]
        return found, supervised

    def _like(self, chars: np.ndarray) -> np.ndarray:
        """For each sample the number of a tokenised one of nearly as many characters."""
        order = np.argsort(self._chars, kind="stable")
        near = np.searchsorted(self._chars[order], chars)
        near += np.random.default_rng(1).integers(-_AROUND, _AROUND, len(chars), endpoint=True)
        return order[np.clip(near, 0, len(order) - 1)]


def counted(model: Model, samples: Sequence[Mapping[str, Any]], view: View) -> Tokens:
    """The tokens of samples and how many of them are supervised, counted; 0 for one that cannot go through."""
    encoded = model.encoded(samples, view)
    lengths = np.array([0 if item.error else len(item.ids) for item in encoded], np.int64)
    return lengths, np.array([int(item.supervised[1:].sum()) for item in encoded], np.int64)
