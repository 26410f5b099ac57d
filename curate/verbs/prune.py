"""`curate prune`: revert the least important part of a finished run's update; the result is a run of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from msgspec import structs

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.parameters import Pruner
from curate.models.choice import ModelChoice
from curate.results import Result
from curate.store.ledger import charged
from curate.store.ledger_files import next_sequence
from curate.store.locks import lock
from curate.store.recipes import PruneRecipe, RunRecipe
from curate.store.run_record import Run, require_run
from curate.store.workspace import Workspace
from curate.tables.inputs import method_recipe, model_choice


@dataclass
class Pruned(Result):
    """The result of pruning. changed: elements that training changed; kept: those of them that keep their change."""

    name: str
    run: str
    step: int = 0
    parameters: int = 0
    changed: int = 0
    kept: int = 0
    folder: str = ""


def prune(
    ws: AnyWorkspace,
    run: str,
    method: Pruner | str,
    sparsity: float,
    *,
    name: str | None = None,
    wait: float | None = None,
) -> Pruned:
    """Revert the least important changes of a run, and write the result as the run NAME (default: RUN_METHOD).

    sparsity: the share of each parameter's elements that are reset to their values before training: 0 keeps the run as
    it is, 1 gives the base model. With LoRA, the update is the change that it adds to the base model; the new run is a
    full model. It is evaluated and compared like any other run, at the cost of the run that it was made from.

    Raises CurateError for a run that is not finished or involved no training, a sparsity outside [0, 1], or a name that
    is taken by another run.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, method = workspace_of(ws, wait=wait), method_of(Pruner, method)
    if not 0 <= sparsity <= 1:
        raise CurateError(f"--sparsity {sparsity:g}: it is the share of an update that is reverted, from 0 to 1.")
    source, name = require_run(ws, run), name or f"{run}_{method.name}"
    recipe = source.require_recipe()
    if not recipe.weighting:
        raise CurateError(f"the run '{run}' is a model without further training; name one that was trained.")
    if not source.is_complete():
        raise CurateError(f"the run '{run}' is not finished; the same `curate train` goes on with it.")
    ws.check_name(name, "run")
    checkpoint = source.latest()
    prune_recipe = PruneRecipe(
        pruner=method_recipe(method),
        sparsity=sparsity,
        run=run,
        stamp=source.stamp(checkpoint.step),
        before=recipe.pruned,
    )
    result, new = Pruned(name, run, checkpoint.step), Run(ws, name)
    ended = _ended(ws, recipe)  # later charges to its account are not part of this run
    with lock(ws, f"run {name}"):
        if (existing := new.recipe) and existing.pruned != prune_recipe:
            raise CurateError(f"the run '{name}' exists, and is another; choose another --name.")
        if existing and existing.left and new.is_complete():  # already done
            new.remove_leftovers()
            return replace(result, **existing.left, folder=str(new.latest().folder))
        columns = {"methods": [method.name], "name": name, "phase": "prune", "model": recipe.model.name}
        with checkpoint.local() as folder, charged(ws.path, "prune", **columns) as meter:
            meter.begin(recipe.samples)
            start = model_choice(recipe.model, ws.trusted)
            write = _pruned(recipe, start, folder, method, sparsity, checkpoint.step, result)
            new.remove_leftovers()
            new.commit(checkpoint.step, True, {}, write)
            # Last, so that the run exists completely or not at all.
            counts = {"parameters": result.parameters, "changed": result.changed, "kept": result.kept}
            new.begin(
                structs.replace(
                    recipe, name=name, account=recipe.account or run, **ended, pruned=prune_recipe, left=counts
                )
            )
    result.folder = str(new.latest().folder)
    return result


def _ended(ws: Workspace, recipe: RunRecipe) -> dict[str, Any]:
    """Where in the ledger the charges to a run end that is pruned now."""
    if recipe.until:
        return {}
    following = next_sequence(ws.path)
    place = {} if following is None else {"ledger_until": following}
    return {"until": datetime.now(UTC).isoformat(), **place}


def _pruned(
    recipe: RunRecipe,
    choice: ModelChoice,
    folder: Path,
    method: Pruner,
    sparsity: float,
    step: int,
    result: Pruned,
) -> Callable[[Path], None]:
    """Prune the model of a checkpoint; returns a function that writes it into a folder. choice: the model that the run
    started from."""
    import torch

    from curate.models.choice import weights_fingerprint
    from curate.models.load import load
    from curate.models.quiet import quiet

    if weights_fingerprint(choice) != recipe.model.weights:
        raise CurateError(f"{choice.name} is no longer the model that the run '{result.run}' started from.")
    rounded = not recipe.settings["lora_r"] and choice.dtype != "auto"  # then it was rounded before training
    start_model = load(replace(choice, dtype=choice.dtype if rounded else "float32", device="cpu"))[0]
    start_weights = {name: parameter.float() for name, parameter in start_model.named_parameters()}
    model, tokenizer = load(replace(choice, name=str(folder), dtype="float32", device="cpu"))
    if {n: p.shape for n, p in model.named_parameters()} != {n: p.shape for n, p in start_weights.items()}:
        raise CurateError(
            f"the run '{result.run}' and {choice.name} have other parameters, so nothing can be taken back."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = start_weights[name].detach().numpy()
            update = parameter.numpy().astype(np.float64) - base
            worth = method.worth(base.astype(np.float64), update)
            if np.isnan(worth).any():
                raise CurateError(f"the pruner '{method.name}' gives values for {name} that are NaN.")
            keep = kept(worth, sparsity)
            result.parameters += update.size
            result.changed += int(np.count_nonzero(update))
            result.kept += int(np.count_nonzero(update[keep]))
            parameter[~torch.from_numpy(keep)] = start_weights[name][~torch.from_numpy(keep)]

    def write(into: Path) -> None:
        with quiet():
            model.save_pretrained(into)
        tokenizer.save_pretrained(into)
        (into / "trainer.json").write_bytes(orjson.dumps({"step": step}))

    return write


def kept(worth: np.ndarray, sparsity: float) -> np.ndarray:
    """Which elements to keep: the (1 - sparsity) share of highest `worth`, ties by position; bool, in its shape."""
    flat, n_kept = worth.ravel(), worth.size - round(sparsity * worth.size)
    if not n_kept:
        return np.zeros(worth.shape, bool)
    threshold = np.partition(flat, worth.size - n_kept)[worth.size - n_kept]  # the lowest value that is kept
    is_kept = flat > threshold
    is_kept[np.flatnonzero(flat == threshold)[: n_kept - np.count_nonzero(is_kept)]] = True
    return is_kept.reshape(worth.shape)
