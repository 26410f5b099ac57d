"""The laws of masks, mixers, pruners, exports and executors: what holds for every one that is found."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.executor import Tasks
from curate.kinds.export import Part, Row
from curate.kinds.mixer import Domains, Proxies
from curate.kinds.parameters import Parameters
from curate.kinds.passes import Arrays
from curate.kinds.registry import find, names
from curate.kinds.weighting import Weighting
from tests.conftest import tree_bytes

# --- masks -----------------------------------------------------------------------------------------------

SHAPES = {
    "model.embed_tokens.weight": (50, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.layers.0.input_layernorm.weight": (8,),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def arrays(seed: int) -> dict[str, np.ndarray]:
    return {name: np.random.default_rng([seed, i]).normal(size=shape) for i, (name, shape) in enumerate(SHAPES.items())}


def parameters(budget: int) -> Parameters:
    return Parameters(arrays(0), budget, arrays(1).__getitem__, arrays(2).__getitem__)


def small(name: str) -> Any:
    """A mask as it fits a small model; blocks of 256 do not."""
    cls = find("mask", name)
    return cls(**{key: value for key, value in {"block": 4, "rank": 3}.items() if key in cls.__dataclass_fields__})


@pytest.mark.parametrize("name", names("mask"))
@pytest.mark.parametrize("budget", [64, 200, SIZE])
def test_a_mask_chooses_places_that_are_there_once_and_within_its_budget(name: str, budget: int) -> None:
    mask, given = small(name), parameters(budget)
    mask.check(given)
    chosen = mask.init(given)
    for parameter, places in chosen.items():
        assert places.dtype == np.int64 and (np.diff(places) > 0).all(), parameter
        assert not len(places) or places[0] >= 0 and places[-1] < np.prod(SHAPES[parameter])
    count = sum(map(len, chosen.values()))
    assert 0 < count <= budget


@pytest.mark.parametrize("name", names("mask"))
def test_a_mask_is_the_same_again_and_of_the_weights_as_they_are(name: str) -> None:
    mask, given = small(name), parameters(200)
    first = {parameter: places.tolist() for parameter, places in mask.init(given).items()}
    for again in (mask.init(given), mask.update(given)):
        assert {parameter: places.tolist() for parameter, places in again.items()} == first


# --- mixers ----------------------------------------------------------------------------------------------


class Known(Proxies):
    """Trainings whose outcome is a formula: the loss falls with the weight of the second domain."""

    def train(self, label: str, weights: np.ndarray, weighting: Weighting | None = None, reference: str = "") -> Arrays:
        state = weighting.init(None) if weighting else {}
        return {**state, "mean": weights.astype(np.float64)} if "mean" not in state else state

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        return 2.0 - mixtures[:, 1:2] + 0.1 * mixtures[:, :1]


def domains(order: tuple[int, ...] = (0, 1, 2)) -> Domains:
    labels, sizes, values = np.array(["a", "b", "c"]), np.array([500.0, 300.0, 200.0]), np.array([0.1, 0.9, 0.4])
    place = list(order)
    return Domains(labels[place].tolist(), sizes[place], values[place])


def mixer(name: str) -> Any:
    return find("mixer", name)(**({"weights": "a=1,b=2,c=3"} if name == "given" else {}))


@pytest.mark.parametrize("name", [n for n in names("mixer") if not find("mixer", n).trains])
def test_weights_of_domains_sum_to_one_and_go_with_the_domains(name: str) -> None:
    whole = dict(zip(domains().names, mixer(name).mix(domains()).weights, strict=True))
    assert sum(whole.values()) == pytest.approx(1) and min(whole.values()) >= 0
    for order in itertools.permutations(range(3)):
        turned = domains(order)
        assert dict(zip(turned.names, mixer(name).mix(turned).weights, strict=True)) == pytest.approx(whole)


@pytest.mark.parametrize("name", [n for n in names("mixer") if find("mixer", n).evaluates])
def test_a_mixer_that_evaluates_mixtures_finds_the_better_domain(name: str) -> None:
    found = mixer(name).mix(domains(), Known())
    assert found.weights.sum() == pytest.approx(1) and (found.weights >= 0).all()
    assert found.weights[1] > domains().share[1] and all(np.isfinite(v) for v in found.info.values())
    assert mixer(name).mix(domains(), Known()).weights.tolist() == found.weights.tolist()


# --- pruners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("pruner"))
def test_a_pruner_values_every_element_by_itself_or_its_matrix(name: str) -> None:
    pruner, rng = find("pruner", name)(), np.random.default_rng(3)
    before, update = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    update[2, 3] = 0.0  # an element that did not change has a finite value, too
    ranked = pruner.worth(before, update)
    assert ranked.shape == (6, 5) and np.isfinite(ranked).all()
    order = rng.permutation(30)
    turned = pruner.worth(before.ravel()[order].reshape(6, 5), update.ravel()[order].reshape(6, 5))
    assert turned.ravel() == pytest.approx(ranked.ravel()[order])


# --- exports ---------------------------------------------------------------------------------------------


def export_of(name: str) -> Any:
    return find("export", name)(**({"tokenizer": "tiny"} if name == "megatron" else {}))


def rows(parts: tuple[str, ...] = ("",)) -> list[Row]:
    """Five chats, dealt out among the parts."""
    turns = [(f"what is {i}?", f"it is {i}") for i in range(5)]
    made = [Row.of([{"role": "user", "content": a}, {"role": "assistant", "content": b}]) for a, b in turns]
    return [
        replace(row, id=f"{i:016x}", rank=i, part=parts[i % len(parts)], source="s")
        for i, row in enumerate(made, start=1)
    ]


def written(export: Any, given: list[Row], folder: Path) -> dict[str, bytes]:
    """The files of an export, as the verb has it write them: the rows, then what tells the trainer of them."""
    folder.mkdir(parents=True)
    files = export.write(iter(given), folder, "name")
    labels = list(dict.fromkeys(row.part for row in given))
    counts = [sum(row.part == label for row in given) for label in labels]
    parts = [Part(label, n, n / len(given), n) for label, n in zip(labels, counts, strict=True)]
    files += export.describe(folder, "name", parts, Path("/final"))
    assert files and all(path.exists() and folder in path.parents for path in files)
    return tree_bytes(folder, "*")


@pytest.mark.parametrize("name", names("export"))
def test_an_export_writes_the_same_bytes_again_and_says_which_files(name: str, tmp_path: Path) -> None:
    export = export_of(name)
    export.check()
    for parts in (("",), ("x", "y")) if export.blends else (("",),):
        first = written(export, rows(parts), tmp_path / f"first{len(parts)}")
        again = written(export, rows(parts), tmp_path / f"again{len(parts)}")
        assert first.keys() == again.keys()
        assert all(first[path] == again[path] for path in first if not path.endswith((".arrow", "state.json")))


@pytest.mark.parametrize("name", names("export"))
def test_an_export_shows_a_row_as_json_and_refuses_in_a_sentence(name: str) -> None:
    export = export_of(name)
    assert json.dumps(export.example(rows()[0]), default=str)
    try:
        export.example(Row.of("a text of its own"))
    except CurateError as error:
        assert str(error).endswith(".")


# --- executors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A task: a number, and what it counts for."""

    number: int
    cost: float = 1.0
    samples: int = 1


def square(piece: Piece) -> int:
    if piece.number == -1:
        raise CurateError("this one cannot be done.")
    return piece.number**2


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.ray] if n == "ray" else []) for n in names("executor")]
)
def test_an_executor_does_every_task_once_and_raises_what_one_raised(name: str) -> None:
    workers = find("executor", name)(workers=2).open()
    try:
        begun: list[int] = []
        tasks = Tasks([Piece(i, cost=float(i)) for i in range(6)])
        done = list(workers.run(square, tasks, lambda task: begun.append(task.number)))
        assert sorted((task.number, result.result) for task, result in done) == [(i, i * i) for i in range(6)]
        assert sorted(begun) == list(range(6)) and begun[0] == 5  # the most expensive one comes first
        with pytest.raises(CurateError, match="this one cannot be done"):
            list(workers.run(square, Tasks([Piece(1), Piece(-1)]), lambda task: None))
    finally:
        workers.close()


def test_the_laws_know_every_kind() -> None:
    """A kind that is added without laws of its own fails here."""
    from curate.kinds.registry import KINDS

    lawful = {"score", "selector", "weighting", "metric", "mask", "mixer", "pruner", "export", "executor"}
    assert set(KINDS) == lawful
