"""The kinds of method, and how one is found: one method is one file.

    curate/methods/scores/bm25.py      class Bm25(Score)       ->  curate score bm25
    curate/methods/selectors/top.py    class Top(Selector)     ->  curate select --selector top

The file's name is what users type. Its one public class is a frozen dataclass whose fields are its settings;
the text under each field documents it. Other packages add methods through the entry-point group
`curate.methods`, as KIND.NAME. Verbs take objects; only the command line turns names into them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

from curate.errors import CurateError, nearest
from curate.kinds.executor import Workers
from curate.kinds.passes import Arrays as Arrays
from curate.kinds.passes import Columns as Columns
from curate.kinds.passes import Leg as Leg
from curate.kinds.passes import Pass as Pass
from curate.kinds.passes import Slope as Slope
from curate.kinds.passes import Watcher as Watcher
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.vectors import Aggregate, Anchors, Vectors

if TYPE_CHECKING:  # a machine that only runs models has no Arrow, polars or torch to be imported here
    import pyarrow as pa

    from curate.kinds.text import Text


class Method(ABC):
    """Anything with a name, settings and a docstring that is its help."""

    version: ClassVar[int] = 1  # goes up when equal settings give other results
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


# --- scores ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The val split of a target, or those a method asks for: its T samples and the sub-task of each ('' for none)."""

    name: str
    text: Text
    subtasks: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(cls, samples: Sequence[Any], subtasks: Sequence[str] = ()) -> Target:
        """A target from memory; samples as Text.of takes them."""
        from curate.kinds.text import Text

        return cls("target", Text.of(samples), tuple(subtasks) or ("",) * len(samples), "")


class Score(Method):
    """Turns samples into a column.

    scope 'row': a sample's score depends on that sample alone, so new shards are filled in and old ones
    stand; 'pool': it depends on the others, so new data makes it stale.
    columns: further columns, name -> numpy dtype, or 'id' for a sample's id as a number, uint64, and 0 for none.
    splits: those of a target that are its examples, where it uses one; 'test' only to find it in the pool.
    unit_bytes: text per committed unit. models: the roles of the models
    it needs, the first being the one that a bare --model names. usual_models: role -> the one taken where none is
    named. checkpoints: how many of a training it looks at: none, the last, or each; 'each' needs some.
    scores_warmup: whether the samples of its own warm-up are scored too. same_models: role -> the role whose model it
    takes where none is named.
    """

    scope: ClassVar[Literal["row", "pool"]]
    uses_target: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("val",)
    models: ClassVar[tuple[str, ...]] = ()
    usual_models: ClassVar[Mapping[str, str]] = {}
    same_models: ClassVar[Mapping[str, str]] = {}
    checkpoints: ClassVar[Literal["none", "last", "each"]] = "none"
    scores_warmup: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {}
    unit_bytes: ClassVar[int] = 16 << 20

    @abstractmethod
    def passes(self, target: Target | None) -> Sequence[Pass]:
        """The passes in order; only the last has no `reduce`."""

    def vectors(self) -> Pass | None:
        """The pass that makes a vector of each sample: a row of `vector` [B, D], of any length.

        It is the same for every target: the vectors are stored under a name of their own and serve all. The score is
        then made of them, by the one pass of `passes(target)`; without a target there are the vectors only.
        """
        return None

    def target_vectors(self) -> Pass | None:
        """The pass that makes a vector of each of a target's samples, where it is another."""
        return self.vectors()

    def warm_up(self) -> Warmup | None:
        """The training whose checkpoints it looks at where none are given; null where there is none."""
        return None

    def anchors(self) -> Aside | None:
        """The samples that are set aside for passes over anchors, and not scored; null where there are none."""
        return None

    def of_parameters(self, state: Arrays, moments: Any) -> Callable[[str], np.ndarray] | None:
        """What it makes of the model's parameters, from the states of its counting passes and the optimizer's moments
        (curate.gradients.optimizer_state.Moments): name -> float64, its shape; null for most."""
        return None

    def note(self, columns: Mapping[str, np.ndarray]) -> str:
        """What is to be said of a score once it is there, of its columns over the whole pool [N]; '' for nothing."""
        return ""

    def keeps_subtasks(self) -> bool:
        """Whether the table has the map column `subtasks`."""
        return False


