"""What a table is made from: the target, the models and their checkpoints, the samples left out; and its recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError, nearest
from curate.hashing import fingerprint
from curate.models.choice import (
    SHORT_NAMES,
    TRUST,
    CheckpointChoice,
    ModelChoice,
    config_digest,
    prints_date,
    resolve,
    tensors_of,
    weights_fingerprint,
)
from curate.store.contents import require_intact
from curate.store.encoding import read_table
from curate.store.recipes import (
    CheckpointRecipe,
    MethodRecipe,
    ModelRecipe,
    PoolRecipe,
    TableRecipe,
    WarmupRecipe,
    read_recipe,
)
from curate.store.run_record import Run
from curate.store.workspace import Shard, Workspace, pool_fingerprint, recipe_file

if TYPE_CHECKING:
    from curate.kinds.method import Method
    from curate.kinds.score import Score, Target


def load_target(ws: Workspace, name: str, splits: Sequence[str] = ("val",)) -> Target:
    """The val split of a target, or other splits. Raises CurateError if the target or the splits do not exist."""
    import polars as pl  # which what reads no text does without

    from curate.kinds.score import Target
    from curate.kinds.text import Text

    _require_target(ws, name)
    table = ws.target_rows(name)
    table = table.filter(pl.Series(table["split"]).is_in(list(splits)).to_arrow())
    ids, subtasks = table["id"].to_pylist(), tuple(table["subtask"].to_pylist())
    return Target(name, Text(table), subtasks, _target_fingerprint(name, ids, subtasks))


def target_fingerprint(ws: Workspace, name: str, splits: Sequence[str] = ("val",)) -> str:
    """The fingerprint of what `load_target` loads, without its texts. Raises CurateError as that does."""
    _require_target(ws, name)
    rows = read_table(ws.targets.intact(name), ["id", "subtask", "split"]).to_pylist()
    kept = [row for row in rows if row["split"] in splits]
    return _target_fingerprint(name, [row["id"] for row in kept], tuple(row["subtask"] for row in kept))


def _require_target(ws: Workspace, name: str) -> None:
    if name not in ws.target_names():
        raise CurateError(
            f"{ws.path} has no target '{name}' (`curate target {name} PATH` makes one): "
            f"{nearest(name, ws.target_names())}"
        )


def _target_fingerprint(name: str, ids: Sequence[str], subtasks: tuple[str, ...]) -> str:
    if not ids:
        raise CurateError(f"the target '{name}' has no val split, which selection uses; add it with `curate target`.")
    return fingerprint(ids, subtasks)


def method_recipe(method: Method) -> MethodRecipe:
    """A method, with all its settings, as recorded in a recipe."""
    return MethodRecipe(name=method.name, version=method.version, settings=method.settings())


def pool_recipe(ws: Workspace, shards: Sequence[Shard]) -> PoolRecipe:
    """The pool, as recorded in a manifest's recipe."""
    return PoolRecipe(fingerprint=pool_fingerprint(shards), rows=ws.n_rows(), shards=len(shards))


def method_again(recipe: TableRecipe, what: str) -> Score:
    """The method that a table was made by, with its settings. Raises CurateError if another tool made it; what: the
    table, for the message."""
    from curate.kinds.registry import find

    if recipe.attached:
        raise CurateError(
            f"{what} was attached from {next(iter(recipe.attached.files))}, and how it was computed is not known here."
        )
    return find("score", recipe.method).again(recipe.settings)


def model_recipe(choice: ModelChoice) -> ModelRecipe:
    """A model as recorded in a recipe."""
    weights, date = weights_fingerprint(choice), choice.date if prints_date(choice) else ""
    how = {**choice.shaping(), **choice.loading()}
    return ModelRecipe(name=choice.name, weights=weights, **how, date=date, config=config_digest(choice.name))


def model_choice(recipe: ModelRecipe, trusted: Collection[str] = ()) -> ModelChoice:
    """The model that a recipe records, to be loaded in the same way; but what could run code only as far as `trusted`
    (Workspace.trusted) says, since a recipe is a file."""
    refused = {name: False for name in TRUST if name not in trusted}
    return ModelChoice(**{**recipe.choice(), **refused})


def changed_settings(recipe: ModelRecipe) -> dict[str, Any]:
    """The settings of a model, except its name, that are not the default."""
    default = ModelChoice(recipe.name, special_tokens="text")
    return {key: value for key, value in recipe.choice().items() if value != getattr(default, key)}


def model_choices(recipe: TableRecipe, trusted: Collection[str] = ()) -> dict[str, ModelChoice]:
    """The models that a table was made with, by role; the base model has no name if its checkpoints were given."""
    choices = {role: model_choice(model, trusted) for role, model in recipe.models.items()}
    if recipe.checkpoints_given and "base" in choices:
        choices["base"] = replace(choices["base"], name="")
    return choices


