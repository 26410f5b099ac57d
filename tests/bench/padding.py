"""What a pass through the model costs in tokens of padding, and what micro-batches in parts of similar length save.

    python -m tests.bench.padding [MODEL …] [--lora R]

Of each model (default: the tiny one): the time of a forward and backward pass over n rows of l tokens, fitted by
overhead + (n l) time of a token; then steps of 32 rows whose lengths are those of the sample pool, whole and in parts,
interleaved. Times are CPU time; one thread. It works against the arithmetic of the model: padding is computed as tokens
are. TrainSettings.worth_a_pass has the figure from here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import curate
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.runs.tokenize import anchors_of
from curate.training.examples import Examples, batch_of, by_length, micro_batches
from curate.training.objective import Objective
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable

ROOT = Path(__file__).parents[2]
SHAPES = ((1, 32), (2, 32), (4, 32), (8, 32), (1, 128), (4, 128))
ROWS = 32


def documents(lengths: np.ndarray, vocabulary: int) -> Examples:
    """Random tokens, of which the second half is supervised."""
    rng = np.random.default_rng(0)
    return Examples.of(
        [Encoded(rng.integers(5, vocabulary, n).astype(np.int32), np.arange(n) >= max(1, n // 2)) for n in lengths]
    )


def passed(objective: Objective, examples: Examples, parts: list[list[np.ndarray]]) -> tuple[float, int]:
    """CPU seconds of forward and backward passes over the parts, and the tokens that went through."""
    began, tokens = time.process_time(), 0
    for part in parts:
        batch = batch_of(examples, part, torch.device("cpu"))
        objective.losses(batch, False, False).token.sum().backward()
        tokens += batch.ids.numel()
    spent = time.process_time() - began
    objective.model.model.zero_grad(set_to_none=False)
    return spent, tokens


def overhead(objective: Objective, vocabulary: int, repeats: int) -> float:
    """What a pass costs beyond its tokens, in tokens."""
    every = {shape: documents(np.full(shape[0], shape[1]), vocabulary) for shape in SHAPES}
    spent: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for i in range(repeats + 1):
        for shape, examples in every.items():
            seconds, _ = passed(objective, examples, [list(np.arange(shape[0])[:, None])])
            spent[shape] += [seconds] if i else []
    times = np.array([np.median(spent[shape]) for shape in SHAPES])
    columns = np.array([[1.0, n * length] for n, length in SHAPES]) / times[:, None]
    fixed, each = np.linalg.lstsq(columns, np.ones(len(SHAPES)), rcond=None)[0]
    return float(fixed / each)


def lengths_of(pool: Path, lm: LanguageModel) -> np.ndarray:
    """Tokens of each sample of a pool, int64 [N]."""
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(folder, create=True)
        curate.ingest(ws, pool)
        samples = list(curate.sql(ws, "SELECT messages, text FROM samples ORDER BY row LIMIT 2000"))
    return anchors_of([{"tools": None, **sample} for sample in samples], "pool", lm).lengths


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[str(ROOT / "data/tiny")])
    parser.add_argument("--pool", type=Path, default=ROOT / "data/sample/pool")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | a pass, in tokens | padding, whole | in parts | parts a step | CPU time, in parts / whole |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in given.models:
        settings = TrainSettings(lora_r=given.lora)
        lm = trainable(ModelChoice(name, device="cpu", dtype="float32"), settings, None, 0).model
        lm.model.train()
        objective, vocabulary = Objective(lm), lm.model.config.vocab_size
        worth = overhead(objective, vocabulary, given.repeats)
        lengths = lengths_of(given.pool, lm)
        ratios, n_parts, tokens, through = [], [], 0, {"whole": 0, "parts": 0}
        rng = np.random.default_rng(1)
        for step in range(given.steps):
            examples = documents(rng.choice(lengths, ROWS, replace=False), vocabulary)
            (whole,) = micro_batches(examples, list(np.arange(ROWS)[:, None]), 0)
            parts = by_length(examples, whole, settings.worth_a_pass("cpu"))
            kinds = {"whole": [whole], "parts": parts}
            spent = {}
            for kind in list(kinds)[:: 1 if step % 2 else -1]:  # interleaved
                spent[kind], its = passed(objective, examples, kinds[kind])
                through[kind] += its
            ratios.append(spent["parts"] / spent["whole"])
            n_parts.append(len(parts))
            tokens += int(examples.lengths.sum())
        low, mid, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        padding = {kind: 1 - tokens / its for kind, its in through.items()}
        tuned = f", LoRA {given.lora}" if given.lora else ""
        print(
            f"| {Path(name).name}{tuned} | {worth:.0f} | {padding['whole']:.0%} | "
            f"{padding['parts']:.0%} | {np.mean(n_parts):.1f} | {mid:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
