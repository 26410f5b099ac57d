"""Training steps at the size of the run: against a plain loop, weighted, packed, selecting; and out of memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import StepResult, Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.gpu.agreement import Found
from tests.gpu.forward import scarce
from tests.gpu.ground import Ground, short_texts, texts, timed, tokens_of
from tests.gpu.lines import Untried

SETTINGS = TrainSettings(lr=1e-5, schedule="constant", warmup=0.0, order="rank", epochs=10_000, keep_weights=False)


class Arm:
    """A training of which one step after another is taken and timed."""

    def __init__(self, model: LanguageModel, data: Data, settings: TrainSettings, weighting: Weighting):
        self.trainer = Trainer(model, data, replace(settings, steps=1000), weighting, Alone())
        self._steps: Iterator[StepResult] = self.trainer.run()
        self.seconds, self.done = list[float](), list[StepResult]()

    def step(self) -> float:
        """Seconds of the next step, without looks at the target's states."""
        self.seconds.append(timed(lambda: self.done.append(next(self._steps))))
        looked = self.done[-1].usage.get("anchors")
        return self.seconds[-1] - ((looked.seconds or 0.0) if looked else 0.0)

    def flops(self, *without: str) -> float:
        return sum(its.flops for phase, its in self.done[-1].usage.items() if phase not in without)


def _equal(n: int, length: int, vocabulary: int, seed: int) -> list[Encoded]:
    """Samples of equal length, all but the first token supervised."""
    chance = np.random.default_rng(seed)
    supervised = np.arange(length) > 0
    return [Encoded(chance.integers(1, vocabulary, length).astype(np.int32), supervised) for _ in range(n)]


def _ratio(a: Any, b: Any, pairs: int) -> float:
    """The median of a/b, in turns, after one pair that is not counted."""
    found = []
    for turn in range(pairs + 1):
        first, second = (a, b) if turn % 2 else (b, a)
        took = {first: first(), second: second()}
        found.append(took[a] / took[b])
    return statistics.median(found[1:])


def steps(ground: Ground) -> Found:
    """A step of all parameters, of curate and of a plain loop; weighted; and of packed rows."""
    size = ground.size
    encoded = _equal(size.rows, size.tokens, size.model["vocab_size"], 0)
    settings = replace(SETTINGS, batch_size=size.rows)
    model = trainable(ground.choice(context=size.longest), settings).model
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[: size.alone]))
    uniform = Arm(model, data, settings, Uniform())
    shapes = ground.shapes(rows=size.rows, tokens=size.tokens)
    plain = _plain_loop(model, encoded, uniform.trainer.objective.bfloat16)
    found = _ratio(uniform.step, plain, size.pairs)
    yield "e.plain", found, {"shapes": shapes}
    del plain
    share = 6.0 * model.n_params * size.rows * size.tokens / statistics.median(uniform.seconds[1:]) / ground.rate()
    limit = "6N FLOPs a token at the rate of products in bfloat16"
    yield "e.share", share, {"shapes": shapes, "limit": limit, "near": share}
    adapt = Arm(model, data, settings, Adapt(refresh=1000))
    yield "e.adapt", _ratio(adapt.step, uniform.step, size.pairs), {"shapes": shapes}
    del adapt, uniform
    yield from _packed(ground, model)


def _plain_loop(lm: LanguageModel, encoded: Sequence[Encoded], bfloat16: bool) -> Any:
    """Steps as one writes them with Transformers: its own loss, AdamW, the gradient clipped."""
    model: Any = lm.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def step() -> None:
        ids = torch.from_numpy(np.stack([one.ids for one in encoded]).astype(np.int64)).to(lm.device)
        labels = ids.clone()
        labels[:, 0] = -100
        model.train()
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return lambda: timed(step)


def _packed(ground: Ground, model: LanguageModel) -> Found:
    """Samples as long as real ones: in rows of the context against a row for each."""
    size = ground.size
    rows = max(size.rows // 4, 2)
    each = max(rows * size.longest // 233, 2)
    encoded = [one for one in tokens_of(model, texts(6 * each, size.longest, 2)) if not one.error]
    data, tokens = Data.of(Examples.of(encoded)), dict[bool, float]()
    for packing, count in ((True, rows), (False, each)):
        settings = replace(SETTINGS, packing=packing, batch_size=count, micro_batch_size=0 if packing else size.rows)
        arm = Arm(model, data, settings, Uniform())
        arm.step()
        rates = [arm.done[-1].metrics["tokens"] / seconds for seconds in (arm.step() for _ in range(size.pairs))]
        tokens[packing] = statistics.median(rates)
        del arm
    shapes = ground.shapes(rows=rows, context=size.longest, samples=each)
    yield "e.packed", tokens[True] / tokens[False], {"shapes": shapes, "note": f"{tokens[True]:.0f} tokens/s packed"}


def selection(ground: Ground) -> Found:
    """LoRA of rank 8: a step that compares its candidates with a target, against one that trains on all of them."""
    size = ground.size
    vocabulary, room = size.model["vocab_size"], max(size.rows // 4, 1)
    settings = replace(SETTINGS, lora_r=8, batch_size=room, oversample=4, target_batch=max(size.rows // 2, 1))
    model = trainable(ground.choice(context=size.longest), settings).model
    candidates = Examples.of(_equal(4 * room, size.tokens, vocabulary, 0))
    data = Data.of(candidates, anchors=Examples.of(_equal(size.rows, size.tokens, vocabulary, 1)))
    plain = Arm(model, data, replace(settings, batch_size=4 * room), Uniform())
    choosing = Arm(model, data, settings, FilterThenWeight())
    found = _ratio(choosing.step, plain.step, size.pairs)
    bound = choosing.flops("selection") / plain.flops()
    shapes = ground.shapes(candidates=4 * room, tokens=size.tokens, target=settings.target_batch, lora_r=8)
    yield "e.selection", found / bound, {"shapes": shapes, "note": f"{found:.3f}x, the bound {bound:.3f}x"}


def memory(ground: Ground) -> Found:
    """A batch that does not fit goes through the model in parts."""
    model = LanguageModel(ModelChoice("tiny", device=ground.device, dtype="float32"))
    model.model.requires_grad_(True)
    encoded = tokens_of(model, short_texts(4096 if ground.on_gpu else 4 * ground.size.rows, 6))
    settings = replace(SETTINGS, batch_size=len(encoded), steps=2)
    few = Data.of(Examples.of(encoded[:4]))
    list(Trainer(model, few, replace(settings, batch_size=4, steps=1), Uniform(), Alone()).run())  # as in scores
    trainer = Trainer(model, Data.of(Examples.of(encoded)), settings, Uniform(), Alone())
    most = 41 * len(encoded) // 3
    with scarce(ground, trainer.objective, "losses", lambda batch, *_: batch.ids.numel(), most) as ran_out:
        list(trainer.run())
        if not ran_out():
            raise Untried("the batch fitted into the memory that was left")
    yield "f.trained", trainer.micro_batch_size / len(encoded), {"shapes": {"model": "tiny", "rows": len(encoded)}}
