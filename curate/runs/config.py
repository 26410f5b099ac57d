"""What a run is to be: its model, data, weighting and settings; and whether a run that is there is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from curate.errors import CurateError
from curate.kinds.parameters import Mask
from curate.kinds.score import Target
from curate.kinds.weighting import Weighting
from curate.models.choice import SHAPING, ModelChoice
from curate.runs.samples import TrainingRows
from curate.store.manifests import stamp_of
from curate.store.mask_file import StoredMask
from curate.store.workspace import Workspace, __version__, pool_fingerprint
from curate.tables.lookup import scores_of
from curate.tables.recipes import model_recipe
from curate.tables.run_costs import charged_entries
from curate.training.settings import TrainSettings

LINEAGE = (  # what of a manifest goes into a run's recipe
    *(
        "selector",
        "choice",
        "weighting",
        "mixer",
        "proxy",
        "proxies",
        "paid",
        "by",
        "repeats",
        "manifest",
        "selection",
        "scores",
    ),
)
HOW = (
    "checkpoint_every",
    "checkpoint_epochs",
    "keep_checkpoints",
    "eval_every",
    "keep_weights",
    "micro_batch_size",
    "count_flops",
)


@dataclass(frozen=True)
class ReplaySettings:
    """What a training from a stream does with samples that have come: `--set stream.FIELD=VALUE`."""

    memory: int = 0
    """How many are kept: a fair sample of all that have come."""
    replay: float = 0.0
    """Share of a step's samples that is drawn from these."""
    continues: bool = False
    """Whether, when a run goes on, its stream does too; else it begins anew, and what has come is passed over."""

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1 or self.memory < 0 or (self.replay and not self.memory):
            raise CurateError(
                f"a stream keeps memory={self.memory} past samples (0 or more), and replay={self.replay:g} of a step's "
                "samples are drawn from these (0 or more, below 1; above 0 only with a memory)."
            )


@dataclass(frozen=True)
class StreamSource:
    """Samples that come once, for a training that learns from them as they come, instead of from the pool.

    name: what the run's recipe calls them. records: of any shape that an ingest reads (curate.store.input_formats).
    """

    name: str
    records: Iterable[Any]
    past: ReplaySettings = ReplaySettings()

    def recipe(self) -> dict[str, Any]:
        return {"name": self.name, "memory": self.past.memory, "replay": self.past.replay}


@dataclass(frozen=True)
class TrainingSpec:
    """What is to be trained: everything that decides the result but what is stored in the workspace.

    manifest: whose samples, weights and repeats; null: the whole pool. target: of a weighting that uses one. by: SQL
    expression over `samples`, the column of a weighting that uses one. mask: which numbers are trained; null: all of
    what `lora_r` says. masking: its method, of one that is chosen anew. stream: samples that come once, instead of what
    is stored. reference: the model whose losses a weighting compares with; null: the one that training begins with.
    """

    model: ModelChoice
    weighting: Weighting
    settings: TrainSettings = field(default_factory=TrainSettings)
    manifest: str | None = None
    target: str | None = None
    by: str | None = None
    seed: int = 0
    allow_stale: bool = False
    mask: StoredMask | None = None
    masking: Mask | None = None
    stream: StreamSource | None = None
    reference: ModelChoice | None = None


def refuse_unused(training: TrainingSpec) -> None:
    """Raises CurateError for a target or a column that the weighting lacks, or does not use."""
    weighting = training.weighting
    if training.mask and training.settings.lora_r:
        raise CurateError(
            f"a mask chooses among all parameters, and lora_r={training.settings.lora_r} trains LoRA's alone; leave "
            "out one of them."
        )
    uses_column = {"column", "base_loss"} & set(weighting.needs)
    for option, given, used in (
        ("--target", training.target, weighting.uses_target),
        ("--by", training.by, bool(uses_column)),
        ("--reference", training.reference and training.reference.name, _compares(training)),
    ):
        if given and not used:
            raise CurateError(f"the weighting '{weighting.name}' uses no {option}; leave out {option} {given}.")
    if training.stream:
        _refuse_for_stream(training, uses_column)
    if "domains" in weighting.needs and not training.manifest:
        raise CurateError(f"the weighting '{weighting.name}' weighs domains: add --manifest NAME, of a `curate mix`.")
    if weighting.uses_target and not training.target:
        raise CurateError(f"the weighting '{weighting.name}' needs a target: add --target NAME.")
    if "column" in weighting.needs and not training.by:
        raise CurateError(f"the weighting '{weighting.name}' needs a column: add --by SQL, as in --by bm25_maths.")


def _refuse_for_stream(training: TrainingSpec, uses_column: set[str]) -> None:
    settings, name = training.settings, training.weighting.name
    for what, bad, remedy in (
        ("a manifest", training.manifest, "leave one of them out"),
        ("a column", training.by, "leave out --by"),
        (f"the weighting '{name}', which needs a column", uses_column, "take another weighting"),
        (
            f"the weighting '{name}', which needs the base model's losses",
            _needs_base(training),
            "take another weighting",
        ),
        ("packing", settings.packing, "leave it out"),
        ("split", settings.split, "leave it out"),
    ):
        if bad:
            raise CurateError(f"a stream is learnt from as it comes, so it does not go with {what}; {remedy}.")
    if not settings.steps:
        raise CurateError("a stream has no epochs: say how many steps to take, as by --set steps=300.")


