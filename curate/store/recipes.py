"""Recipes: what a table, a manifest, a run, a mask or an audit was made of, as JSON beside it; declared and read here.

A recipe has a format. Format 1 has no key `format`; a later version of curate that writes another writes its number,
and this version refuses to read it, since it would misread it. Keys whose value says nothing (no models, no vectors)
are absent, as are those of another kind of table, manifest or run: these are UNSET, which is false in a condition.
Frozen structs of msgspec rather than dataclasses, as they are checked against their types when read.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from curate.errors import CurateError, MissingError
from curate.store.encoding import read_json, write_json
from curate.store.object_store import Location

FORMAT = 1
SHAPING = ("weights", "dtype", "context", "too_long")  # the entries of a model that results depend on


class Recipe(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The base of all recipes and of their parts."""

    def as_json(self) -> dict[str, Any]:
        """The recipe as its JSON file holds it."""
        return msgspec.to_builtins(self, enc_hook=_plain)


class MethodRecipe(Recipe, frozen=True, kw_only=True):
    """A method of any kind but a score, with all its settings."""

    name: str
    version: int
    settings: dict[str, Any]


class ModelRecipe(Recipe, frozen=True, kw_only=True):
    """A model and how it was run.

    weights: the fingerprint of its weights, configuration and tokenizer. date: the date that its chat template prints;
    absent if it prints none. add_eos_token: absent if a raw text's end is not scored. special_tokens: absent if control
    tokens in texts are parsed. config: of random weights, the digest of what they were drawn for, whatever the seed."""

    name: str
    weights: str
    dtype: str
    context: int
    too_long: str
    tokenizer: str = ""
    chat_template: str = ""
    allow_pickle: bool = False
    allow_remote_code: bool = False
    allow_unused: bool = False
    add_eos_token: bool = False
    special_tokens: str = ""
    date: str = ""
    config: str = ""

    def shape(self) -> dict[str, Any]:
        """The entries that results depend on, which excludes the model's location."""
        optional = ("add_eos_token", "special_tokens", "date")
        given = {key: getattr(self, key) for key in optional if getattr(self, key)}
        return {**{key: getattr(self, key) for key in SHAPING}, **given}

    def choice(self) -> dict[str, Any]:
        """The arguments of curate.models.choice.ModelChoice that name this model and load it in the same way."""
        given = {**msgspec.structs.asdict(self), "special_tokens": self.special_tokens or "parse"}.items()
        return {key: value for key, value in given if key not in ("weights", "config") and (value or key != "date")}


class CheckpointRecipe(Recipe, frozen=True, kw_only=True):
    """A checkpoint. optimizer: the fingerprint of the optimizer's state, None if it is not used."""

    name: str
    weights: str
    optimizer: str | None
    lr: float | None


class WarmupRecipe(Recipe, frozen=True, kw_only=True):
    """A training on a share of the pool that a method begins with. wanted: a fingerprint of what determines it apart
    from the pool. place: its folder in prepared/. planned: the epochs of one that is not trained yet."""

    wanted: str
    place: str
    share: float
    seed: int
    planned: int = 0


class AttachedRecipe(Recipe, frozen=True, kw_only=True):
    """The columns of another tool's files. files: path -> SHA-256. by: how rows are matched: `id`, `row`, or a field of
    the samples' metadata. column: the score's, or the vectors'."""

    files: dict[str, str]
    by: str
    column: str


class TableRecipe(Recipe, frozen=True, kw_only=True):
    """score.json, or vectors.json, which has no target and no columns.

    settings: those that the table depends on; changed: those of them that are not the default. parameters: name ->
    shape of the trained tensors that gradients were taken for. paid: entries of the ledger that paid for the models.
    states: paths in prepared/ of the states of earlier passes. attached: where another tool made it; its method is then
    `attached`.
    """

    format: int = FORMAT
    method: str
    version: int
    settings: dict[str, Any]
    changed: dict[str, Any]
    scope: str
    models: dict[str, ModelRecipe] = {}
    checkpoints_given: list[str] = []
    checkpoints: list[CheckpointRecipe] = []
    parameters: dict[str, list[int]] = {}
    warmup: WarmupRecipe | None = None
    paid: list[str] = []
    target: str | None | UnsetType = UNSET
    target_fingerprint: str | None | UnsetType = UNSET
    splits: list[str] = []
    pool_fingerprint: str | None | UnsetType = UNSET
    columns: dict[str, str] | UnsetType = UNSET
    keeps_subtasks: bool | UnsetType = UNSET
    states: list[str] = []
    vectors: str = ""
    vectors_fingerprint: str = ""
    attached: AttachedRecipe | None = None
    fingerprint: str


