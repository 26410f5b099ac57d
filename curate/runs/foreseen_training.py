"""What a training would cost: steps, tokens, FLOPs, bytes; from the model's shapes and a few tokenised samples."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.score import Target
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice, has_gpu
from curate.runs.foreseen_tokens import PoolTokens, counted
from curate.runs.samples import TrainingRows
from curate.store.workspace import Workspace

if TYPE_CHECKING:  # loaded only when there is something to foresee
    from curate.models.language_model import LanguageModel
    from curate.training.settings import TrainSettings

_STEPS = 256  # steps at most that are looked at; longer trainings go on like these
Planned = dict[str, Any]


def foreseen_training(
    ws: Workspace,
    rows: TrainingRows,
    choice: ModelChoice,
    settings: TrainSettings,
    weighting: Weighting,
    *,
    seed: int = 0,
    reference: ModelChoice | None = None,
    target: Target | None = None,
    tokens: PoolTokens | None = None,
) -> Planned:
    """A training's samples, steps, tokens and FLOPs, as the ledger would have them, and the bytes of its checkpoints.

    reference: the model that the weighting compares with, if not the one that training begins with. target: for a
    weighting that compares with one. Costs of anchors,
    evaluations and texts in several pieces are not foreseen, nor what a budget in FLOPs pays for before the training.
    """
    from curate.models.skeleton import fakes
    from curate.training.distributed import Alone
    from curate.training.foreseen_steps import step_flops
    from curate.training.step_costs import StepCosts

    lm = trainable_skeleton(choice, settings)
    lengths, counts = _lengths(ws, tokens or PoolTokens(ws.shards()), rows, settings, lm)
    usable = (lengths > 0) & (counts > 0) & (rows.repeats > 0)
    examples: Any = SimpleNamespace(lengths=lengths, counts=counts)
    on_processor = choice.device == "cpu" or choice.device == "auto" and not has_gpu()
    costs = StepCosts(lm, settings, Alone(), device="cpu" if on_processor else "cuda")
    steps, epochs = _steps(rows, usable, examples, settings, weighting, seed, lm)
    target_length = (
        float(counted(lm, target.text.samples(), "whole")[0].mean() / lengths[usable].mean()) if target else 1.0
    )
    flops = total_tokens = 0.0
    looked = 0
    with fakes():
        for step_rows in epochs:
            spent, step_tokens = step_flops(costs, examples, step_rows, settings, weighting, target_length)
            flops, total_tokens, looked = flops + spent, total_tokens + step_tokens, looked + 1
    base = _base_losses(lm, lengths[usable], counts[usable], rows, weighting, reference)
    if settings.flops:
        each = flops / max(looked, 1) or 1.0
        steps = int(max(settings.flops - base, 0.0) / each)
        if not steps:
            raise CurateError(
                f"flops={settings.flops:g}: a step takes about {each:.3g} FLOPs, more than this budget; give more, or "
                "a smaller batch_size."
            )
    scale = steps / max(looked, 1)
    kept = max(1, settings.keep_checkpoints or int(np.ceil(settings.epochs)))
    trained = sum(p.numel() for p in lm.model.parameters() if p.requires_grad)
    return {
        "samples": int(rows.repeats[usable].sum()) if rows.draws is None else int(rows.draws.size),
        "steps": steps,
        "tokens": total_tokens * scale,
        "flops": flops * scale + base,
        "bytes": 12 * trained * kept,
    }


def trainable_skeleton(choice: ModelChoice, settings: TrainSettings) -> LanguageModel:
    """A model's shapes, with what would be trained."""
    from curate.models.language_model import LanguageModel
    from curate.models.skeleton import add_lora, skeleton

    lm = skeleton(choice)
    assert isinstance(lm, LanguageModel)
    lm.choice = replace(choice, add_eos_token=settings.add_eos_token)
    if settings.lora_r:
        add_lora(lm, settings.lora_r, settings.lora_targets)
    else:
        lm.model.requires_grad_(True)
    return lm


def _lengths(
    ws: Workspace, tokens: PoolTokens, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of every sample to train on, and how many are learnt."""
    found = [tokens.of(shard, lm, "whole") for shard in ws.shards()]
    lengths, counts = (np.concatenate(parts)[rows.row] for parts in zip(*found, strict=True))
    return lengths, np.maximum(lengths - 1, 0) if settings.loss == "all" else counts


def _steps(
    rows: TrainingRows,
    usable: np.ndarray,
    examples: Any,
    settings: TrainSettings,
    weighting: Weighting,
    seed: int,
    lm: LanguageModel,
) -> tuple[int, list[list[np.ndarray]]]:
    """The number of steps, and the rows of the first of them."""
    from curate.training.examples import epoch_rows, step_bounds

    size = settings.batch_size * (settings.oversample if weighting.chooses else 1)
    room = lm.context if settings.packing else 0

    def epoch(number: int) -> list[list[np.ndarray]]:
        documents = np.repeat(np.arange(len(usable)), rows.repeats * usable)
        if rows.draws is not None:
            documents = rows.draws.samples(number)
            documents = documents[usable[documents]]
        found = epoch_rows(examples, documents, number, seed, settings.order == "shuffle", room)
        bounds = step_bounds(examples, found, size, settings.batch_tokens)
        return [list(found[start:stop]) for start, stop in pairwise(bounds)]

    looked = epoch(0)
    per_epoch = [len(looked)]
    steps = settings.steps or _in_epochs(settings.epochs, per_epoch)
    while looked and len(looked) < min(steps, _STEPS):
        again = epoch(len(per_epoch))
        looked += again
        per_epoch.append(len(again))
        steps = settings.steps or _in_epochs(settings.epochs, per_epoch)
    return steps, looked[: min(steps, _STEPS)]


def _in_epochs(epochs: float, per_epoch: list[int]) -> int:
    """The steps of so many epochs. per_epoch: the steps of the first of them; later ones have their mean."""
    full, fraction = int(epochs), epochs % 1
    mean = sum(per_epoch) / len(per_epoch)
    last = per_epoch[full] if full < len(per_epoch) else mean
    later = max(full - len(per_epoch), 0) * mean
    return int(np.ceil(sum(per_epoch[:full]) + later + fraction * last - 1e-9))


def _base_losses(
    lm: LanguageModel,
    lengths: np.ndarray,
    counts: np.ndarray,
    rows: TrainingRows,
    weighting: Weighting,
    reference: ModelChoice | None,
) -> float:
    """FLOPs of the losses under the model before, where the weighting uses them."""
    from curate.models.flops import forward_flops
    from curate.models.forward import by_length
    from curate.models.skeleton import skeleton

    needs = weighting.needs
    if not ("base_token_loss" in needs or "base_loss" in needs and rows.column is None):
        return 0.0
    model: Any = skeleton(reference or lm.choice)
    batches = by_length(lengths, model.batch_tokens)
    return sum(forward_flops(model.model, len(b), int(lengths[b].max()), int(counts[b].sum())) for b in batches)