def _compares(training: TrainingSpec) -> bool:
    """Whether the weighting looks at losses of another model."""
    needs = training.weighting.needs
    return "base_token_loss" in needs or "base_loss" in needs and not training.by


def _needs_base(training: TrainingSpec) -> bool:
    return "base_token_loss" in training.weighting.needs


def run_recipe(
    ws: Workspace, name: str, training: TrainingSpec, rows: TrainingRows | None, target: Target | None
) -> dict[str, Any]:
    settings, default = asdict(training.settings), asdict(TrainSettings())
    scores = {state.name: state.recipe for state in scores_of(ws, training.by)} if training.by else {}
    weighting, lineage = training.weighting, rows.lineage if rows else None
    return {
        "name": name,
        "curate": __version__,
        "model": model_recipe(training.model),
        "manifest": training.manifest,
        "manifest_sha256": stamp_of(lineage) if lineage else None,
        "pool": None if lineage or rows is None else pool_fingerprint(ws.shards()),
        "stream": training.stream.recipe() if training.stream else None,
        "selection": {key: lineage[key] for key in LINEAGE if key in lineage} if lineage else None,
        "weighting": {"name": weighting.name, "version": weighting.version, "settings": weighting.settings()},
        "by": training.by,
        "reference": model_recipe(training.reference) if training.reference else None,
        "model_paid": charged_entries(ws, [training.model.name]),
        "paid": charged_entries(ws, [training.reference.name] if training.reference else []),
        "scores": scores,
        "target": training.target,
        "target_fingerprint": target.fingerprint if target else None,
        "mask": _mask_recipe(training.mask),
        "settings": settings,
        "changed": {key: value for key, value in settings.items() if value != default[key]},
        "seed": training.seed,
        "samples": len(rows.row) if rows else 0,
        "steps": training.settings.steps,  # filled in once the samples are in tokens
    }


def _mask_recipe(mask: StoredMask | None) -> dict[str, Any] | None:
    if mask is None:
        return None
    lineage = mask.lineage
    made = {key: lineage[key] for key in ("scores", "warmup", "paid") if key in lineage}
    return {
        "name": mask.name,
        "sha256": mask.sha256,
        "method": lineage["mask"],
        "selected": lineage["selected"],
        **made,
    }


def refuse_other_run(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises CurateError where the run of that name was begun otherwise, but for what changes no result."""
    if other := _other(old, new):
        raise CurateError(f"the run '{name}' {other}; choose another name, or --fresh to train '{name}' anew.")


def _other(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing in which a run's recipe is another, in words; '' where it is the same."""
    if old.get("pruned"):
        return f"is what `curate prune` left of {old['pruned']['run']}"
    if model_shape(old.get("reference")) != model_shape(new["reference"]):
        was, now = ((m or {}).get("name", "the model it began with") for m in (old.get("reference"), new["reference"]))
        return f"exists, compared with {was}, not {now} (or made anew)"
    for what in ("manifest", "manifest_sha256", "pool", "stream", "by", "target", "target_fingerprint", "seed"):
        if old.get(what) != new[what]:
            return f"exists, with {what} {old.get(what)}, not {new[what]}"
    if model_shape(old["model"]) != model_shape(new["model"]):
        what = next(what for what in ("name", *SHAPING) if old["model"].get(what) != new["model"].get(what))
        return f"exists, with another model ({what} {old['model'].get(what)}, not {new['model'].get(what)})"
    if old.get("mask") != new["mask"]:
        was, now = ((m or {}).get("name", "none") for m in (old.get("mask"), new["mask"]))
        return f"exists, with another mask ({was}, not {now}, or made anew)"
    if old["weighting"] != new["weighting"]:
        return f"exists, weighted by {_said(old['weighting'])}, not by {_said(new['weighting'])}"
    return _other_settings(old, new)


def _other_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Likewise of the settings and the scores behind the column."""
    for key, value in new["settings"].items():
        if not _is_how(key, new) and old["settings"].get(key) != value:
            return f"exists, with {key}={old['settings'].get(key)}, not {value}"
    for score, recipe in new["scores"].items():
        if old["scores"].get(score, {}).get("fingerprint") != recipe["fingerprint"]:
            return f"was begun with another score '{score}'"
    return ""


def model_shape(model: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a model's recipe shapes results: not where it lies."""
    return {key: model.get(key) for key in SHAPING} if model else {}


def _is_how(setting: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a setting changes no result. Dropout is drawn for every micro-batch."""
    return setting in HOW and not (setting == "micro_batch_size" and recipe["settings"]["lora_dropout"])


def shaping(settings: TrainSettings) -> dict[str, Any]:
    """The settings that a result depends on."""
    its = asdict(settings)
    return {key: value for key, value in its.items() if not _is_how(key, {"settings": its})}


def _said(weighting: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in weighting["settings"].items())
    return f"{weighting['name']} ({settings})" if settings else str(weighting["name"])
