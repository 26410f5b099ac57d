"""`curate mask`: choose which parameter elements are trained, under a budget, and store the mask under a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.parameters import Mask, Parameters
from curate.models.choice import ModelChoice
from curate.models.load import load
from curate.results import Result
from curate.runs.account import Account
from curate.runs.scored_model import scored_model
from curate.runs.warmup import warm_up
from curate.store.locks import lock
from curate.store.mask_file import write_mask
from curate.store.recipes import MaskRecipe
from curate.store.run_record import Run
from curate.store.workspace import Workspace, __version__
from curate.tables.dependents import refuse_other, refuse_other_mask
from curate.tables.inputs import method_recipe, model_of, model_recipe
from curate.tables.run_costs import charged_entries


@dataclass
class MaskResult(Result):
    """The result of a mask. by_kind: parameters, selected elements and their share, by kind of layer."""

    name: str
    selected: int = 0
    parameters: int = 0
    by_kind: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: str = ""
    """The last checkpoint of the method's own warm-up, which a training can start from."""
    warnings: list[str] = field(default_factory=list)


def mask(
    ws: AnyWorkspace,
    name: str,
    method: Mask | str,
    frac: float,
    *,
    model: ModelChoice | str | None = None,
    score: str | None = None,
    allow_stale: bool = False,
    fresh: bool = False,
    wait: float | None = None,
) -> MaskResult:
    """Choose the fraction `frac` of a model's parameter elements, and write the mask NAME.

    model: the model whose weights are used; None for a method that ranks by a score, which brings its own. score: the
    name of that score. fresh: replace a mask of that name that was made in another way, or that runs were trained with.

    Raises CurateError for a fraction out of range, a score without values per parameter, a stale score (unless
    allowed), or a name that is taken.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, method = workspace_of(ws, wait=wait), method_of(Mask, method)
    ws.check_name(name, "mask")
    if not 0 < frac <= 1:
        raise CurateError(f"--frac {frac:g}: a mask takes a share of the parameters, above 0 and at most 1.")
    refuse_other(ws, "mask", name, {"mask": method_recipe(method).as_json(), "frac": frac}, fresh)
    ranked = _by_score if method.uses_score else _by_weights
    source = ranked(ws, method, model, score, allow_stale)
    result = MaskResult(name, warnings=list(source.warnings))
    weights = {n: p.detach().float().cpu().numpy() for n, p in source.parameters.items()}
    sizes = {n: int(np.prod(weight.shape)) for n, weight in weights.items()}
    result.parameters = sum(sizes.values())
    budget = round(frac * result.parameters)
    if not budget:
        raise CurateError(f"--frac {frac:g} of {result.parameters} parameters is none; take a larger share.")
    inputs = Parameters(weights, budget, source.scores, head_dim=source.head_dim)
    choice, basis = source.model, source.recipe
    if (warmup := method.warm_up()) is not None:
        method.check(inputs)
        run = warm_up(ws, choice, warmup, Account("mask", [method.name], name, {"train": "warm-up"}))
        gradients, result.checkpoint = _sums(run)
        inputs = replace(inputs, gradients=gradients)
        basis = {"checkpoint": result.checkpoint, "warmup": run.account}
    selected = method.init(inputs)
    result.selected = sum(map(len, selected.values()))
    if not result.selected:
        raise CurateError(f"the mask '{method.name}' finds nothing to choose from in {choice.name}; exclude less.")
    result.by_kind = _by_kind(sizes, selected)
    recipe = MaskRecipe(
        name=name,
        curate=__version__,
        mask=method_recipe(method),
        frac=frac,
        model=model_recipe(choice),
        **basis,
        paid=charged_entries(ws, [choice.name]),
        shapes={n: list(weight.shape) for n, weight in weights.items()},
        selected=result.selected,
        result={key: value for key, value in asdict(result).items() if key != "name"},
    )
    with lock(ws, f"mask {name}"):
        refuse_other_mask(ws, name, selected, fresh)
        write_mask(ws, name, selected, recipe)
    return result


@dataclass(frozen=True)
class _Source:
    """What elements are chosen from: a model's parameters and, for a method that ranks by a score, its values of them.
    recipe: what the mask's recipe records of it."""

    model: ModelChoice
    parameters: Mapping[str, Any]
    scores: Any = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    head_dim: int = 0


def _by_score(
    ws: Workspace, method: Mask, model: ModelChoice | str | None, score: str | None, allow_stale: bool
) -> _Source:
    if not score or model is not None:
        raise CurateError(
            f"the mask '{method.name}' ranks by a score's values of parameters: add --score NAME (a `dualsft` score), "
            "and no --model, which is the score's."
        )
    opened = scored_model(ws, score, allow_stale=allow_stale)
    values = opened.method.of_parameters(opened.states, opened.model.at.moments)
    return _Source(opened.origin, opened.model.parameters, values, {"scores": {score: opened.recipe}}, opened.warnings)


def _by_weights(
    ws: Workspace, method: Mask, model: ModelChoice | str | None, score: str | None, allow_stale: bool
) -> _Source:
    if score or model is None:
        raise CurateError(f"the mask '{method.name}' uses a model's weights: add --model M, not --score.")
    choice = model_of(ws, ModelChoice(model) if isinstance(model, str) else model)
    loaded, _ = load(choice)
    return _Source(choice, dict(loaded.named_parameters()), head_dim=_head_dim(loaded.config))


def _head_dim(config: Any) -> int:
    """Rows of a head of attention; 0 if the configuration does not say."""
    heads = getattr(config, "num_attention_heads", 0) or 0
    return int(getattr(config, "head_dim", 0) or (config.hidden_size // heads if heads else 0))


def _sums(run: Run) -> tuple[Callable[[str], np.ndarray], str]:
    """The sums of a warm-up's gradients by parameter, and the folder of its last checkpoint."""
    from curate.gradients.optimizer_state import SUM
    from curate.models.tensor_files import array_readers

    with run.checkpoints()[-1].local() as folder:  # whose files are those that were written
        readers = array_readers(folder / "optimizer.safetensors")
    return lambda parameter: readers[f"{SUM}.{parameter}"](), str(folder)


def _by_kind(sizes: dict[str, int], selected: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    totals, counts = dict[str, int](), dict[str, int]()
    for name, size in sizes.items():
        kind = kind_of(name)
        totals[kind] = totals.get(kind, 0) + size
        counts[kind] = counts.get(kind, 0) + len(selected.get(name, ()))
    return [
        {"kind": kind, "parameters": totals[kind], "selected": counts[kind], "share": counts[kind] / totals[kind]}
        for kind in sorted(totals, key=lambda k: -counts[k])
    ]


def kind_of(name: str) -> str:
    """The kind of layer that a parameter belongs to, by the usual naming conventions."""
    words = {
        "embeddings": ("embed", "wte", "wpe"),
        "head": ("lm_head",),
        "norms": ("norm", "ln_"),
        "attention": ("attn", "attention"),
        "feed-forward": ("mlp", "feed_forward", "ffn"),
    }
    return next((kind for kind, patterns in words.items() if any(word in name for word in patterns)), "other")
