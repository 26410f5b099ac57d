"""What a verb that trains or evaluates is given: trainings, evaluations and proxies, as objects or by names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from curate.arguments.methods import method_of
from curate.arguments.specs import refuse_unknown
from curate.errors import CurateError, nearest
from curate.kinds import registry
from curate.kinds.executor import Executor
from curate.kinds.fields import with_settings
from curate.kinds.metric import Metric
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.runs.config import StreamSource, TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.proxies import Proxy
from curate.store.given_data import find_given
from curate.store.input_files import records
from curate.store.mask_file import read_mask
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings, from_hugging_face

_NAMED = [f.name for f in fields(TrainingSpec) if f.name != "masking"]


def model_choice_of(given: ModelChoice | str) -> ModelChoice:
    """The model itself, or that of a name: a folder, a .gguf file, a hub id, a run, or a short name such as tiny.

    Raises CurateError for what is neither.
    """
    if isinstance(given, str | os.PathLike):
        return ModelChoice(os.fspath(given))
    if isinstance(given, ModelChoice):
        return given
    raise CurateError(
        f"a model is given by its name, or as curate.ModelChoice(NAME, …), not as {repr(given)[:60]} "
        f"({type(given).__name__})."
    )


def evals_of(
    evals: Sequence[EvalSpec | str],
    metrics: Sequence[Metric | str] = ("loss",),
    *,
    split: str = "test",
    shots: int = 0,
    limit: int = 0,
    average: Literal["micro", "macro"] = "micro",
) -> list[EvalSpec]:
    """Evaluations: those that are given, and every metric on every target that is named. A metric may be a name too.

    split, shots, limit, average: of the named targets. Raises CurateError for what is no evaluation, and no name, and
    for a metric for which this machine lacks something.
    """
    specs = []
    for given in [evals] if isinstance(evals, str | EvalSpec) else evals:
        if isinstance(given, EvalSpec):
            specs.append(replace(given, metric=method_of(Metric, given.metric)))
        elif isinstance(given, str):
            chosen = [method_of(Metric, metric) for metric in ([metrics] if isinstance(metrics, str) else metrics)]
            specs += [EvalSpec(given, metric, split, shots, limit, average) for metric in chosen]
        else:
            raise CurateError(
                f"an evaluation is a target's name, or a curate.EvalSpec, not {repr(given)[:60]} "
                f"({type(given).__name__})."
            )
    for spec in specs:
        spec.metric.require()
    return specs


def proxy_of(given: Proxy | ModelChoice | str | None, evals: Sequence[EvalSpec | str] = ()) -> Proxy | None:
    """How proxies are trained: as given, or from the model of a name, with the training's default settings.

    evals: what they are evaluated by, as for `evals_of`, on the split val; none: those of the given `Proxy`. Raises
    CurateError for evaluations without a model.
    """
    if given is None:
        if evals:
            raise CurateError("evals are for proxies: name the model that these start from, as in proxy='tiny'.")
        return None
    if not isinstance(given, Proxy):
        given = Proxy(model_choice_of(given), method_of(Weighting, "uniform"))
    return replace(
        given,
        plain=method_of(Weighting, given.plain),
        evals=evals_of(evals or given.evals, split="val"),
        executor=None if given.executor is None else method_of(Executor, given.executor),
    )


def training_of(ws: Workspace, given: TrainingSpec | None, options: Mapping[str, Any]) -> TrainingSpec:
    """A training: as given, or from the fields of `TrainingSpec` and `TrainSettings` by name.

    The model, the weighting, the reference, the mask and the stream may be names, and a stream rows of any kind that
    `ingest` takes. Raises CurateError for an option that there is not, suggesting the nearest, for a training beside
    options, and without a model.
    """
    if given is not None:
        if not isinstance(given, TrainingSpec) or options:
            beside = f" beside {', '.join(options)}" if options else ""
            raise CurateError(
                f"curate.train is given either a TrainingSpec or options by name (model=…, manifest=…, lr=…), not "
                f"{repr(given)[:60]} ({type(given).__name__}){beside}."
            )
        return replace(given, model=model_choice_of(given.model), weighting=method_of(Weighting, given.weighting))
    named = {key: value for key, value in options.items() if key in _NAMED}
    if named.get("model") is None:
        raise CurateError("curate.train needs a model: model='tiny', or a folder, a .gguf file, a hub id or a run.")
    mask = named.get("mask")
    mask = read_mask(ws, mask) if isinstance(mask, str) else mask
    return TrainingSpec(
        **{
            **named,
            "model": model_choice_of(named["model"]),
            "weighting": method_of(Weighting, named.get("weighting", "uniform")),
            "settings": _settings(named.get("settings"), {k: v for k, v in options.items() if k not in _NAMED}),
            "reference": model_choice_of(named["reference"]) if named.get("reference") else None,
            "mask": mask,
            "masking": registry.find("mask", mask.recipe.mask.name)(**mask.recipe.mask.settings) if mask else None,
            "stream": None if named.get("stream") is None else stream_of(named["stream"]),
        }
    )


def _settings(given: TrainSettings | None, options: Mapping[str, Any]) -> TrainSettings:
    if given is not None:
        refuse_unknown(options, _NAMED, "train")
        return given
    ours = from_hugging_face(options, int(os.environ.get("WORLD_SIZE", "1")))
    known = {f.name for f in fields(TrainSettings)}
    for key in ours:
        if key not in known and nearest(key, _NAMED).startswith("did you mean"):
            refuse_unknown({key: None}, _NAMED, "train")
    return with_settings(TrainSettings, ours, "the training")


def stream_of(given: Any) -> StreamSource:
    """The samples of a path, of standard input ('-') or of rows in memory, as they are read, to train on.

    The rows of several files follow each other. Raises CurateError for what `ingest` would not read and, when it is
    reached, for rows that stop by an error.
    """
    if isinstance(given, StreamSource):
        return given
    if given == "-":  # opened when it is read, not by a command that is refused before
        return StreamSource("standard input", _records_of(lambda: find_given("-").inputs))
    inputs = find_given(given).inputs
    is_path = isinstance(given, str | os.PathLike)
    name = os.fspath(given) if is_path else ", ".join(item.path for item in inputs)
    return StreamSource(name, _records_of(lambda: inputs))


def _records_of(inputs: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    for item in inputs():
        for _, record in records(item):
            yield record
        if item.rows:
            item.rows.refuse_if_stopped("the training has taken the rows before it")
