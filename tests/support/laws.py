"""Every score, run in memory on a few texts by the models and checkpoints that it needs."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.gradients.gradient_model import GradientModel
from curate.kinds.registry import find, names
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.kinds.vectors import Vectors
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder
from curate.models.sequence_classifier import SequenceClassifier
from curate.models.tokens import encode
from curate.runs.compared import Pairs
from curate.tables.score_table import score_table
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.replay import metagradients
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.support.checkpoints import write_checkpoints
from tests.support.classifiers import classifier
from tests.support.fasttext_file import trained
from tests.support.narrow import NARROW

SCORES = names("score")
TOLERANCE = 2e-5  # of scores through a model, whose sums depend on what stands in a batch; the others are bit-equal
TEXTS = [
    "the red apple and the green apple fell from the tree into the river",
    "a river runs through the town\na river runs through the town\nand the mill turns",
    [{"role": "user", "content": "what is two plus two?"}, {"role": "assistant", "content": "two plus two is four"}],
    "print(x) print(x) print(x) print(x) print(x) print(x) print(x) print(x)",
    "über die brücke ging der müller mit 3 säcken, 4 eseln und 5 kindern",
    [{"role": "system", "content": "be short"}, {"role": "assistant", "content": "yes."}],
    "one",
    "x " * 400 + "the end of a long text about an apple",
]


@functools.cache
def narrow() -> LanguageModel:
    return LanguageModel(ModelChoice(NARROW))


@functools.cache
def encoder() -> SentenceEncoder:
    return SentenceEncoder(ModelChoice("minilm"))


@functools.cache
def small_classifier() -> SequenceClassifier:
    return SequenceClassifier(ModelChoice(classifier(labels=1)))


@functools.cache
def checkpoints() -> tuple[CheckpointChoice, ...]:
    """Two of a short training of the narrow model by LoRA."""
    folders = write_checkpoints(Path(tempfile.mkdtemp(prefix="curate-laws-")))
    models = [ModelChoice(str(folder), device="cpu") for folder in folders]
    return tuple(CheckpointChoice(m, 1e-3, f"{m.name}/optimizer.safetensors") for m in models)


@functools.cache
def both_ways() -> GradientModel:
    return GradientModel(checkpoints(), moments=True, others={"origin": narrow()})


def given_to(method: Any) -> dict[str, Any]:
    """The narrow model in every role, but for those that have a usual model; or a training's checkpoints."""
    if method.checkpoints == "each" and not method.warm_up():
        return {"checkpoints": [f"{c.model.name}@{c.lr}" for c in checkpoints()]}
    usual = {"classifier": classifier(labels=1), **method.usual_models}
    return {"models": {role: ModelChoice(usual.get(role, NARROW)) for role in method.models}}


def models_of(method: Any) -> dict[str, Any]:
    if method.checkpoints != "none":
        return {role: both_ways() if role == "base" else narrow() for role in method.models}
    special = {"encoder": encoder, "classifier": small_classifier}
    return {role: special.get(role, narrow)() for role in method.models}


def vectors(method: Any, samples: list[dict[str, Any]], subtasks: Any = None) -> Vectors:
    step = method.vectors() if subtasks is None else method.target_vectors()
    found = score_samples(models_of(method), samples, {"x": step})[0]["x"]
    return Vectors.of(found["vector"], found["error"], subtasks or ())


def computed(method: Any, batches: list[Text], target: Target | None) -> list[Any]:
    """The columns of each batch, by a run in memory."""
    if not method.models:
        return run(method, batches, target)
    if method.replay():
        return replayed(method, batches, target)
    if method.compared():
        return compared(method, batches)
    samples = [batch.samples() for batch in batches]
    if method.vectors():
        (step,) = method.passes(target)
        assert target is not None and step.open is not None
        aim = vectors(method, target.text.frame.select("messages", "text").to_dicts(), target.subtasks)
        return [step.map(vectors(method, batch), step.open(aim)) for batch in samples]
    models, (*counting, last), state = models_of(method), method.passes(target), {}
    for step in counting:
        anchors, aim = [{"messages": said("a green apple"), "text": None}], target and target.text.frame
        over = {"pool": samples, "anchors": [anchors]}.get(step.over) or [aim.select("messages", "text").to_dicts()]  # type: ignore[union-attr]
        given = opened(step, state)
        partials = [score_samples(models, some, {"x": step}, {"x": given})[0]["x"] for some in over]
        made = step.state([{k: v for k, v in p.items() if k != "error"} for p in partials], state)
        state = {**state, **made}
    state = opened(last, state)
    return [score_samples(models, batch, {"x": last}, {"x": state})[0]["x"] for batch in samples]


def opened(step: Any, state: dict[str, Any]) -> Any:
    """What a pass is given of the states before it."""
    read = {name: array for name, array in state.items() if name.startswith(step.reads)}
    return step.open(read) if step.open else read


