"""Train the tiny model in curate/models/tiny: a Llama of two million parameters, with a tokenizer of its own.

    python pipelines/train_tiny_model.py [--steps 1500] [-o FOLDER]

It is trained on the sample corpus's generator, on another stream than data/sample, without the corrupt answers: on the
loss of all tokens for the first half of the steps, on that of the answers for the second. It is stopped early on
purpose: a base that still has something to learn shows the effect of a selection, a converged one shows none. Ten
minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from curate.methods.weightings.uniform import Uniform
from curate.models.choice import TINY, ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.loop import Trainer
from curate.training.objective import Objective
from curate.training.settings import TrainSettings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "data"))
from make_sample import Sample, stream  # noqa: E402  # pyright: ignore[reportMissingImports]

BATCH, SEED = 64, 1
SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learnable(seed: int) -> Iterator[Sample]:
    """The stream's samples whose answers are right."""
    return (sample for sample in stream(seed) if not sample.corrupt)


def train_tokenizer(samples: Sequence[Sample]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,024 tokens; each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[*SPECIAL.values(), *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{s.question}\n{s.answer}" for s in samples], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, additional_special_tokens=ROLES, **SPECIAL
    )
    fast_tokenizer.chat_template = TEMPLATE
    return fast_tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    special = dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), range(3), strict=True))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **special,
    )
    return LlamaForCausalLM(config)


def encoded(tokenizer: PreTrainedTokenizerFast, sample: Sample, answer_only: bool) -> Encoded:
    """A sample as tokens, with the loss on its answer or on all. Alpaca files, which the workshop has, separate a
    question's input."""
    question = sample.question.replace("? ", "?\n", 1) if sample.domain == "workshop" else sample.question
    prompt = tokenizer(f"<|begin|><|user|>{question}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{sample.answer}<|end|>", add_special_tokens=False)["input_ids"]
    ids = np.array([*prompt, *answer], np.int32)
    return Encoded(ids, np.arange(len(ids)) >= (len(prompt) if answer_only else 1))


def train(steps: int) -> LanguageModel:
    tokenizer = train_tokenizer(list(islice(learnable(SEED), 10_000)))
    model = LanguageModel(ModelChoice("tiny"), (new_model(tokenizer), tokenizer))
    print(f"{model.n_params:,} parameters, {len(tokenizer)} tokens")
    samples = enumerate(islice(learnable(SEED), steps * BATCH))
    examples = Examples.of([encoded(tokenizer, sample, n // BATCH >= steps // 2) for n, sample in samples])
    settings = TrainSettings(
        steps=steps,
        batch_size=BATCH,
        order="rank",
        lr=3e-3,
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.1,
        beta2=0.95,
    )
    trainer = Trainer(model, Data.of(examples), settings, Uniform(), Alone())
    for step_result in trainer.run():
        if step_result.step % 100 == 0:
            losses = "  ".join(f"{skill} {loss:.2f}" for skill, loss in by_skill(model).items())
            print(f"step {step_result.step}: {losses}", flush=True)
    return model


def by_skill(model: LanguageModel, n: int = 400) -> dict[str, float]:
    """Mean loss of an answer's token on samples of a third stream."""
    samples = list(islice(learnable(SEED + 1), n))
    examples = Examples.of([encoded(model.tokenizer, sample, True) for sample in samples])
    losses, _ = base_losses(Objective(model), examples)
    skill = np.repeat([sample.skill for sample in samples], examples.counts)
    return {name: float(losses[skill == name].mean()) for name in sorted(set(skill))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("-o", dest="folder", type=Path, default=TINY)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model = train(arguments.steps)
    model.model.half().save_pretrained(arguments.folder)
    model.tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
