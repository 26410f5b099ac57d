"""Recipes for a reader: what something was made of, in words, and the command line that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from curate.store.recipes import (
    ManifestRecipe,
    MaskRecipe,
    MethodRecipe,
    MixtureRecipe,
    RunRecipe,
    SelectionRecipe,
    TableRecipe,
    WeightsRecipe,
    known,
)
from curate.store.trial_recipe import TrialRecipe
from curate.tables.inputs import changed_settings, settings_words
from curate.tables.lookup import TOKENS
from curate.training.settings import TrainSettings


def table_words(recipe: TableRecipe) -> str:
    """What a score, or vectors, was made of."""
    if recipe.attached:
        files = ", ".join(f"{file} (SHA-256 {sha256[:12]}…)" for file, sha256 in recipe.attached.files.items())
        return f"the column {recipe.attached.column} of {files}, matched by {recipe.attached.by}."
    made = f"made by {_method(recipe.method, recipe.version, recipe.changed)}"
    parts = [f"{made} for the target {recipe.target}" if recipe.target else made]
    parts += [f"from the vectors {recipe.vectors}"] if recipe.vectors else []
    parts += [f"{role} model {model.name} in {model.dtype}" for role, model in recipe.models.items()]
    parts += [f"{len(recipe.checkpoints):,} checkpoints"] if recipe.checkpoints else []
    scope = {"row": "each sample's value depends on that sample alone", "pool": "values depend on the whole pool"}
    return "; ".join([*parts, scope.get(recipe.scope, recipe.scope)]) + "."


def manifest_words(recipe: ManifestRecipe) -> str:
    """How a manifest came to be."""
    rows = recipe.result["rows"]
    if isinstance(recipe, WeightsRecipe):
        base = f"the samples of {recipe.manifest.name}" if recipe.manifest else "all samples"
        repeated = "" if recipe.repeats is None else ", as repeats"
        return f"{rows:,} samples: {base}, weighted by {recipe.by} with {_of(recipe.weighting)}{repeated}."
    if isinstance(recipe, MixtureRecipe):
        base = f"the samples of {recipe.manifest.name}" if recipe.manifest else "the pool"
        by = f" by {recipe.choice['by']}" if recipe.choice.get("by") else ""
        return (
            f"{rows:,} draws an epoch: a mixture of {base} by {recipe.domain}, with weights of {_of(recipe.mixer)}{by}."
        )
    choice = recipe.choice
    budgets = {"top": "{:,} rows", "frac": "{:.4g} of the candidates", "tokens": "{:,.0f} tokens"}
    budget = next(text.format(choice[key]) for key, text in budgets.items() if choice.get(key) is not None)
    parts = [f"{rows:,} samples, chosen from {recipe.pool.rows:,} by {_of(recipe.selector)}"]
    parts += [f"ranked by {choice['by']}{', shuffled as a control' if choice.get('null') else ''}"] * bool(choice["by"])
    parts += [f"where {choice['where']}"] * bool(choice.get("where"))
    parts += [f"per {choice['per']}"] * bool(choice.get("per"))
    parts += [f"with {key} {choice[key]}" for key in ("vectors", "target", "history") if choice.get(key)]
    return ", ".join([*parts, f"under a budget of {budget}"]) + "."


def mask_words(recipe: MaskRecipe) -> str:
    """How a mask came to be."""
    scores = f", from the score {', '.join(known(recipe.scores) or ())}" if known(recipe.scores) else ""
    return f"{recipe.frac:g} of the parameters of {recipe.model.name}, chosen by {_of(recipe.mask)}{scores}."


def run_words(recipe: RunRecipe) -> str:
    """What a run trained, on what, and how."""
    if recipe.pruned:
        pruned = recipe.pruned
        return f"the run {pruned.run}, of whose changes {_of(pruned.pruner)} has undone {pruned.sparsity:.0%}."
    if not recipe.weighting:
        return f"{recipe.model.name}, not trained."
    stream = known(recipe.stream)
    data = (
        f"the stream {stream.name}" if stream else f"the manifest {recipe.manifest}" if recipe.manifest else "the pool"
    )
    if recipe.trainer:
        data = f"a dataset, by {recipe.trainer},"
    parts = [f"{recipe.model.name} trained on {recipe.samples:,} samples of {data} in {recipe.steps:,} steps"]
    parts += [f"weighted by {_of(recipe.weighting)}"]
    mask = known(recipe.mask)
    parts += [f"with the mask {mask.name}"] if mask else []
    return ", ".join([*parts, f"seed {recipe.seed}"]) + "."


def trial_words(recipe: TrialRecipe) -> str:
    """What a trial has trained on, and what it measured."""
    drawn = f"{recipe.samples:,} samples{f' where {recipe.where}' if recipe.where else ''}"
    parts = [f"{recipe.model.name} trained on {recipe.subsets:,} random subsets of {recipe.share:g} of {drawn}"]
    parts += ["drawn from every source alike"] if recipe.stratify else []
    again = f"{min(recipe.repeated, recipe.subsets):,} of them {recipe.repeats:,} times"
    parts += [again] if recipe.repeats > 1 else []
    parts += [f"weighted by {_of(recipe.weighting)}"]
    of = f", as trained by the trial {recipe.of}" if recipe.of else ""
    return f"{', '.join(parts)}{of}; the losses of {recipe.target}, {recipe.split}."


def manifest_command(recipe: ManifestRecipe) -> str:
    """The command line that makes a manifest again."""
    if isinstance(recipe, SelectionRecipe):
        return recipe.command
    if isinstance(recipe, WeightsRecipe):
        words = ["curate", "weigh", recipe.name, "--by", recipe.by, "--weighting", recipe.weighting.name]
        words += settings_words(recipe.weighting.settings)
        words += ["--manifest", recipe.manifest.name] if recipe.manifest else []
        words += [] if recipe.repeats is None else ["--repeats", str(recipe.repeats)]
        return shlex.join(words + _unless("--seed", recipe.seed, 0))
    return _mix_command(recipe)


def _mix_command(recipe: MixtureRecipe) -> str:
    choice = recipe.choice
    words = ["curate", "mix", recipe.name, "--mixer", recipe.mixer.name, *settings_words(recipe.mixer.settings)]
    for key, usual in {"rows": None, "tokens": None, "by": None, "domain": "source", "manifest": None, "seed": 0,
                       "token_count": TOKENS}.items():  # fmt: skip
        words += _unless(f"--{key.replace('_', '-')}", choice.get(key), usual)
    words += [] if recipe.exact else ["--realise", "probability"]
    most = choice.get("most_epochs", 4.0)
    words += _unless("--max-epochs", "none" if most is None else f"{most:g}", "4")
    words += ["--lower"] if choice.get("lower") else []
    proxy = recipe.proxy
    if proxy:
        words += ["--model", proxy.model.name]
        for option, names in {"--target": "target", "--metric": "metric"}.items():
            words += [
                word for name in dict.fromkeys(getattr(j, names) for j in proxy.judges) for word in (option, name)
            ]
        default = asdict(TrainSettings())
        words += settings_words({key: value for key, value in proxy.settings.items() if value != default.get(key)})
    return shlex.join(words)


def mask_command(recipe: MaskRecipe) -> str:
    """The command line that makes a mask again."""
    words = ["curate", "mask", recipe.name, "--mask", recipe.mask.name, "--frac", f"{recipe.frac:g}"]
    words += ["--model", recipe.model.name]
    words += [word for name in known(recipe.scores) or () for word in ("--score", name)]
    return shlex.join(words + settings_words(recipe.mask.settings))


def run_command(recipe: RunRecipe) -> str | None:
    """The command line that trains a run again; None for a model that was not trained, or not by curate."""
    if recipe.pruned:
        pruned = recipe.pruned
        words = ["curate", "prune", pruned.run, "--pruner", pruned.pruner.name, "--sparsity", f"{pruned.sparsity:g}"]
        return shlex.join([*words, "--name", recipe.name, *settings_words(pruned.pruner.settings)])
    if not recipe.weighting or recipe.trainer:
        return None
    stream, mask, reference = known(recipe.stream), known(recipe.mask), known(recipe.reference)
    words = ["curate", "train", recipe.name, "--model", recipe.model.name]
    words += _unless("--manifest", recipe.manifest, None)
    words += ["--stream", "-" if stream.name == "standard input" else stream.name] if stream else []
    words += ["--reference", reference.name] if reference else []
    words += ["--mask", mask.name] if mask else []
    words += _unless("--weighting", recipe.weighting.name, "uniform")
    words += (
        _unless("--target", recipe.target, None) + _unless("--by", recipe.by, None) + _unless("--seed", recipe.seed, 0)
    )
    of_stream = {"memory": stream.memory, "replay": stream.replay} if stream else {}
    owners: dict[str, Mapping[str, Any]] = {
        "": recipe.changed,
        f"{recipe.weighting.name}.": recipe.weighting.settings,
        "model.": changed_settings(recipe.model),
        "stream.": {key: value for key, value in of_stream.items() if value},
    }
    settings = {f"{owner}{key}": value for owner, of in owners.items() for key, value in of.items()}
    return shlex.join(words + settings_words(settings))


def trial_command(recipe: TrialRecipe, name: str) -> str:
    """The command line that makes a trial again, or goes on with it."""
    words = ["curate", "trial", name]
    asked = ["--target", recipe.target, *_unless("--split", recipe.split, "val")]
    if recipe.of:
        return shlex.join([*words, "--of", recipe.of, *asked])
    words += ["--model", recipe.model.name, *asked, *_unless("--subsets", recipe.subsets, 64)]
    words += _unless("--share", recipe.share, 0.5) + _unless("--where", recipe.where, "")
    words += ["--stratify"] if recipe.stratify else []
    words += _unless("--repeats", recipe.repeats, 1) + _unless("--repeated", recipe.repeated, 16)
    words += _unless("--weighting", recipe.weighting.name, "uniform") + _unless("--seed", recipe.seed, 0)
    words += ["--keep-checkpoints"] if recipe.keep_checkpoints else []
    default = asdict(TrainSettings())
    owners: dict[str, Mapping[str, Any]] = {
        "": {key: value for key, value in recipe.settings.items() if value != default.get(key)},
        f"{recipe.weighting.name}.": recipe.weighting.settings,
        "model.": changed_settings(recipe.model),
    }
    settings = {f"{owner}{key}": value for owner, of in owners.items() for key, value in of.items()}
    return shlex.join(words + settings_words(settings))


def _of(method: MethodRecipe) -> str:
    return _method(method.name, method.version, method.settings)


def _method(name: str, version: int, settings: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}{f' (version {version})' if version != 1 else ''}{f' with {told}' if told else ''}"


def _unless(option: str, value: Any, usual: Any) -> list[str]:
    return [] if value == usual or value is None else [option, str(value)]