def replayed(method: Any, batches: list[Text], target: Target | None) -> list[Any]:
    """Of a score that replays a training: the training in memory, then the values of each batch."""
    replay, (training, last), lm = method.replay(), method.passes(target), narrow()
    assert target is not None
    samples, aim = [s for batch in batches for s in batch.samples()], target.text.samples()
    found = [encode(lm.tokenizer, some, lm.context) for some in (samples, aim)]
    kept = [i for i, one in enumerate(found[0]) if not one.error and one.supervised.any()]
    state = {"ids": np.zeros(0, np.uint64), "values": np.zeros(0)}
    if kept:
        model = trainable(lm.choice, TrainSettings(**replay.settings)).model
        data = Data.of(Examples.of([found[0][i] for i in kept]))
        trainer = Trainer(model, data, TrainSettings(**replay.settings), Uniform(), Alone(), replay.seed)
        ids = np.concatenate([batch.ids for batch in batches])[kept]
        state = {"ids": ids, "values": metagradients(trainer, Examples.of(found[1])).values}
    state = training.state([training.map(state, {})], {})
    return [last.map(batch, state) for batch in batches]


def compared(method: Any, batches: list[Text]) -> list[Any]:
    """Of a score that compares pairs: all of these in memory, then the values of each batch."""
    comparisons, last = method.passes(None)
    pairs = Pairs.of([batch.frame.to_arrow() for batch in batches], method.compared())
    every = slice(None)
    if not len(pairs.first):
        state = {"ids": np.zeros(0, np.uint64), "rating": np.zeros(0), "compared": np.zeros(0, int)}
        return [last.map(batch, {**state, "unanswered": np.zeros(0)}) for batch in batches]
    found = score_samples({"base": narrow()}, pairs.questions(every), {"x": comparisons})[0]["x"]
    state = comparisons.state([pairs.partial(every, dict(found))], {})
    return [last.map(batch, state) for batch in batches]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]], method: Any) -> bool:
    """Whether rows of a score table agree: bit for bit, or within the tolerance where a model was at work."""
    if not method.models:
        return a == b
    numbers = [[(k, v) for k, v in row.items() if isinstance(v, int | float)] for row in (*a, *b)]
    first, second = numbers[: len(a)], numbers[len(a) :]
    # An inner product of gradients may be small as its terms cancel: what rounding leaves goes by the larger ones.
    terms = max([0.0, *(abs(v) for row in numbers for _, v in row)]) if method.checkpoints != "none" else 0.0
    close = all(
        k == m and abs(v - w) <= TOLERANCE * max(1.0, abs(v), terms)
        for x, y in zip(first, second, strict=True)
        for (k, v), (m, w) in zip(x, y, strict=True)
    )
    return close and [row["error"] for row in a] == [row["error"] for row in b]


def said(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say something"}, {"role": "assistant", "content": answer}]


# damping: eight short texts leave eigenvalues that nearly agree, whose eigenvectors rounding turns; the law is for what
# the samples determine.
_SHORT = {
    "damping": 1.0,
    "dim": 256,
    "lora_r": 2,
    "epochs": 1.0,
    "eta": 10.0,
    "folds": 3,
}  # of a method that trains a warm-up, or judges a step


def lenient(name: str) -> Any:
    """A score method that scores as much as it can, where that is a setting."""
    cls, wanted = find("score", name), {"min_tokens": 1, "shortest": 1, "above_one": "keep", **_SHORT}
    if name == "fasttext":
        return cls(model=str(trained()), label="hq")
    return cls(**{f.name: wanted[f.name] for f in dataclasses.fields(cls) if f.name in wanted})


def batches(order: list[int], sizes: list[int], pairs: bool = False) -> list[Text]:
    ends, texts = np.cumsum([0, *sizes]), [as_pair(text) for text in TEXTS] if pairs else TEXTS
    return [Text.of([texts[i] for i in order[a:b]]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def as_pair(sample: Any) -> Any:
    """A preference pair whose chosen answer is a sample's text, or its last message; empty if that is."""
    text = sample if isinstance(sample, str) else sample[-1]["content"]
    return {"messages": said(text), "rejected": said("no idea" if text else "")}


@functools.cache
def whole(name: str) -> list[dict[str, Any]]:
    """Rows of the score table of TEXTS as one batch."""
    return scored(name, list(range(8)), [8])


def examples(name: str, count: int = 2) -> Target:
    """A target of one or two examples; of a dozen for a score that trains on them."""
    if name == "ngram_classifier":
        return Target.of([f"which apple of {i} is green?" for i in range(12)], ["fruit"] * 12)
    return Target.of(["which apple is green?", "two plus three is five"][:count], ["fruit", "sums"][:count])


def scored(name: str, order: list[int], sizes: list[int]) -> list[dict[str, Any]]:
    """Rows of the score table of TEXTS taken in `order`, cut into batches, put back in TEXTS' order."""
    method = lenient(name)
    target = examples(name)
    cut = batches(order, sizes, method.of_pairs)
    results = computed(method, cut, target if method.uses_target else None)
    parts = [score_table(b.frame["id"].to_arrow(), columns, method) for b, columns in zip(cut, results, strict=True)]
    rows = pa.concat_tables(parts).drop_columns(["id"]).to_pylist()
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]
