"""The limits of a device, and forward scores at the size of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.kinds.score import Score
from curate.methods.scores.davir import Davir
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.forward import WINDOW, score_samples
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.numerics.rank_agreement import spearman
from tests.gpu.agreement import Found
from tests.gpu.ground import Ground, ratio, short_texts, text, texts, timed
from tests.gpu.lines import ROOT, Untried

_COPIED = 1 << 30  # bytes, on a GPU
_SEARCHES, _WIDTH = 1000, 256
_LEFT = 300 << 20  # bytes, where memory is to run out: the tiny model's weights and a thousand short samples


def limits(ground: Ground) -> Found:
    """Matrix products and copies, at random data."""
    n = ground.size.products
    for dtype in ("bfloat16", "float32"):
        yield f"a.products.{dtype}", ground.rate(dtype) / 1e12, {"shapes": {"matrices": [n, n]}}
    size = _COPIED if ground.on_gpu else 1 << 26
    a = torch.empty(size, dtype=torch.uint8, device=ground.device).random_()
    b = torch.empty_like(a)
    timed(lambda: b.copy_(a))
    seconds = min(timed(lambda: b.copy_(a)) for _ in range(5))
    yield "a.copy", 2 * size / seconds / 1e9, {"shapes": {"bytes": size}}


def scored(lm: LanguageModel, samples: Sequence[Any], *methods: Score) -> tuple[Mapping[str, Any], Usage]:
    """Columns by method, and the cost."""
    passes = {m.name: m.vectors() or m.passes(None)[0] for m in methods}
    return score_samples({"base": lm, "reference": lm}, samples, passes)


def throughput(ground: Ground) -> Found:
    """Texts to scores, tokenising included, of samples as long as real ones; and five scores in one pass."""
    size = ground.size
    samples, lm = texts(size.forward, size.longest), LanguageModel(ground.choice(dtype="bfloat16"))
    scored(lm, samples[: size.alone], Nll())
    if ground.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Usage] = {}
    seconds = timed(lambda: found.update(cost=scored(lm, samples, Nll())[1]))
    usage = found["cost"]
    rate = usage.tokens / seconds
    share = 2.0 * lm.n_params * rate / ground.rate()
    shapes = ground.shapes(samples=len(samples), tokens=usage.tokens, batch_tokens=lm.batch_tokens)
    padding = f"{usage.padded_tokens / usage.tokens - 1:.1%} of padding"
    limit = "2N FLOPs a token at the rate of products in bfloat16"
    yield "c.share", share, {"shapes": shapes, "note": padding, "limit": limit, "near": share}
    per_sample = {"tokens_per_sample": usage.tokens / len(samples)}
    yield "c.tokens", rate, {"shapes": shapes, "limit": limit, "near": share, **per_sample}
    if ground.on_gpu:
        yield "c.memory", torch.cuda.max_memory_allocated() / 2**30, {"shapes": shapes}
    some = samples[: max(size.forward // 8, 2)]
    five = ratio(
        lambda: scored(lm, some, Nll(), Entropy(), El2n(), EmbedLm(), Davir()),
        lambda: scored(lm, some, Nll()),
        size.pairs,
    )
    yield "c.five", five, {"shapes": ground.shapes(samples=len(some))}


# --- out of memory -----------------------------------------------------------------------------------------


def memory(ground: Ground) -> Found:
    """Batches that do not fit: on a GPU because little of its memory is left, elsewhere because they are refused."""
    samples = short_texts(20_000 if ground.on_gpu else 8 * ground.size.forward, 5)
    lm = LanguageModel(ModelChoice("tiny", device=ground.device, dtype="float32", batch_tokens=1 << 24))
    scored(lm, samples[:50], Nll())  # what a device loads when it first computes is not to be what does not fit
    before = 41 * min(len(samples), WINDOW)  # a word is a token, and one begins the text
    most = before // 3
    with scarce(ground, lm, "_batch", lambda encoded, *_: sum(len(one.ids) for one in encoded), most) as ran_out:
        columns = scored(lm, samples, Nll())[0]["nll"]
        first = ran_out()
        if not first:
            raise Untried("all samples fitted into the memory that was left")
        scored(lm, samples, Nll())
        again = ran_out() - first
    shapes = {"model": "tiny", "samples": len(samples)}
    yield "f.halved", lm.batch_tokens / before, {"shapes": shapes, "note": f"memory ran out {first} times"}
    yield "f.scored", float(np.isfinite(columns["score"]).mean()), {"shapes": shapes}
    yield "f.remembered", float(again), {"shapes": shapes}


@contextmanager
def scarce(ground: Ground, held: Any, method: str, size: Any, most: int) -> Iterator[Any]:
    """Little memory; gives a function that counts how often it ran out. Where there is no GPU: the method of `held`
    raises as torch does where `size` of its arguments is above `most`."""
    if ground.on_gpu:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(max(free - _LEFT, 1), dtype=torch.uint8, device="cuda")
        started = torch.cuda.memory_stats()["num_ooms"]
        yield lambda: torch.cuda.memory_stats()["num_ooms"] - started
        del taken
        torch.cuda.empty_cache()
        return
    inner, count = getattr(held, method), [0]

    def refusing(*arguments: Any, **more: Any) -> Any:
        if size(*arguments) > most:
            count[0] += 1
            raise torch.OutOfMemoryError("rehearsed")
        return inner(*arguments, **more)

    setattr(held, method, refusing)
    yield lambda: count[0]
    setattr(held, method, inner)


# --- FAISS -------------------------------------------------------------------------------------------------


def index(ground: Ground) -> Found:
    """Searches in an exact index, on the CPU and on the GPU."""
    if find_spec("faiss") is None:
        raise Untried("FAISS is not installed")
    import faiss

    from curate.numerics.faiss_index import on_gpu, untrained

    if not hasattr(faiss, "index_cpu_to_all_gpus") or not faiss.get_num_gpus():
        raise Untried("this FAISS is not its GPU build, or there is no GPU")
    rows = 100_000
    unit = np.random.default_rng(0).normal(size=(rows, _WIDTH)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    plain, _ = untrained(rows, _WIDTH)
    plain.add_with_ids(unit, np.arange(rows))
    moved = on_gpu(faiss, plain)
    same = (plain.search(unit[:_SEARCHES], 10)[1] == moved.search(unit[:_SEARCHES], 10)[1]).mean()
    found = ratio(lambda: plain.search(unit[:_SEARCHES], 10), lambda: moved.search(unit[:_SEARCHES], 10), 3)
    yield (
        "h.search",
        found,
        {"shapes": {"vectors": [rows, _WIDTH]}, "note": f"{same:.2%} of the neighbours are the same"},
    )


# --- a real model ------------------------------------------------------------------------------------------


def real(ground: Ground) -> Found:
    """Ranks of real samples in three dtypes. In a rehearsal without the model: the tiny one, on the sample corpus."""
    if not ground.real and ground.on_gpu:
        raise Untried("its folder was not given (--real)")
    rows = Path(ground.rows) if ground.rows else ROOT / "data/sample/pool/school.jsonl"
    samples = _rows(rows)[: 4 * ground.size.forward]
    found, rate = dict[str, np.ndarray](), 0.0
    for dtype in ("float32", "bfloat16", "float16"):
        lm = LanguageModel(ModelChoice(ground.real or "tiny", device=ground.device, dtype=dtype, context=512))  # type: ignore[arg-type]
        scored(lm, samples[:4], Nll())
        kept = list[tuple[Any, Usage]]()
        seconds = timed(lambda lm=lm, kept=kept: kept.append(scored(lm, samples, Nll())))
        columns, usage = kept[0]
        found[dtype] = columns["nll"]["nll"]
        rate = usage.tokens / seconds if dtype == "bfloat16" else rate
    about = {"shapes": {"model": "SmolLM2-135M" if ground.real else "tiny", "samples": len(samples)}}
    yield "i.tokens", rate, about
    for dtype in ("bfloat16", "float16"):
        there = np.isfinite(found[dtype]) & np.isfinite(found["float32"])
        yield f"i.{dtype}", spearman(found[dtype][there], found["float32"][there]), about


def _rows(path: Path) -> list[dict[str, Any]]:
    """Each line's texts as one raw text: a chat template would need jinja2."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [text("\n".join(value for value in row.values() if isinstance(value, str))) for row in rows]