def model_of(ws: Workspace, choice: ModelChoice) -> ModelChoice:
    """Resolve a model choice: the name of a run in the workspace denotes its trained model, unless it is also a folder
    or a short name; and control tokens in texts are read by the workspace's rule, unless the choice has its own.

    Raises CurateError if the run is not finished, involved no training, or is in an object store.
    """
    choice = by_rule(ws, choice)
    if choice.name in SHORT_NAMES or choice.name not in ws.run_names() or Path(choice.name).exists():
        return choice
    run = Run(ws, choice.name)
    recipe = run.require_recipe()
    if not recipe.weighting:
        raise CurateError(f"the run '{run.name}' is {recipe.model.name} without training; name that model.")
    if not run.is_complete():
        raise CurateError(f"the run '{run.name}' is not finished; the same `curate train` goes on with it.")
    folder = run.latest().folder
    if not isinstance(folder, Path):
        raise CurateError(f"{folder} is in an object store; copy the checkpoint to a folder, and name that.")
    return replace(choice, name=str(folder.absolute()))


def by_rule(ws: Workspace, choice: ModelChoice) -> ModelChoice:
    """The choice with the workspace's rule for control tokens in texts, if it has no rule of its own."""
    return replace(choice, special_tokens=ws.special_tokens()) if choice.special_tokens == "auto" else choice


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line: --set KEY=VALUE, …"""
    as_text = {key: str(v).lower() if v is None or isinstance(v, bool) else v for key, v in settings.items()}
    return [word for key, value in as_text.items() for word in ("--set", f"{key}={value}")]


def default_score_name(made_of: str, target: str | None) -> str:
    """The default name of a score; made_of: its method, or the vectors it is computed from."""
    return f"{made_of}_{target}" if target else made_of


def sample_columns(name: str, recipe: TableRecipe) -> dict[str, str]:
    """The columns of a score's table, except the id -> their names in `samples`: NAME, NAME_COLUMN."""
    columns = ["score", *(recipe.columns or ()), *(["subtasks"] if recipe.keeps_subtasks else []), "error"]
    return {column: name if column == "score" else f"{name}_{column}" for column in columns}


def scores_in(ws: Workspace, words: Collection[str] | None) -> list[str]:
    """The scores that words may name columns of, by how columns are named, so that no other's recipe is read, which may
    be damaged. words: None for all scores."""
    names = ws.score_names()
    return names if words is None else [n for n in names if any(w == n or w.startswith(f"{n}_") for w in words)]


def score_recipe(ws: Workspace, name: str) -> TableRecipe:
    """The recipe of a score (score.json), read without its parts."""
    return table_recipe(ws, "score", name)


def table_recipe(ws: Workspace, kind: str, name: str) -> TableRecipe:
    """The recipe of a table; kind: 'score' or 'vectors'."""
    require_intact(ws, kind, name)
    return read_recipe(ws.table_folder(kind, name) / recipe_file(kind), TableRecipe)


def checkpoint_recipe(checkpoint: CheckpointChoice, moments: bool) -> CheckpointRecipe:
    """A checkpoint as recorded in a recipe; moments: whether the optimizer's state is used."""
    return CheckpointRecipe(
        name=str(checkpoint),
        weights=weights_fingerprint(checkpoint.model),
        optimizer=checkpoint.optimizer_fingerprint() if moments else None,
        lr=checkpoint.lr,
    )


@dataclass(frozen=True)
class CheckpointSet:
    """The checkpoints that a method uses. given: the names given by the user; empty if they come from a warm-up, or if
    the model is used without training. origin: the model that their training began with, if known."""

    checkpoints: tuple[CheckpointChoice, ...] = ()
    given: tuple[str, ...] = ()
    warmup: WarmupRecipe | None = None
    origin: ModelChoice | None = None

    @property
    def planned(self) -> int:
        """The epochs of a warm-up that is not trained yet; 0 if there is none."""
        return self.warmup.planned if self.warmup else 0

    def recipes(self, moments: bool) -> list[CheckpointRecipe]:
        """The checkpoints as recorded in a recipe: none if the model is used without training."""
        trained = self.checkpoints if self.given or self.warmup else ()
        return [checkpoint_recipe(checkpoint, moments) for checkpoint in trained]

    def parameters(self) -> dict[str, list[int]]:
        """Shapes of the trained tensors, by name; empty if the model is used without training, or before a warm-up."""
        trained = self.checkpoints and (self.given or self.warmup) and not self.planned
        return tensors_of(resolve(self.checkpoints[-1].model.name)) if trained else {}


@dataclass(frozen=True)
class HeldOut:
    """The samples of the pool that a score leaves out: shard -> row in it -> reason. anchors: those among them that it
    uses as anchors. stamp: a fingerprint of all this."""

    left_out: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    anchors: Target | None = None
    stamp: str = ""