@dataclass(frozen=True)
class Aside:
    """A share of the pool, drawn by the seed, that a score looks at and does not score."""

    share: float
    seed: int


@dataclass(frozen=True)
class Warmup:
    """A training that comes before a score or a mask: of `share` of the pool, drawn by the seed, as the settings say
    (names and values of curate.training.settings). A checkpoint is kept of every epoch, with the optimizer's state."""

    share: float
    seed: int
    settings: Mapping[str, Any]


def near_target(aggregate: Aggregate, keep_subtasks: bool) -> Pass:
    """The pass of a score on vectors that is their nearness to the target's."""
    anchors = partial(Anchors.of, aggregate=aggregate, keep_subtasks=keep_subtasks)
    return Pass("score", lambda batch, its: its.nearness(batch), open=anchors, flops=Anchors.flops)


def run(score: Score, batches: Sequence[Any], target: Target | None = None) -> list[Columns]:
    """All passes over batches in memory, one result per batch: a score without a workspace."""
    *counting, last = score.passes(target)
    state: Arrays = {}
    for step in counting:
        given = step.open(state) if step.open else state
        assert step.reduce is not None
        state = {**state, **step.reduce(step.map(batch, given) for batch in batches)}
    given = last.open(state) if last.open else state
    return [last.map(batch, given) for batch in batches]


# --- selectors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """At most `amount` of rows or tokens."""

    unit: Literal["rows", "tokens"]
    amount: float

    def fits(self, sizes: np.ndarray) -> int:
        """How many candidates, in the given order, stay within the budget."""
        if self.unit == "rows":
            return min(int(self.amount), len(sizes))
        return int(np.searchsorted(np.cumsum(sizes, dtype=np.float64), self.amount, side="right"))

    def pays(self, spent: float, size: float) -> bool:
        """Whether one more, of that size, stays within the budget."""
        return spent + size <= self.amount


