"""The specification of a run: its model, data, weighting and settings; and whether an existing run is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from curate.errors import CurateError
from curate.kinds.parameters import Mask
from curate.kinds.registry import find
from curate.kinds.score import Target
from curate.kinds.weighting import Weighting
from curate.models.choice import MIXED, ModelChoice
from curate.runs.carried import carried_fingerprint, refuse_unlike_adapter
from curate.runs.samples import TrainingRows
from curate.store.manifests import stamp_of
from curate.store.mask_file import StoredMask
from curate.store.recipes import (
    SHAPING,
    MethodRecipe,
    ModelRecipe,
    Recipe,
    RunMask,
    RunRecipe,
    StreamRecipe,
    UnsetType,
    known,
)
from curate.store.workspace import Workspace, __version__, pool_fingerprint
from curate.tables.inputs import method_recipe, model_recipe
from curate.tables.lookup import scores_of
from curate.tables.run_costs import charged_entries
from curate.training.settings import TrainSettings

HOW = (  # settings that do not change a run's result
    "checkpoint_every",
    "checkpoint_epochs",
    "keep_checkpoints",
    "eval_every",
    "eval_flops",
    "keep_weights",
    "micro_batch_size",
    "activation_gib",
    "count_flops",
    "tokenize_workers",
)
DROPS = ("micro_batch_size", "activation_gib")  # of them those that change which dropout is drawn
EARLIER = {
    "add_eos_token": False,
    "attn_implementation": "auto",
    "compile": False,
    "batch_tokens": 0,
    "activation_gib": 0.0,
    "flops": 0.0,
    "flops_for": "training",
}  # what runs did before there was this setting


@dataclass(frozen=True)
class ReplaySettings:
    """How training on a stream replays past samples: `--set stream.FIELD=VALUE`."""

    memory: int = 0
    """Size of the replay memory, a uniform sample of everything read so far."""
    replay: float = 0.0
    """Share of a step's samples drawn from the replay memory."""
    continues: bool = False
    """Whether the stream itself continues when a run resumes; otherwise it restarts, and samples read before are
    skipped."""

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1 or self.memory < 0 or (self.replay and not self.memory):
            raise CurateError(
                f"a stream keeps memory={self.memory} past samples (0 or more), and replay={self.replay:g} of a step's "
                "samples are drawn from these (0 or more, below 1; above 0 only with a memory)."
            )


@dataclass(frozen=True)
class StreamSource:
    """Samples to train on as they arrive, each read once, instead of the pool.

    name: recorded in the run's recipe. records: in any format that `ingest` reads (curate.store.input_formats).
    """

    name: str
    records: Iterable[Any]
    past: ReplaySettings = ReplaySettings()

    def recipe(self) -> StreamRecipe:
        """The stream as recorded in a run's recipe."""
        return StreamRecipe(name=self.name, memory=self.past.memory, replay=self.past.replay)


@dataclass(frozen=True)
class TrainingSpec:
    """What to train: everything that determines the result apart from what is stored in the workspace.

    manifest: whose samples, weights and repeats; None: the whole pool. target: of a weighting that uses one. by: SQL
    expression over `samples`, the column of a weighting that uses one. mask: which parameters are trained; None: all,
    or LoRA's if `lora_r` is set. masking: the mask's method, for a mask that is updated during training. stream:
    samples to train on instead of stored ones. reference: the model whose losses a weighting compares with; None: the
    model that training starts from. carried: the folder of a LoRA run's checkpoint, whose adapter and optimizer's
    moments the training goes on with; None: it begins with new ones.
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
    carried: str | None = None

    def __post_init__(self) -> None:
        """Products in bfloat16, chosen with the model, are the training's precision, and its weights float32."""
        if self.model.dtype == MIXED:
            object.__setattr__(self, "model", replace(self.model, dtype="float32"))
            if self.settings.precision == "auto":
                object.__setattr__(self, "settings", replace(self.settings, precision="bfloat16"))
        if self.reference and self.reference.dtype == MIXED:
            object.__setattr__(self, "reference", replace(self.reference, dtype="float32"))


def refuse_unused(training: TrainingSpec) -> None:
    """Raises CurateError for a target or a column that the weighting lacks, or does not use."""
    weighting = training.weighting
    if training.mask and training.settings.lora_r:
        raise CurateError(
            f"a mask selects among all parameters, and lora_r={training.settings.lora_r} trains only LoRA's; leave "
            "out one of them."
        )
    if training.carried:
        refuse_unlike_adapter(training.carried, training.settings)
    uses_column = {"column", "base_loss"} & set(weighting.needs)
    for option, value, used in (
        ("--target", training.target, weighting.uses_target),
        ("--by", training.by, bool(uses_column)),
        ("--reference", training.reference and training.reference.name, _compares(training)),
    ):
        if value and not used:
            raise CurateError(f"the weighting '{weighting.name}' uses no {option}; leave out {option} {value}.")
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
    for feature, present, remedy in (
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
        ("batch_tokens", settings.batch_tokens, "set batch_size"),
    ):
        if present:
            raise CurateError(f"a stream is trained on as it is read, so it does not go with {feature}; {remedy}.")
    if not settings.steps:
        raise CurateError("a stream has no epochs: say how many steps to take, as by --set steps=300.")


def _compares(training: TrainingSpec) -> bool:
    """Whether the weighting uses losses of another model."""
    needs = training.weighting.needs
    return "base_token_loss" in needs or "base_loss" in needs and not training.by


def _needs_base(training: TrainingSpec) -> bool:
    return "base_token_loss" in training.weighting.needs


