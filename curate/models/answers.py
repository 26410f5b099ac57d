"""Greedy generation, in batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from curate.errors import CurateError
from curate.kinds.metric import Question
from curate.kinds.passes import Columns, ForwardRequest, Pass
from curate.kinds.signals import Logits
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.forward import UNSUPERVISED, by_length, score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, Sample, Unrenderable, encode, prompt_ids
from curate.models.usage import Usage
from curate.progress import passed


def generate_answers(
    model: LanguageModel, questions: Sequence[Question], max_new_tokens: int
) -> tuple[list[str], np.ndarray, Usage]:
    """The model's greedy answers to N questions: texts, errors ('' where there is none), and the cost."""
    prompts, error = list[list[int]](), np.full(len(questions), "", object)
    rules = model.choice.today, model.choice.special_tokens
    for i, question in enumerate(questions):
        try:
            prompts.append(prompt_ids(model.tokenizer, question.prompt(), rules[0], question.template_kwargs, rules[1]))
        except Unrenderable as why:
            prompts.append([])
            error[i] = str(why)
    return _said(model, prompts, error, max_new_tokens)


def continuations(
    model: LanguageModel, texts: Sequence[str], max_new_tokens: int
) -> tuple[list[str], np.ndarray, Usage]:
    """The model's greedy continuations of plain texts; returns what `generate_answers` does."""
    as_text = model.choice.special_tokens != "parse"
    prompts = [model.tokenizer(text, split_special_tokens=as_text)["input_ids"] for text in texts]
    return _said(model, prompts, np.full(len(texts), "", object), max_new_tokens)


def _said(
    model: LanguageModel, ids: list[list[int]], error: np.ndarray, max_new_tokens: int
) -> tuple[list[str], np.ndarray, Usage]:
    room = model.context - max_new_tokens
    for i, prompt in enumerate(ids):
        if not error[i] and not prompt:
            error[i] = "has no prompt"
        elif not error[i] and len(prompt) > room:
            error[i] = f"its prompt of {len(prompt)} tokens leaves no room for {max_new_tokens} in {model.context}"
    answers, usage = [""] * len(ids), model.usage()
    todo = np.flatnonzero(error == "")
    lengths = np.array([len(ids[i]) for i in todo], np.int64) + max_new_tokens
    for places in by_length(lengths, 4 * model.batch_tokens):
        batch = [int(todo[place]) for place in places]
        for i, text in zip(batch, _generate(model, [ids[i] for i in batch], max_new_tokens, usage), strict=True):
            answers[i] = text
        passed(len(batch), int(lengths[places].sum()))
    return answers, error, usage


def _generate(model: LanguageModel, prompts: list[list[int]], max_new_tokens: int, usage: Usage) -> list[str]:
    longest, pad = max(map(len, prompts)), model.tokenizer.pad_token_id
    pad = model.tokenizer.eos_token_id or 0 if pad is None else pad
    ids = torch.full((len(prompts), longest), pad, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that generated tokens follow the prompt directly
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
        mask[row, longest - len(prompt) :] = 1
    greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode(), counted(usage, model.choice.count_flops):
        generated = model.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad, **greedy
        )[:, longest:]
    steps, ends = generated.shape[1], _ends(model)
    answers = [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in generated.tolist()]
    usage.tokens += sum(map(len, prompts)) + sum(map(len, answers))
    usage.padded_tokens += ids.numel() + len(prompts) * steps
    usage.flops += forward_flops(model.model, len(prompts), longest, len(prompts))
    step_flops = [
        forward_flops(model.model, len(prompts), 1, len(prompts), before=longest + k) for k in range(steps - 1)
    ]
    usage.flops += sum(step_flops)
    usage.flops_paper += paper_flops(FORWARD, model.n_params, len(prompts))
    return [_decoded(model.tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _ends(model: LanguageModel) -> set[int]:
    """Ids of the tokens that end an answer (EOS)."""
    eos = model.model.generation_config.eos_token_id
    eos = model.tokenizer.eos_token_id if eos is None else eos
    return set() if eos is None else set(np.atleast_1d(eos).tolist())


def _decoded(tokenizer: Any, prompt: list[int], answer: list[int]) -> str:
    """The generated text, decoded together with its prompt: alone, some tokenizers would drop its leading space."""
    prefix = tokenizer.decode(prompt, skip_special_tokens=True)
    text = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    return text[len(prefix) :] if text.startswith(prefix) else tokenizer.decode(answer, skip_special_tokens=True)


def answer_losses(
    model: LanguageModel, samples: Sequence[Sample], view: Literal["last", "content"] = "last"
) -> tuple[Columns, Usage]:
    """For each sample's last answer: `mean`, the mean loss of its tokens, float64 [N]; `tokens`, their number; and
    `error`. view: with the end of its turn, or only as far as its content."""
    request = ForwardRequest(_loss, view=view)
    step = Pass("answers", lambda requests, _: requests["answer"], requests={"answer": request})
    columns, usage = score_samples({"base": model}, samples, {"loss": step})
    return columns["loss"], usage


def _loss(logits: Logits) -> object:
    return -logits.label_log_p


def sliding_losses(model: LanguageModel, samples: Sequence[Sample], stride: int) -> tuple[Columns, Usage]:
    """As `answer_losses`, for samples of any length: windows of the model's context, `stride` tokens apart, of which
    each scores the tokens behind those that the one before it has scored. So every token is scored once, with at least
    context - stride tokens before it, as far as there are so many. Raises CurateError for a stride from the context on.
    """
    if not 0 < stride < model.context:
        raise CurateError(
            f"perplexity.stride={stride}: it is from 1 to {model.context - 1}, fewer than the context's "
            f"{model.context} tokens."
        )
    choice = model.choice
    rules = (choice.today, choice.add_eos_token, choice.special_tokens)
    whole = encode(model.tokenizer, samples, 1 << 40, "cut", "last", *rules)
    windows = [(i, window) for i, item in enumerate(whole) for window in _windows(item, model.context, stride)]
    columns, usage = model.way([window for _, window in windows], "", {("loss", ""): ForwardRequest(_loss)}, {})
    found = columns["loss", ""]
    error = np.array([item.error or ("" if item.supervised.any() else UNSUPERVISED) for item in whole], object)
    total, tokens = np.zeros(len(samples)), np.zeros(len(samples))
    for (i, _), mean, n, why in zip(windows, found["mean"], found["tokens"], found["error"], strict=True):
        error[i] = error[i] or why
        if not why:
            total[i], tokens[i] = total[i] + mean * n, tokens[i] + n
    mean = np.divide(total, tokens, out=np.full(len(samples), np.nan), where=(error == "") & (tokens > 0))
    return {"mean": mean, "tokens": tokens, "error": error}, usage


def _windows(item: Encoded, context: int, stride: int) -> list[Encoded]:
    """The windows of a sample in which something is to be scored."""
    windows, done = [], 0
    for begin in range(0, len(item.ids), stride):
        end = min(begin + context, len(item.ids))
        supervised = item.supervised[begin:end].copy()
        supervised[: done - begin] = False
        if not item.error and supervised.any():
            windows.append(Encoded(item.ids[begin:end], supervised))
        done = end
        if end == len(item.ids):
            break
    return windows
