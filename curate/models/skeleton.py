"""A model without its weights: its shapes, its tokenizer and how it makes batches, to tell what a pass would cost.

The tensors are fake (torch's FakeTensorMode): they have shapes and devices, and take no memory and no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from curate.kinds.classified import Classified
from curate.kinds.passes import ForwardRequest, View
from curate.kinds.signals import Forward
from curate.models.choice import ADAPTER, ModelChoice, base_of, resolve
from curate.models.forward import WINDOW, Key, Model, by_length
from curate.models.language_model import LanguageModel
from curate.models.load import load_shapes, load_tokenizer
from curate.models.sentence_encoder import encoder_context
from curate.models.sequence_classifier import classifier_context, parts_of
from curate.models.tokens import Encoded, Sample
from curate.models.usage import Usage

Kind: TypeAlias = Literal["language", "encoder", "classifier"]
_SCALES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # in the configuration of such models


class LanguageSkeleton(LanguageModel):
    """A language model's shapes."""

    def _has_plain_head(self) -> bool:
        settings = [getattr(self.model.config, name, None) for name in _SCALES_LOGITS]
        return all(value in (None, 1, 1.0) for value in settings)


class EncoderSkeleton(Model):
    """A sentence encoder's shapes, or a classifier's but for its outputs."""

    def __init__(self, choice: ModelChoice, kind: Kind):
        model, tokenizer = load_shapes(choice, encoder=True), load_tokenizer(choice)
        model.pooler = None
        if kind == "classifier":
            context = classifier_context(model, tokenizer, choice)
        else:
            context = encoder_context(resolve(choice.name), model, tokenizer, choice)
        super().__init__(choice, model, tokenizer, context)

    def encoded(self, samples: Sequence[Sample], view: View) -> list[Encoded]:
        """The samples in the model's tokens; of a classifier the parts of each, one behind the other."""
        if not isinstance(view, Classified):
            return super().encoded(samples, view)
        as_text = self.choice.special_tokens != "parse"
        each = [parts_of(self.tokenizer, sample, self.context, view, as_text) for sample in samples]
        ids = [np.concatenate([part.ids for part in parts]) for parts in each]
        errors = [parts[0].error for parts in each]
        return [Encoded(i, np.zeros(len(i), bool), error=e) for i, e in zip(ids, errors, strict=True)]

    def _batch(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        raise NotImplementedError


def kind_of(role: str) -> Kind:
    """What kind of model a role is for."""
    return role if role in ("encoder", "classifier") else "language"  # type: ignore[return-value]


def skeleton(choice: ModelChoice, kind: Kind = "language") -> Model:
    """A model's shapes; of an adapter, those of its base, into which it would be merged. Raises CurateError if they
    cannot be told from its configuration."""
    path = resolve(choice.name)
    if (path / ADAPTER).exists():
        return skeleton(replace(choice, name=base_of(path)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        if kind != "language":
            return EncoderSkeleton(choice, kind)
        return LanguageSkeleton(choice, (load_shapes(choice), load_tokenizer(choice)))


class _WithLora(nn.Module):
    """A linear layer with LoRA's matrices beside it, in the place of peft's own layer."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base_layer = base
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with LoRA's."""
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def add_lora(model: LanguageModel, rank: int, targets: str | Sequence[str]) -> None:
    """Give a skeleton the LoRA matrices of a training, which are all that is trained. targets: how the names of layers
    end; as a string, separated by commas, or a regular expression, or all-linear."""
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets)
    pattern = targets if isinstance(targets, str) and "(" in targets else None
    head = model.model.get_output_embeddings()
    with fakes():
        for name, module in list(model.model.named_modules()):
            wanted = names == ["all-linear"] or any(f".{name}".endswith(f".{end}") for end in names)
            wanted = bool(re.fullmatch(pattern, name)) if pattern else wanted
            if isinstance(module, nn.Linear) and module is not head and wanted:
                parent, _, own = name.rpartition(".")
                setattr(model.model.get_submodule(parent), own, _WithLora(module, rank))


def fakes() -> FakeTensorMode:
    """The mode in which a skeleton is asked what needs a pass through it, such as where gradients flow."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def batches(lengths: np.ndarray, counts: np.ndarray, batch_tokens: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """The batches that samples of these lengths go through a model in: samples, tokens of the longest, and the
    supervised tokens of each. A length of 0 is a sample that cannot go through."""
    for start in range(0, len(lengths), WINDOW):
        todo = start + np.flatnonzero(lengths[start : start + WINDOW])
        for places in by_length(lengths[todo], batch_tokens):
            batch = todo[places]
            yield len(batch), int(lengths[batch].max()), counts[batch]