class PoolRecipe(Recipe, frozen=True, kw_only=True):
    """The pool that a manifest was made from: its fingerprint, samples and shards."""

    fingerprint: str
    rows: int
    shards: int


class ManifestReference(Recipe, frozen=True, kw_only=True):
    """Another manifest, and the SHA-256 of its table."""

    name: str
    sha256: str


class EvalRecipe(Recipe, frozen=True, kw_only=True):
    """What a proxy was evaluated on."""

    target: str
    split: str
    metric: str


class ProxyRecipe(Recipe, frozen=True, kw_only=True):
    """How the proxies of a mixture were trained and evaluated."""

    model: ModelRecipe
    settings: dict[str, Any]
    judges: list[EvalRecipe]


class ManifestStep(Recipe, frozen=True, kw_only=True):
    """How a manifest was made, as it is recorded in what was made from it; `selection` is the step before."""

    selector: MethodRecipe | UnsetType = UNSET
    choice: dict[str, Any] | UnsetType = UNSET
    weighting: MethodRecipe | UnsetType = UNSET
    mixer: MethodRecipe | UnsetType = UNSET
    proxy: ProxyRecipe | None | UnsetType = UNSET
    proxies: list[str] | UnsetType = UNSET
    paid: list[str] | UnsetType = UNSET
    by: str | None | UnsetType = UNSET
    repeats: int | None | UnsetType = UNSET
    manifest: ManifestReference | None | UnsetType = UNSET
    selection: ManifestStep | None | UnsetType = UNSET
    scores: dict[str, TableRecipe] | UnsetType = UNSET


class _Manifest(Recipe, frozen=True, kw_only=True):
    format: int = FORMAT
    name: str
    curate: str

    def step(self, scores: bool = True) -> ManifestStep:
        """What is recorded of this manifest in what is made from it; scores: whether with the recipes of its scores."""
        fields = [field for field in ManifestStep.__struct_fields__ if scores or field != "scores"]
        return ManifestStep(**{field: getattr(self, field) for field in fields if hasattr(self, field)})


class SelectionRecipe(_Manifest, frozen=True, kw_only=True):
    """manifests/NAME.json of `curate select`. choice: the fields of its SelectionSpec. command: the command line that
    repeats it. target: the fingerprint of the target. history: manifest or target trained on before -> fingerprint."""

    selector: MethodRecipe
    choice: dict[str, Any]
    command: str
    pool: PoolRecipe
    scores: dict[str, TableRecipe]
    target: str | None
    history: dict[str, str] = {}
    result: dict[str, Any]
    sha256: str = ""


class WeightsRecipe(_Manifest, frozen=True, kw_only=True):
    """manifests/NAME.json of `curate weigh`. manifest, selection: the manifest whose samples are weighted."""

    weighting: MethodRecipe
    by: str
    seed: int
    repeats: int | None
    manifest: ManifestReference | None
    selection: ManifestStep | None
    pool: PoolRecipe
    scores: dict[str, TableRecipe]
    result: dict[str, Any]
    sha256: str = ""


class MixtureRecipe(_Manifest, frozen=True, kw_only=True):
    """manifests/NAME.json of `curate mix`. share: of the draws, by domain. exact: whether every epoch has each domain's
    quota. proxies: the account names of the runs that the mixer trained."""

    mixer: MethodRecipe
    choice: dict[str, Any]
    exact: bool
    share: list[float]
    domain: str
    manifest: ManifestReference | None
    selection: ManifestStep | None
    proxy: ProxyRecipe | None
    paid: list[str]
    pool: PoolRecipe
    scores: dict[str, TableRecipe]
    result: dict[str, Any]
    proxies: list[str]
    sha256: str = ""


SamplesRecipe = SelectionRecipe | WeightsRecipe  # of a manifest of samples
ManifestRecipe = SamplesRecipe | MixtureRecipe


class MaskRecipe(Recipe, frozen=True, kw_only=True):
    """How a mask was made, in the header of its file. scores: of a mask that ranks by a score. checkpoint, warmup: the
    last checkpoint and the account name of the warm-up whose gradients it ranks by. shapes: of all parameters."""

    format: int = FORMAT
    name: str
    curate: str
    mask: MethodRecipe
    frac: float
    model: ModelRecipe
    scores: dict[str, TableRecipe] | UnsetType = UNSET
    checkpoint: str = ""
    warmup: str = ""
    paid: list[str] = []
    shapes: dict[str, list[int]]
    selected: int
    result: dict[str, Any]


