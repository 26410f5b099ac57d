"""lm-evaluation-harness on a model that is loaded: its own code, tasks and results."""

from __future__ import annotations

import importlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, cast

from curate.errors import CurateError, nearest
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage

_SEED = 1234  # the harness's own for few-shot examples


def _library(name: str) -> Any:
    try:
        return cast(Any, importlib.import_module(name))
    except ImportError as error:
        raise CurateError(f'lm_eval needs the extra: pip install "curate-lm[lm-eval]" ({error}).') from None


def harness_version() -> str:
    """The version of the harness. Raises CurateError if it is not installed."""
    _library("lm_eval")
    return importlib.import_module("importlib.metadata").version("lm_eval")


def task_manager(folder: Path | None) -> Any:
    """The tasks in a folder of YAML files; None: those that come with the harness. Raises CurateError for a folder
    that is none, or without a task."""
    tasks = _library("lm_eval.tasks")
    if folder is None:
        return tasks.TaskManager()
    if not folder.is_dir():
        raise CurateError(f"{folder} is no folder of tasks; name one with lm-evaluation-harness's YAML files.")
    # Without its own: there are thousands, and another folder of that name is what is meant.
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    if not manager.all_tasks:
        raise CurateError(f"{folder} has no task of lm-evaluation-harness: no YAML file in it names a `task`.")
    return manager


def require_tasks(manager: Any, names: Sequence[str]) -> None:
    """Raises CurateError, suggesting the most similar name, for a task (or group, or tag) that there is not."""
    for name in names:
        if name not in manager.all_tasks:
            raise CurateError(f"lm-evaluation-harness has no task '{name}' there: {nearest(name, manager.all_tasks)}")


def harness_model(model: LanguageModel) -> Any:
    """The model as the harness takes one."""
    return _library("lm_eval.models.huggingface").HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        batch_size=8,
        max_length=model.context,
        add_bos_token=False,
    )


def run_harness(
    model: LanguageModel, names: Sequence[str], manager: Any, *, shots: int | None = None, limit: int = 0
) -> tuple[dict[str, Any], Usage]:
    """The harness's results of some tasks, with every sample (its format `EvalResults`), and what they cost.

    shots: few-shot examples; None: what each task says. limit: documents of a task; 0: all. Raises CurateError for a
    task that there is not, and for what goes wrong in one.
    """
    require_tasks(manager, names)
    library = _library("lm_eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    usage = model.usage()
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), _SEED)
    # Its many bars are not shown. It returns results in the process of local rank 0 only, and here each runs its own.
    with (
        redirect_stderr(io.StringIO()),
        _environment(LOCAL_RANK="0"),
        counted(usage, model.choice.count_flops),
    ):  # its many bars
        try:
            results = library.simple_evaluate(
                harness_model(model),
                tasks=list(names),
                task_manager=manager,
                num_fewshot=shots,
                limit=limit or None,
                log_samples=True,
                bootstrap_iters=0,
                **seeds,
            )
        except Exception as error:  # a task is anyone's YAML, code and data
            first = (str(error).splitlines() or [""])[0]
            raise CurateError(
                f"lm-evaluation-harness stopped in {', '.join(names)}: {type(error).__name__}: {first[:300]}"
            ) from error
    for samples in results["samples"].values():
        for sample in {sample["doc_id"]: sample for sample in samples}.values():  # there is one for each filter
            _charge(model, usage, sample)
    return dict(results), usage


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """The process's environment with these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _charge(model: LanguageModel, usage: Usage, sample: Mapping[str, Any]) -> None:
    """What a sample's requests cost if each goes through the model alone, without padding."""
    for request, said in zip(sample["arguments"], sample["resps"], strict=True):
        asked, behind = (*request, "")[:2]
        for end in [behind] if isinstance(behind, str) else map(str, said):  # settings of a generation: its repeats
            n = len(model.tokenizer(asked + end, add_special_tokens=False)["input_ids"])
            usage.tokens, usage.padded_tokens = usage.tokens + n, usage.padded_tokens + n
            usage.flops += forward_flops(model.model, 1, n, n)
            usage.flops_paper += paper_flops(FORWARD, model.n_params, 1)
