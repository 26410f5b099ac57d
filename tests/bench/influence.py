"""Influence functions with EK-FAC: curate's against kronfluence's, on the tiny model and the sample's data, in pairs.

    pip install --no-deps kronfluence==1.0.1 einops einconv opt-einsum
    python -m tests.bench.influence [SAMPLES] [PAIRS]       default: 240 samples, 3 pairs

Both have the same model, tokens, loss (the mean over a sample's supervised tokens), true Fisher, all linear layers but
the head, damping (a tenth of the mean eigenvalue), and wanted of each is one score per sample for the mean over the
target's examples. kronfluence makes a score for each pair, whose mean over the examples it is. Shown are the rank
correlation, and CPU time of the process for what is left when the factors are there, for 8 and 80 target examples, and
for the factors. Limit of the scores: a forward and a backward pass of the samples, and a product (6N FLOPs a token).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.kinds.score import Target
from curate.methods.scores.influence import Influence
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.store.input_formats import Reader
from tests.bench.timing import figure, machine, spread, told
from tests.conftest import SAMPLE

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def samples(paths: list[Path], count: int) -> list[dict[str, Any]]:
    """The first rows of files, in turns, in the form that models take."""
    import json

    reader, found = Reader("auto", {}), []
    lines = [path.read_text(encoding="utf-8").splitlines() for path in paths]
    for row in range(max(map(len, lines))):
        for its in lines:
            if row < len(its):
                one = reader.sample(json.loads(its[row]))
                found.append({"messages": one.messages, "text": one.text, "template_kwargs": None})
    return found[:count]


# --- curate ----------------------------------------------------------------------------------------------


class Ours:
    """The passes of the score, from memory."""

    def __init__(self, pool: list[Any]):
        self.model = GradientModel.of(Backward.of(LanguageModel(ModelChoice("tiny", device="cpu", dtype="float32"))))
        self.pool, self.state = pool, dict[str, np.ndarray]()

    def factors(self) -> None:
        """The passes that do not depend on the target."""
        self.state = {}
        for step in Influence().passes(Target("t", None, ("",), ""))[:2]:  # type: ignore[arg-type]
            self._count(step, self.pool)

    def scores(self, aim: list[Any]) -> np.ndarray:
        """Of every sample, float64 [N]."""
        _, _, mean, last = Influence().passes(Target("t", None, ("",) * len(aim), ""))  # type: ignore[arg-type]
        self._count(mean, aim)
        given = last.open({k: v for k, v in self.state.items() if k.startswith(last.reads)})  # type: ignore[misc]
        return score_samples({"base": self.model}, self.pool, {"x": last}, {"x": given})[0]["x"]["score"]

    def _count(self, step: Any, over: list[Any]) -> None:
        given = step.open({k: v for k, v in self.state.items() if k.startswith(step.reads)}) if step.open else {}
        partial = score_samples({"base": self.model}, over, {"x": step}, {"x": given})[0]["x"]
        self.state |= step.state([{k: v for k, v in partial.items() if k != "error"}], self.state)


# --- kronfluence -----------------------------------------------------------------------------------------


class Theirs:
    """kronfluence's analyzer on the same tokens."""

    def __init__(self, pool: list[Encoded], folder: Path):
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments, ScoreArguments  # pyright: ignore[reportMissingImports]
        from kronfluence.utils.dataset import DataLoaderKwargs  # pyright: ignore[reportMissingImports]

        lm = LanguageModel(ModelChoice("tiny", device="cpu", dtype="float32"))
        task, self.pool = _task(lm), pool
        self.analyzer = Analyzer("bench", prepare_model(lm.model, task), task, cpu=True, disable_tqdm=True,
                                 output_dir=str(folder))  # fmt: skip
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=lambda some: _batch(lm, some)))
        self._factor_args, self._score_args = FactorArguments(strategy="ekfac"), ScoreArguments(damping_factor=None)

    def factors(self) -> None:
        self.analyzer.fit_all_factors(
            "f", _Rows(self.pool), 16, factor_args=self._factor_args, overwrite_output_dir=True
        )

    def scores(self, aim: list[Encoded]) -> np.ndarray:
        sets = {"query_dataset": _Rows(aim), "train_dataset": _Rows(self.pool)}
        sizes = {"per_device_query_batch_size": 8, "per_device_train_batch_size": 16}
        self.analyzer.compute_pairwise_scores(
            "s", "f", **sets, **sizes, score_args=self._score_args, overwrite_output_dir=True
        )
        return self.analyzer.load_pairwise_scores("s")["all_modules"].double().mean(0).numpy()


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list[Encoded]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Encoded:
        return self.rows[place]


def _batch(lm: LanguageModel, some: list[Encoded]) -> dict[str, torch.Tensor]:
    ids, valid, supervised = lm.padded(some, max(len(one.ids) for one in some))
    return {"ids": ids, "valid": valid, "supervised": supervised}


def _task(lm: LanguageModel) -> Any:
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    class Mean(Task):
        """The sum over a batch of each sample's mean loss; of drawn labels, their sum over the root of their number."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["ids"]).logits[:, :-1].float()
            labels, at = batch["ids"][:, 1:], batch["supervised"][:, 1:]
            if sample:
                with torch.no_grad():
                    drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).reshape(labels.shape)
                labels = drawn
            losses = (cross_entropy(logits.transpose(1, 2), labels, reduction="none") * at).sum(1)
            counts = at.sum(1).clamp(min=1)
            return (losses / (counts.sqrt() if sample else counts)).sum()  # as curate's Fisher is that of the mean loss

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return [name for name, _ in lm.model.named_modules() if name.endswith(LAYERS)]

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch["valid"]

    return Mean()


# --- the comparison --------------------------------------------------------------------------------------


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of the process, and what is returned."""
    began = time.process_time()
    found = do()
    return time.process_time() - began, found


def main(count: int = 240, pairs: int = 3) -> None:
    torch.set_num_threads(1)
    lm = LanguageModel(ModelChoice("tiny", device="cpu"))
    pool = samples(sorted((SAMPLE / "pool").glob("*.jsonl")), count)
    aim = samples(sorted((SAMPLE / "targets").glob("*_val.jsonl")), 80)
    rows, asked = (encode(lm.tokenizer, some, lm.context) for some in (pool, aim))
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Ours(pool), Theirs(rows, Path(folder))
        times: dict[str, list[float]] = {"factors": [], "8 examples": [], "80 examples": [], "80 and factors": []}
        agreed = []
        for _ in range(pairs):
            mine, their = timed(ours.factors)[0], timed(theirs.factors)[0]
            times["factors"].append(their / mine)
            for n in (8, 80):
                ours_now, a = timed(lambda n=n: ours.scores(aim[:n]))
                theirs_now, b = timed(lambda n=n: theirs.scores(asked[:n]))
                times[f"{n} examples"].append(theirs_now / ours_now)
                agreed.append(float(spearmanr(a, b).statistic))
            times["80 and factors"].append((their + theirs_now) / (mine + ours_now))
    figure("influence, rank correlation with kronfluence's", spread(agreed), "", ">= .95", min(agreed) >= 0.95)
    for what, found in times.items():
        wanted = ">= 3x" if what == "80 examples" else ""
        limit = "6N FLOPs a token of the samples, and of the examples" if "factors" not in what else ""
        told(f"influence, {what}: kronfluence / curate", spread(found), wanted, spread(found)[0] >= 3, limit=limit)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
