"""Train the tiny model that lies in data/tiny: a Llama of two million parameters, with a tokenizer of its own.

    python pipelines/train_tiny_model.py [--steps 1500] [-o data/tiny]

It learns from the sample corpus' generator, from another stream than data/sample, without the corrupt answers: on the
loss of all tokens for the first half of the steps, on the answers' for the second. It is stopped early on purpose: a
base that still has something to learn shows what a selection is worth, a finished one shows nothing. Ten minutes on
two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "data"))
from make_sample import Sample, stream  # noqa: E402  # pyright: ignore[reportMissingImports]

BATCH, PEAK_RATE, SEED = 64, 3e-3, 1
PAD = 0  # the first of the special tokens
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
    """Byte-level BPE of 1,024 tokens; a digit is a token."""
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
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, additional_special_tokens=ROLES, **SPECIAL
    )
    made.chat_template = TEMPLATE
    return made


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


def encoded(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> tuple[list[int], int]:
    """A sample's tokens, and where its answer begins. Alpaca files, which the workshop has, part a question's input."""
    question = sample.question.replace("? ", "?\n", 1) if sample.domain == "workshop" else sample.question
    ask = tokenizer(f"<|begin|><|user|>{question}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{sample.answer}<|end|>", add_special_tokens=False)["input_ids"]
    return [*ask, *answer], len(ask)


def batch_of(rows: Sequence[tuple[list[int], int]], answers_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [B, T], padded on the right; -100 where no loss is taken."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), longest), PAD)
    labels = torch.full((len(rows), longest), -100)
    for i, (tokens, answer) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        first = answer if answers_only else 1
        labels[i, first : len(tokens)] = torch.tensor(tokens[first:])
    return ids, labels


def losses(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of every token that has a label, flat."""
    logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, :-1]
    wanted = labels[:, 1:]
    return cross_entropy(logits[wanted != -100].float(), wanted[wanted != -100], reduction="none")


def train(steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer(list(islice(learnable(SEED), 10_000)))
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    samples = learnable(SEED)
    for step in range(1, steps + 1):
        rows = [encoded(tokenizer, sample) for sample in islice(samples, BATCH)]
        ids, labels = batch_of(rows, answers_only=step > steps // 2)
        loss = losses(model, ids, labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            told = "  ".join(f"{skill} {loss:.2f}" for skill, loss in by_skill(model, tokenizer).items())
            print(f"step {step}: {told}", flush=True)
    return model, tokenizer


@torch.no_grad()
def by_skill(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 400) -> dict[str, float]:
    """Mean loss of an answer's token on samples of a third stream."""
    found: dict[str, list[float]] = defaultdict(list)
    for sample in islice(learnable(SEED + 1), n):
        ids, labels = batch_of([encoded(tokenizer, sample)], answers_only=True)
        found[sample.skill] += losses(model, ids, labels).tolist()
    return {skill: sum(values) / len(values) for skill, values in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("-o", dest="folder", type=Path, default=ROOT / "data" / "tiny")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = train(arguments.steps)
    model.half().save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