def run_recipe(
    ws: Workspace, name: str, training: TrainingSpec, rows: TrainingRows | None, target: Target | None
) -> RunRecipe:
    """The recipe of a run, as stored in run.json: everything that its result depends on."""
    settings, default = asdict(training.settings), asdict(TrainSettings())
    manifest_recipe = rows.recipe if rows else None
    return RunRecipe(
        name=name,
        curate=__version__,
        model=model_recipe(training.model),
        manifest=training.manifest,
        manifest_sha256=stamp_of(manifest_recipe) if manifest_recipe else None,
        pool=None if manifest_recipe or rows is None else pool_fingerprint(ws.shards()),
        stream=training.stream.recipe() if training.stream else None,
        selection=manifest_recipe.step() if manifest_recipe else None,
        weighting=method_recipe(training.weighting),
        by=training.by,
        reference=model_recipe(training.reference) if training.reference else None,
        model_paid=charged_entries(ws, [training.model.name]),
        paid=charged_entries(ws, [training.reference.name] if training.reference else []),
        scores={state.name: state.recipe for state in scores_of(ws, training.by)} if training.by else {},
        target=training.target,
        target_fingerprint=target.fingerprint if target else None,
        mask=_mask_recipe(training.mask),
        carried=carried_fingerprint(training.carried) if training.carried else "",
        settings=settings,
        changed={key: value for key, value in settings.items() if value != default[key]},
        seed=training.seed,
        samples=len(rows.row) if rows else 0,
        steps=training.settings.steps,  # filled in once the samples are tokenised
    )


def _mask_recipe(mask: StoredMask | None) -> RunMask | None:
    if mask is None:
        return None
    recipe = mask.recipe
    return RunMask(
        name=mask.name,
        sha256=mask.sha256,
        method=recipe.mask,
        selected=recipe.selected,
        scores=recipe.scores,
        warmup=recipe.warmup,
        paid=recipe.paid,
    )


def refuse_other_run(name: str, old: RunRecipe, new: RunRecipe) -> None:
    """Raises CurateError if an existing run's recipe differs in anything that changes the result."""
    if difference := _other(old, new):
        raise CurateError(f"the run '{name}' {difference}; choose another name, or --fresh to train '{name}' anew.")


def _other(old: RunRecipe, new: RunRecipe) -> str:
    """The first difference between two recipes of a run, in words; '' if they are the same."""
    if old.pruned:
        return f"is what `curate prune` left of {old.pruned.run}"
    if model_shape(old.reference) != model_shape(new.reference):
        old_value, new_value = (
            model.name if model else "the model it began with" for model in (old.reference, new.reference)
        )
        return f"exists, compared with {old_value}, not {new_value} (or made anew)"
    for key in ("manifest", "manifest_sha256", "pool", "stream", "by", "target", "target_fingerprint", "seed"):
        old_value, new_value = (known(getattr(recipe, key)) for recipe in (old, new))
        if old_value != new_value:
            return f"exists, with {key} {_words(old_value)}, not {_words(new_value)}"
    if model_shape(old.model) != model_shape(new.model):
        key = next(key for key in ("name", *SHAPING) if getattr(old.model, key) != getattr(new.model, key))
        return f"exists, with another model ({key} {getattr(old.model, key)}, not {getattr(new.model, key)})"
    if known(old.mask) != known(new.mask):
        old_value, new_value = (mask.name if mask else "none" for mask in (old.mask, new.mask))
        return f"exists, with another mask ({old_value}, not {new_value}, or made anew)"
    if old.carried != new.carried:
        return "exists, gone on from another adapter"
    if not _same_method(old.weighting, new.weighting):
        return f"exists, weighted by {_method_words(old.weighting)}, not by {_method_words(new.weighting)}"
    return _other_settings(old, new)


def _other_settings(old: RunRecipe, new: RunRecipe) -> str:
    """The same for the settings and for the scores behind the column."""
    for key, value in new.settings.items():
        before = old.settings.get(key, EARLIER.get(key))
        if not _is_how(key, new.settings) and before != value:
            return f"exists, with {key}={before}, not {value}"
    for name, score in new.scores.items():
        if name not in old.scores or old.scores[name].fingerprint != score.fingerprint:
            return f"was begun with another score '{name}'"
    return ""


def model_shape(model: ModelRecipe | UnsetType | None) -> dict[str, Any]:
    """The entries of a model's recipe that results depend on, which excludes its location."""
    return model.shape() if model else {}


def _is_how(setting: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting does not change the result; what divides a step does with dropout, drawn per micro-batch."""
    return setting in HOW and not (setting in DROPS and settings["lora_dropout"])


def shaping(settings: TrainSettings) -> dict[str, Any]:
    """The settings that the result depends on."""
    values = asdict(settings)
    return {key: value for key, value in values.items() if not _is_how(key, values)}


def _same_method(old: MethodRecipe | None, new: MethodRecipe | None) -> bool:
    """Whether two recipes are of one method with the same settings; what the older one lacks had today's default."""
    if old is None or new is None or (old.name, old.version) != (new.name, new.version):
        return old == new
    usual = find("weighting", new.name)().settings()
    return all(old.settings.get(key, usual.get(key)) == value for key, value in new.settings.items())


def _method_words(method: MethodRecipe | None) -> str:
    if method is None:
        return "nothing"
    settings = ", ".join(f"{key}={value}" for key, value in method.settings.items())
    return f"{method.name} ({settings})" if settings else method.name


def _words(value: Any) -> str:
    return str(value.as_json() if isinstance(value, Recipe) else value)