class RunMask(Recipe, frozen=True, kw_only=True):
    """The mask of a run."""

    name: str
    sha256: str
    method: MethodRecipe
    selected: int
    scores: dict[str, TableRecipe] | UnsetType = UNSET
    warmup: str = ""
    paid: list[str] = []


class StreamRecipe(Recipe, frozen=True, kw_only=True):
    """The stream that a run was trained on, with its replay memory."""

    name: str
    memory: int
    replay: float


class PruneRecipe(Recipe, frozen=True, kw_only=True):
    """What a run was pruned by. stamp: the fingerprint of the model before. before: an earlier pruning."""

    pruner: MethodRecipe
    sparsity: float
    run: str
    stamp: str
    before: PruneRecipe | None = None


class RunRecipe(Recipe, frozen=True, kw_only=True):
    """run.json: everything that a run's result depends on. A model that was not trained has no weighting.

    begun, until: older and newer rows of the ledger under its account belong to other runs; ledger_…: by `sequence`,
    from and up to. model_paid, paid: entries for the model it starts from, and for its reference model. left: what
    pruning left of it. carried: the fingerprint of the adapter and the optimizer's state that it goes on with. trainer:
    the one that trained it, where that was not curate's own.
    """

    format: int = FORMAT
    begun: str = ""
    ledger_begun: int | UnsetType = UNSET
    ledger_until: int | UnsetType = UNSET
    name: str
    curate: str
    model: ModelRecipe
    manifest: str | None
    manifest_sha256: str | None | UnsetType = UNSET
    pool: str | None | UnsetType = UNSET
    stream: StreamRecipe | None | UnsetType = UNSET
    selection: ManifestStep | None
    weighting: MethodRecipe | None
    by: str | None
    reference: ModelRecipe | None | UnsetType = UNSET
    model_paid: list[str] | UnsetType = UNSET
    paid: list[str] | UnsetType = UNSET
    scores: dict[str, TableRecipe]
    target: str | None
    target_fingerprint: str | None | UnsetType = UNSET
    mask: RunMask | None | UnsetType = UNSET
    settings: dict[str, Any]
    changed: dict[str, Any]
    seed: int
    samples: int
    steps: int
    account: str = ""
    trainable: int | None = None
    optimizer_bytes: int | None = None
    peak_bytes: int | None = None
    until: str = ""
    pruned: PruneRecipe | None = None
    left: dict[str, int] = {}
    carried: str = ""
    trainer: str = ""


R = TypeVar("R", bound=Recipe)


def read_recipe(path: Location, kind: type[R]) -> R:
    """A recipe in a JSON file. Raises FileNotFoundError; CurateError for a later format, or JSON that is none."""
    return recipe_of(_json(path), kind, str(path))


def read_manifest_recipe(path: Location) -> ManifestRecipe:
    """The recipe of a manifest of any kind, in its JSON file. Raises the same errors."""
    present = value.keys() if isinstance(value := _json(path), dict) else ()
    kind = MixtureRecipe if "mixer" in present else WeightsRecipe if "weighting" in present else SelectionRecipe
    return recipe_of(value, kind, str(path))


def recipe_of(value: Any, kind: type[R], where: str) -> R:
    """A recipe from parsed JSON; where: its place, for error messages. Raises CurateError."""
    if isinstance(value, dict) and isinstance(file_format := value.get("format", 1), int) and file_format > FORMAT:
        raise CurateError(
            f"{where} has format {file_format}, and this version of curate reads up to format {FORMAT}: upgrade curate."
        )
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CurateError(f"{where} is damaged or was edited: {error}; restore it from a copy.") from None


def write_recipe(path: Location, recipe: Recipe) -> None:
    """Write a recipe as indented JSON, atomically."""
    write_json(path, recipe.as_json())


def known(value: Any) -> Any:
    """A field's value; None if it is absent."""
    return None if value is UNSET else value


def _json(path: Location) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:  # removed since it was seen
        raise MissingError(f"{path} is gone.") from None
    except ValueError:
        raise CurateError(f"{path} is damaged or was edited: it is not JSON; restore it from a copy.") from None


def _plain(value: Any) -> Any:
    """What msgspec does not write: NumPy's numbers and arrays, and subclasses of Python's types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a recipe holds plain values, not {type(value).__name__}")