@dataclass(frozen=True)
class Candidates:
    """What may be selected: N samples, by id ascending.

    ids: uint64 [N], the ids' 16 hex digits as numbers. values: float64 [N], finite, higher is better; or null
    where none was asked for. sources: int [N], positions in `source_names`. sizes: float64 [N], what each sample
    takes of the budget, in its unit. vectors: of every candidate, for a selector that uses them. target: the target's
    examples as such vectors, for one that uses it. history: those learnt before, as such vectors, the latest last; null
    where none were named. flops: what the selector has spent.
    """

    ids: np.ndarray
    values: np.ndarray | None
    sources: np.ndarray
    source_names: Sequence[str]
    sizes: np.ndarray
    vectors: Vectors | None = None
    target: Vectors | None = None
    history: Vectors | None = None
    flops: list[float] = field(default_factory=list)

    def charge(self, flops: float) -> None:
        """What a selector spends on tensors; the ledger adds it up."""
        self.flops.append(flops)

    @classmethod
    def of(
        cls,
        values: Sequence[float] | None = None,
        sources: Sequence[str] = (),
        sizes: Sequence[float] = (),
        vectors: Sequence[Sequence[float]] | np.ndarray | None = None,
        target: Sequence[Sequence[float]] | np.ndarray | None = None,
        subtasks: Sequence[str] = (),
        history: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> Candidates:
        """Candidates from memory, with ids 1, 2, …; without sources all are of one, without sizes each takes 1.

        vectors, target, history: [N, D], [T, D] and [H, D] of any length. subtasks: of the target's examples.
        """
        n = len(values if values is not None else vectors if vectors is not None else ())
        names, codes = np.unique(np.array(sources or [""] * n), return_inverse=True)
        return cls(
            np.arange(1, n + 1, dtype=np.uint64),
            None if values is None else np.array(values),
            codes,
            names.tolist(),
            np.array(sizes or [1.0] * n),
            None if vectors is None else Vectors.of(np.asarray(vectors, np.float64)),
            None if target is None else Vectors.of(np.asarray(target, np.float64), subtasks=subtasks),
            None if history is None else Vectors.of(np.asarray(history, np.float64)),
        )

    def require_values(self, selector: str) -> np.ndarray:
        if self.values is None:
            raise CurateError(f"the selector '{selector}' ranks by a value; say which with --by, as in --by bm25_t.")
        return self.values

    def require_vectors(self, selector: str) -> np.ndarray:
        """The candidates' unit vectors, float16 or wider [N, D]."""
        if self.vectors is None:
            raise CurateError(
                f"the selector '{selector}' works on vectors; say which by --vectors, as in --vectors embed "
                "(`curate score embed` makes some)."
            )
        return self.vectors.unit


class Selector(Method):
    """Columns, a budget and a seed in; positions of chosen candidates out, best first.

    uses_history: whether it looks at what was learnt before, where that is named. fills: whether it spends the whole
    budget while there are candidates; one that leaves out what is too much alike does not.
    """

    uses_vectors: ClassVar[bool] = False
    uses_target: ClassVar[bool] = False
    uses_history: ClassVar[bool] = False
    fills: ClassVar[bool] = True

    @abstractmethod
    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        """int64 [n], positions in `candidates`, best first: none twice, never over the budget."""


def by_value(values: np.ndarray) -> np.ndarray:
    """Positions by falling value; equal values stay in order of position, which is by id."""
    return np.argsort(-values, kind="stable")


def highest(values: np.ndarray, sizes: np.ndarray, budget: Budget) -> np.ndarray:
    """The longest beginning of the ranking `by_value` that fits the budget."""
    some = np.arange(len(values))
    if budget.unit == "rows" and 1 <= (n := int(budget.amount)) < len(values):
        some = np.flatnonzero(values >= np.partition(values, -n)[-n])  # only what may be chosen need be sorted
    order = some[by_value(values[some])]
    return order[: budget.fits(sizes[order])]


# --- weightings ------------------------------------------------------------------------------------------

Signal = Literal["loss", "token_loss", "column", "base_loss", "base_token_loss", "states", "outputs", "domains"]


class Weighting(Method):
    """Turns what a training step shows into weights: `init() -> state`, `update(step, state) -> weights, state`.

    scope 'sample': a sample's weight depends on that sample alone; 'batch': on all samples of the step, of every
    process and micro-batch, which `update` then sees together. needs: what of a Step it looks at; 'column' is one that
    the user names, 'base_loss' the same or else the sample's mean loss under the model that training begins with (or
    another, that `Training.reference` names); 'domains' wants samples that are drawn from a mixture.
    uses_target: whether it is given anchors, the target's samples as the model sees them, every `refresh` steps.
    normalize: 'mean1' divides by the sum of the weights (of tokens) instead of their number, so that a step's weights
    are 1 in the mean. The state is plain arrays, so that a checkpoint can hold it.

    chooses: it is shown more candidates than a step learns from, and gives at most `Step.room` of them a weight; the
    others are not learnt from. signed: its weights may be negative.
    """

    scope: ClassVar[Literal["sample", "batch"]] = "sample"
    needs: ClassVar[tuple[Signal, ...]] = ()
    uses_target: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    normalize: str = "none"
    refresh: int = 0

    @property
    def signed(self) -> bool:
        return False

    def matching(self) -> Matching | None:
        """How the candidates' gradients are to be compared; null: it does not look at them."""
        return None

    def init(self, column: np.ndarray | None) -> Arrays:
        """The state before the first step. column: of all training samples, float64 [N]; null where not asked for."""
        return {}

    def refreshed(self, anchors: Any, state: Arrays) -> Arrays:
        """The state with new anchors: the states of the target's samples under the model as it is, Tensor [V, D]."""
        return state

    @abstractmethod
    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        """The weights of the samples shown, and the state behind them."""


def weigh_once(weighting: Weighting, values: np.ndarray) -> np.ndarray:
    """The weights of samples from one column of them, float64 [N], as if all were one step's: a weighting offline."""
    column = np.asarray(values, np.float64)
    return weighting.update(Step(1, loss=column, column=column), weighting.init(column))[0].values


# --- mixers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domains:
    """D domains of a pool, by name.

    sizes: float64 [D], in the unit that their weights are shares of: samples or tokens. values: float64 [D], of each
    the mean of the user's column; null where none was named.
    """

    names: Sequence[str]
    sizes: np.ndarray
    values: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray:
        """Of each domain in the pool, float64 [D], summing to 1."""
        return self.sizes / self.sizes.sum()


@dataclass(frozen=True)
class Mixed:
    """Weights of domains, float64 [D], summing to 1; and what is to be told of how they were found."""

    weights: np.ndarray
    told: Mapping[str, float] = field(default_factory=dict)


class Proxies(ABC):
    """Small models that a mixer may have trained on mixtures; how, the user says."""

    @abstractmethod
    def train(self, label: str, weights: np.ndarray, weighting: Weighting | None = None, reference: str = "") -> Arrays:
        """Train one on a mixture, float64 [D]; returns what its weighting remembers in the end. reference: the label
        of an earlier one, whose losses the weighting compares with."""

    @abstractmethod
    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        """Train one on each of N mixtures, float64 [N, D]; returns their losses on the K targets, float64 [N, K]."""


class Mixer(Method):
    """Turns domains into weights.

    uses_values: whether it looks at a column of the samples. trains: whether it has proxies trained. judges: whether
    these are judged on targets.
    """

    uses_values: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    judges: ClassVar[bool] = False

    @abstractmethod
    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        """The weights of the domains."""


# --- masks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """What a mask chooses from: a model's parameters by name, tensors; and how many numbers of all it may take.

    scores: of a mask that ranks by a score's states: a parameter's name -> float64, its shape; asked for one at a time.
    gradients: of one that has a warm-up, likewise: the gradients of its steps, added up.
    """

    weights: Mapping[str, Any]
    budget: int
    scores: Callable[[str], np.ndarray] | None = None
    gradients: Callable[[str], np.ndarray] | None = None


class Mask(Method):
    """Chooses which numbers of a model's parameters may be trained: a name -> flat places in it, int64 ascending, as
    many as the budget together; of ties those that come first.

    uses_score: whether it ranks by a score that has parameters' values. interval: a field of masks that choose anew
    from the weights as they learn, after so many steps; 0: the mask stays.
    """

    uses_score: ClassVar[bool] = False
    interval: int = 0

    def warm_up(self) -> Warmup | None:
        """The training that comes before, of all parameters, whose steps' gradients are added up; null: none."""
        return None

    def check(self, given: Parameters) -> None:
        """Raises CurateError for what `init` would refuse, before a warm-up is paid for."""

    @abstractmethod
    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        """What is chosen before training."""

    def update(self, given: Parameters) -> dict[str, np.ndarray]:
        """What is chosen from then on, of weights that have learnt."""
        return self.init(given)


# --- pruners ---------------------------------------------------------------------------------------------


class Pruner(Method):
    """Says what each number of a training's update is worth, so that the least can be taken back."""

    @abstractmethod
    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        """Of every number of one parameter, float64 of its shape; the highest stay. before: training; update: what it
        added, 0 where nothing."""


# --- metrics ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One sample of a target, as a model is asked it.

    shots: the messages of worked examples that stand before it. messages: null for raw text. subtask: '' where there is
    none. options: the answers to choose among, the right one with them; empty where none are known. meta: the fields
    that the input had beside.
    """

    messages: list[dict[str, Any]] | None
    text: str | None = None
    shots: tuple[dict[str, Any], ...] = ()
    subtask: str = ""
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The last assistant's turn; '' where there is none."""
        last = self.messages[-1] if self.messages else None
        return last["content"] or "" if last and last["role"] == "assistant" else ""

    def prompt(self) -> list[dict[str, Any]]:
        """The worked examples and what comes before the answer."""
        return [*self.shots, *(self.messages or [])[: -1 if self.answer else None]]

    def sample(self, answer: str | None = None) -> dict[str, Any]:
        """As a sample that a model can score, with its own answer or another."""
        if self.messages is None:
            return {"messages": None, "text": self.text}
        said = [{"role": "assistant", "content": self.answer if answer is None else answer}]
        return {"messages": [*self.prompt(), *(said if self.answer or answer is not None else [])], "text": None}


@dataclass(frozen=True)
class Judged:
    """What a metric finds of each question.

    values: float64 [N], not a number where it could not be judged. said: what the model answered; null where it was not
    let to speak. error: why a question could not be judged, '' where it was. usage: what it cost (Usage of
    curate.models.forward).
    """

    values: np.ndarray
    error: np.ndarray
    usage: Any
    said: list[str] | None = None


class Metric(Method):
    """How well a model answers. better: whether a higher value is, or a lower one."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def judge(self, model: Any, questions: Sequence[Question]) -> Judged:
        """Ask a LanguageModel every question."""

    def summary(self, values: np.ndarray) -> float:
        """One number of all that could be judged."""
        return float(np.mean(values)) if len(values) else float("nan")


# --- exports ---------------------------------------------------------------------------------------------

_MOST_OPEN = 900  # files of an export that are open at once: systems allow some 1,024


@dataclass(frozen=True)
class Row:
    """One selected sample on its way to a trainer."""

    id: str
    source: str
    messages: list[dict[str, Any]] | None
    text: str | None
    meta: str = "{}"
    loss_weight: float = 1.0
    repeats: int = 1
    rank: int = 0
    part: str = ""

    @classmethod
    def of(cls, sample: str | Sequence[Mapping[str, str]]) -> Row:
        """A row from memory: a text, or messages with role and content."""
        if isinstance(sample, str):
            return cls("0" * 16, "memory", None, sample)
        return cls("0" * 16, "memory", [{"extra": None, **m} for m in sample], None)

    def chat(self) -> list[dict[str, Any]]:
        """The messages as trainers know them: role, content and the keys kept in `extra`; [] for raw text."""
        return [
            {"role": m["role"], "content": m["content"], **(json.loads(m["extra"]) if m["extra"] else {})}
            for m in self.messages or []
        ]


@dataclass(frozen=True)
class Part:
    """Rows of an export that are to be drawn at one rate: a domain of a mixture, or rows of like weight.

    label: what the part is called, '' where it is the only one. rows: those written. share: of all draws. draws: of an
    epoch, a whole number.
    """

    label: str
    rows: int
    share: float
    draws: int

    def file(self, name: str) -> str:
        """What its file is called, without an ending, in the export of the manifest `name`."""
        return part_file(name, self.label)


def part_file(name: str, label: str) -> str:
    return f"{name}_{label}" if label else name


class Export(Method):
    """Writes the rows of a manifest as the files of one trainer.

    weighted: whether its rows can carry a weight. Where not, `weights` says what becomes of a manifest whose weights
    differ: it is refused; its rows repeat; or they come in parts, `strata` of each source by quantiles of their
    weights. blends: whether the trainer can draw from several parts at different rates, as a mixture wants.
    """

    weighted: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    weights: str = "refuse"
    strata: int = 0

    def check(self) -> None:
        """Raises CurateError for settings with which nothing can be written."""
        return None

    @abstractmethod
    def example(self, row: Row) -> dict[str, Any]:
        """One row as the trainer will see it. Raises CurateError where the format cannot hold it."""

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        """Write what tells the trainer of the files, and how often parts are drawn. final: where `folder` will lie, for
        trainers that want whole paths. Returns the files."""
        return []

    @abstractmethod
    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        """Write the files into an empty folder, one row at a time. Returns them."""

    def write_lines(self, path: Path, rows: Iterator[Row]) -> Path:
        """Write the examples as JSON, one a line."""
        import orjson

        with open(path, "wb") as f:
            for row in rows:
                f.write(orjson.dumps(self.example(row), option=orjson.OPT_APPEND_NEWLINE))
        return path

    def write_parts(self, rows: Iterator[Row], folder: Path, file: Callable[[Row], str]) -> list[Path]:
        """Write the examples as JSON, one a line, each into the file that it belongs to."""
        import orjson

        held: dict[Path, list[bytes]] = {}
        for row in rows:
            lines = held.setdefault(folder / f"{file(row)}.jsonl", [])
            lines.append(orjson.dumps(self.example(row), option=orjson.OPT_APPEND_NEWLINE))
            if len(lines) == 1024:
                _append(held, [folder / f"{file(row)}.jsonl"])
        _append(held, list(held))
        return list(held)

    def write_parquets(self, rows: Iterator[Row], schema: pa.Schema, file: Callable[[str], Path]) -> list[Path]:
        """Write the examples as Parquet, those of each part into a file of its own, given the part's label."""
        import pyarrow.parquet as pq

        files: dict[Path, Any] = {}
        with ExitStack() as stack:
            for part, table in self.tables_by_part(rows, schema):
                if (path := file(part)) not in files:
                    if len(files) == _MOST_OPEN:
                        raise CurateError(f"at most {_MOST_OPEN} parts are written at once here; take fewer strata.")
                    path.parent.mkdir(exist_ok=True)
                    files[path] = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                files[path].write_table(table)
        return list(files)

    def tables(self, rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
        """The examples as tables of at most 1,024 rows."""
        for _, table in self.tables_by_part(rows, schema, parted=False):
            yield table

    def tables_by_part(
        self, rows: Iterator[Row], schema: pa.Schema, parted: bool = True
    ) -> Iterator[tuple[str, pa.Table]]:
        """The examples as tables of at most 1,024 rows of one part, with its label."""
        import pyarrow as pa

        held: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            mine = held.setdefault(row.part if parted else "", [])
            mine.append(self.example(row))
            if len(mine) == 1024:
                yield row.part, pa.Table.from_pylist(mine, schema=schema)
                mine.clear()
        for part, left in held.items():
            if left:
                yield part, pa.Table.from_pylist(left, schema=schema)


def _append(held: Mapping[Path, list[bytes]], paths: Sequence[Path]) -> None:
    """Write what is held of files: no file stays open, however many parts there are."""
    for path in paths:
        with open(path, "ab") as f:
            f.writelines(held[path])
        held[path].clear()


# --- executors -------------------------------------------------------------------------------------------


class Executor(Method):
    """Who runs the tasks of a stage, and where; the bytes they write do not depend on it."""

    @abstractmethod
    def open(self) -> Workers:
        """Workers, to be closed after use; they start when there is something to do."""


# --- finding methods -------------------------------------------------------------------------------------

KINDS: dict[str, type[Method]] = {
    "score": Score,
    "selector": Selector,
    "weighting": Weighting,
    "mixer": Mixer,
    "mask": Mask,
    "pruner": Pruner,
    "metric": Metric,
    "export": Export,
    "executor": Executor,
}


def names(kind: str) -> list[str]:
    """The methods of a kind, ours and those of other packages."""
    return sorted({*_own(kind), *_foreign(kind)})


def find(kind: str, name: str) -> Any:
    """The class of a method. Raises CurateError, naming the nearest, where there is none."""
    own, foreign = _own(kind), _foreign(kind)
    if name in foreign:
        if name in own:
            raise CurateError(
                f"the {kind} '{name}' is curate's own; the package {foreign[name].value} may not take it."
            )
        return foreign[name].load()
    if name not in own:
        raise CurateError(f"there is no {kind} '{name}': {nearest(name, [*own, *foreign])}")
    module = importlib.import_module(f"curate.methods.{kind}s.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, KINDS[kind])
    ]
    return found


def make(kind: str, name: str, settings: Mapping[str, str] | None = None) -> Any:
    """A method with settings given as text (`--set field=value`). Raises CurateError for an unknown or ill one."""
    return with_settings(find(kind, name), settings or {}, f"the {kind} '{name}'")


def with_settings(cls: type, settings: Mapping[str, str], what: str) -> Any:
    """An object of a dataclass, with its fields given as text. Raises CurateError for an unknown or ill one."""
    types = get_type_hints(cls)
    fields = {f.name: types[f.name] for f in dataclasses.fields(cls)}
    values = {}
    for key, text in settings.items():
        if key not in fields:
            raise CurateError(f"{what} has no setting '{key}': {nearest(key, fields)}")
        values[key] = _parse(text, fields[key], f"the setting {key} of {what}")
    return cls(**values)


def _parse(text: str, wanted: Any, where: str) -> Any:
    if get_origin(wanted) is Literal:
        if text not in get_args(wanted):
            raise CurateError(f"{where} is one of {', '.join(get_args(wanted))}, not '{text}'.")
        return text
    if wanted is str:
        return text
    try:
        value = json.loads({"none": "null", "true": "true", "false": "false"}.get(text.lower(), text))
    except json.JSONDecodeError:
        value = text
    options = get_args(wanted) or (wanted,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not any(isinstance(value, get_origin(o) or o) and isinstance(value, bool) == (o is bool) for o in options):
        expected = " or ".join("none" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
        raise CurateError(f"{where} is a {expected}, not '{text}'.")
    return value


def list_methods(kind: str | None = None) -> list[dict[str, str]]:
    """Every method: kind, name, summary. Reads the docstrings without importing the methods."""
    if kind is not None and kind not in KINDS:
        raise CurateError(f"there is no kind '{kind}': {nearest(kind, KINDS)}")
    return [
        {"kind": k, "name": name, "summary": help_text(k, name).split("\n")[0]}
        for k in ([kind] if kind else KINDS)
        for name in names(k)
    ]


def help_text(kind: str, name: str) -> str:
    """The docstring of a method's class."""
    if name in _own(kind):
        spec = importlib.util.find_spec(f"curate.methods.{kind}s.{name}")
        assert spec is not None and spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        return ast.get_docstring(classes[0]) or "" if classes else ""
    return inspect.getdoc(find(kind, name)) or ""


def settings_help(kind: str, name: str) -> list[dict[str, Any]]:
    """Every setting of a method: name, type, default and the text that stands under its field."""
    return fields_help(find(kind, name))


def fields_help(cls: type) -> list[dict[str, Any]]:
    """The fields of a dataclass, as `settings_help` has them."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(line.target, ast.Name):
            notes[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return [
        {"name": f.name, "type": str(f.type), "default": f.default, "note": notes.get(f.name, "")}
        for f in dataclasses.fields(cls)
    ]


def _own(kind: str) -> list[str]:
    folder = importlib.import_module(f"curate.methods.{kind}s")
    return [m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_")]


def _foreign(kind: str) -> dict[str, Any]:
    prefix = f"{kind}."
    return {e.name.removeprefix(prefix): e for e in entry_points(group="curate.methods") if e.name.startswith(prefix)}
