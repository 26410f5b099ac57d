"""What only a GPU shows: `pytest -m gpu`. Needs torch, transformers and numpy; the index's also FAISS's GPU build."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.weighting import Weighting
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def samples(n: int) -> list[dict[str, Any]]:
    """Chats of 2 to 60 words."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["pear", "river", "two", "and", "is"], int(rng.integers(2, 60)))) for _ in range(n)]
    roles = ("user", "assistant")
    return [{"text": None, "messages": [{"role": r, "content": t} for r in roles]} for t in texts]


def scored(model: LanguageModel, given: list[dict[str, Any]]) -> dict[str, Any]:
    passes = {"nll": Nll().passes(None)[0], "entropy": Entropy().passes(None)[0], "embed_lm": EmbedLm().vectors()}
    return score_samples({"base": model}, given, passes)[0]


def test_a_gpu_gives_the_scores_of_a_cpu() -> None:
    given = samples(100)
    cpu, gpu = (scored(LanguageModel(ModelChoice("tiny", device=d, dtype="float32")), given) for d in ("cpu", "cuda"))
    assert np.abs(cpu["nll"]["score"] - gpu["nll"]["score"]).max() < 1e-3
    assert np.abs(cpu["entropy"]["score"] - gpu["entropy"]["score"]).max() < 1e-3
    a, b = cpu["embed_lm"]["vector"], gpu["embed_lm"]["vector"]
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.9999


def test_where_a_gpus_memory_runs_out_the_batch_is_halved() -> None:
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(int(free - (1 << 30)), dtype=torch.uint8, device="cuda")  # leaves 1 GiB
    model = LanguageModel(ModelChoice("tiny", batch_tokens=1 << 24))
    columns = scored(model, samples(20_000))
    assert np.isfinite(columns["nll"]["score"]).all() and model.batch_tokens < 1 << 24
    del held


@pytest.mark.parametrize("name", ["uniform", "adapt", "linupper", "filter_then_weight", "max_loss"])
def test_a_gpu_trains_as_a_cpu_does(name: str) -> None:
    encoded = [one for one in encode(LanguageModel(ModelChoice("tiny")).tokenizer, samples(64), 512) if not one.error]
    settings = TrainSettings(batch_size=16, micro_batch_size=4, lr=1e-3, precision="float32", oversample=2)
    losses = {}
    for device in ("cpu", "cuda"):
        model = trainable(ModelChoice("tiny", device=device), settings).model
        weighting: Weighting = {
            "uniform": Uniform(), "adapt": Adapt(refresh=2), "linupper": Linupper(),
            "filter_then_weight": FilterThenWeight(filter="top"), "max_loss": MaxLoss(),
        }[name]  # fmt: skip
        data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:8]))
        losses[device] = [d.metrics["weighted_loss"] for d in Trainer(model, data, settings, weighting, Alone()).run()]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)


@pytest.mark.parametrize("lora", [0, 8])
def test_choosing_within_a_step_in_bfloat16(lora: int) -> None:
    encoded = [one for one in encode(LanguageModel(ModelChoice("tiny")).tokenizer, samples(64), 512) if not one.error]
    settings = TrainSettings(batch_size=8, lr=1e-3, epochs=4, lora_r=lora)
    model = trainable(ModelChoice("tiny"), settings).model
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:8]))
    done = list(Trainer(model, data, settings, FilterThenWeight(), Alone()).run())
    assert all(1 <= d.metrics["chosen"] <= 8 and d.metrics["unfit"] == 0 for d in done)
    assert done[-1].metrics["loss"] < done[0].metrics["loss"]


def test_packed_rows_and_bfloat16_train_on_a_gpu() -> None:
    encoded = [one for one in encode(LanguageModel(ModelChoice("tiny")).tokenizer, samples(64), 512) if not one.error]
    settings = TrainSettings(batch_size=2, lr=1e-3, packing=True, epochs=3)
    model = trainable(ModelChoice("tiny"), settings).model
    done = list(Trainer(model, Data.of(Examples.of(encoded)), settings, Uniform(), Alone()).run())
    assert done[-1].metrics["loss"] < done[0].metrics["loss"]
    assert next(model.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("rows", [2000, 200_000])
def test_the_index_is_searched_on_the_gpu(rows: int) -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "index_cpu_to_all_gpus") or not faiss.get_num_gpus():
        pytest.skip("this FAISS is not its GPU build")
    from curate.numerics.faiss_index import on_gpu, untrained

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(rows, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, lists = untrained(rows, 64)
    if lists:
        index.train(vectors)
        index.nprobe = lists
    index.add_with_ids(vectors, np.arange(rows))
    moved = on_gpu(faiss, index)
    assert moved is not index and "Gpu" in type(moved).__name__
    if lists:
        moved.nprobe = lists
    at = moved.search(vectors[:100], 1)[1]
    assert at[:, 0].tolist() == list(range(100))
