"""DualSFT's second pass against one sample at a time, against gradients of every sample, and against a plain forward
pass of the same samples. Interleaved pairs.

    python -m tests.bench.dualsft [MODEL] [SAMPLES] [PAIRS]    default: SmolLM2-135M from its package, 12 samples, 3
    python -m tests.bench.dualsft forwards [MODEL] [SAMPLES] [PAIRS]    against forward passes, by CPU time

What is wanted of each sample: the products of its gradient, by all parameters, with one and with two directions. (a) A
backward pass for each sample, and its dot products. (b) The gradients of every sample of a batch, made from the layers'
factors, and then the products. Peak memory is that of a process of its own for each way, over the model's. The limit is
6N FLOPs a token, three forward passes: forward, backward, and a product, and 2N more for each other direction; by
differences of losses (`by=difference`) 4N, and 2N more. The directions are the mean gradient of other real samples,
and it times its own size. Needs torch and transformers.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.gradients.backward import Backward
from curate.gradients.directions import differences, ghost
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from tests.bench.forward import real, smollm2
from tests.bench.less import batches, usage
from tests.bench.timing import figure, machine, ratio, spread, told

WAYS = ("none", "curate", "batch 1", "every gradient")


def alone(model: Backward, encoded: Sequence[Encoded], directions: Mapping[str, Tensor]) -> Tensor:
    found = []
    for one in encoded:
        for parameter in model.parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        ids, _, supervised = model.lm.padded([one], len(one.ids))
        logits = model.lm.model(input_ids=ids, use_cache=False).logits[0, :-1]
        at = supervised[0, 1:]
        cross_entropy(logits[at].float(), ids[0, 1:][at]).backward()
        products = [
            q.flatten(1) @ g.flatten() for n, q in directions.items() if (g := model.parameters[n].grad) is not None
        ]
        found.append(torch.stack(products).sum(0))
    for parameter in model.parameters.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    return torch.stack(found)


def whole(model: Backward, encoded: Sequence[Encoded], directions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.stack(
                [
                    g.full().flatten(1) @ directions[g.name].flatten(1).T
                    for g in model.gradients(some, usage(model)).parameters
                ]
            ).sum(0)
            for some in batches(model, encoded)
        ]
    )


def products(model: Backward, encoded: Sequence[Encoded], directions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(
        [ghost(model.gradients(some, usage(model)).parameters, directions) for some in batches(model, encoded)]
    )


def made(name: str, samples: int, k: int) -> tuple[Backward, list[Encoded], dict[str, Tensor]]:
    model = Backward.of(LanguageModel(ModelChoice(name, context=512)))
    every = encode(model.lm.tokenizer, real(4 * samples), 512)
    usable = [one for one in every if not one.error and one.supervised.any()]
    encoded = sorted(usable[:samples], key=lambda one: -len(one.ids))  # as batches come
    v = {n: torch.zeros_like(p) for n, p in model.parameters.items()}
    for some in batches(model, sorted(usable[samples:][:8], key=lambda one: -len(one.ids))):
        for gradient in model.gradients(some, usage(model)).parameters:
            v[gradient.name] += gradient.total() / 8
    return model, encoded, {n: torch.stack([q, q * q.abs()][:k]) for n, q in v.items()}


def forward(model: Backward, encoded: Sequence[Encoded], _: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for some in batches(model, encoded):
            model.losses(*model.padded(some, max(len(one.ids) for one in some)))


def by_difference(model: Backward, encoded: Sequence[Encoded], directions: Mapping[str, Tensor]) -> Tensor:
    found = []
    for some in batches(model, encoded):
        ids, supervised = model.padded(some, max(len(one.ids) for one in some))
        found.append(differences(model, ids, supervised, directions))
    return torch.cat(found)


def forwards(name: str, samples: int = 12, pairs: int = 3) -> None:
    """How many forward passes of the same samples the products cost."""
    machine("torch", "transformers")
    model, encoded, both = made(name, samples, 2)
    print(f"{len(encoded)} samples, {sum(len(one.ids) for one in encoded)} tokens")
    for k, most in ((1, 2.5), (2, 3.0)):
        directions = {n: q[:k] for n, q in both.items()}
        exact = products(model, encoded, directions)
        off = (by_difference(model, encoded, directions) - exact).square().mean(0).sqrt() / exact.square().mean(
            0
        ).sqrt()
        print(f"{k} directions: by differences off by {', '.join(f'{float(x):.0e}' for x in off)} of the products")
        for way, does in (("factors", products), ("differences", by_difference)):
            found = list[float]()
            for turn in range(pairs + 1):
                order = (forward, does) if turn % 2 else (does, forward)
                seconds = {one: _spent(one, model, encoded, directions) for one in order}
                found += [seconds[does] / seconds[forward]] if turn else []  # the first is not counted
            median = sorted(found)[len(found) // 2]
            told(f"{k} directions by {way} / a forward pass", spread(found), f"<= {most}x", median <= most)


def _spent(does: Callable[..., Any], *given: Any) -> float:
    began = time.process_time()
    does(*given)
    return time.process_time() - began


def peak(name: str, samples: int, way: str) -> None:
    """The peak memory of this process, in bytes."""
    model, encoded, directions = made(name, samples, 2)
    does: dict[str, Any] = {"curate": products, "batch 1": alone, "every gradient": whole}
    if way in does:
        does[way](model, encoded, directions)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(name: str, samples: int = 12, pairs: int = 3) -> None:
    machine("torch", "transformers")
    for k in (1, 2):
        model, encoded, directions = made(name, samples, k)
        tokens = sum(len(one.ids) for one in encoded)
        a, b = alone(model, encoded, directions), products(model, encoded, directions)
        off = float((a - b).abs().max() / a.abs().max())
        print(f"{len(encoded)} samples, {tokens} tokens; {k} directions; batch 1 and curate differ by {off:.0e}")
        found = ratio(lambda m=model, e=encoded, q=directions: alone(m, e, q),
                      lambda m=model, e=encoded, q=directions: products(m, e, q), pairs)  # fmt: skip
        told(f"{k} directions: batch 1 / curate", found, ">= 1.3x", found[0] >= 1.3)
        found = ratio(lambda m=model, e=encoded, q=directions: whole(m, e, q),
                      lambda m=model, e=encoded, q=directions: products(m, e, q), pairs)  # fmt: skip
        told(f"{k} directions: every sample's gradient / curate", found, "", True)
        del model, directions
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tests.bench.dualsft", "peak", name, str(samples), way]
        found[way] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    for way, size in found.items():
        if way != "none":
            figure(f"peak memory over the model and two directions: {way}", (size - found["none"]) / 2**20, "MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["forwards"]:
        forwards(sys.argv[2] if len(sys.argv) > 2 else smollm2() or "tiny", *map(int, sys.argv[3:]))
    else:
        given = sys.argv[1] if len(sys.argv) > 1 else smollm2() or "tiny"
        main(given, *map(int, sys.argv[2:]))
