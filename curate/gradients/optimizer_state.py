"""An optimizer's state at a checkpoint, by parameter name.

The state can be written by curate's trainer (optimizer.safetensors), or by torch.optim.AdamW under Hugging Face's
Trainer or a custom loop (optimizer.pt), for a whole model or a peft adapter. torch numbers its tensors instead of
naming them; the names are inferred from the order in which the trained parameters are given to an optimizer, and every
shape is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import CurateError
from curate.models.choice import OPTIMIZERS, CheckpointChoice
from curate.models.tensor_files import read_tensors


@dataclass(frozen=True)
class Moments:
    """AdamW's first and second moments (exp_avg, exp_avg_sq) by parameter name, after `step` steps."""

    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    step: int


def plain(name: str) -> str:
    """A parameter's name without peft's prefix and adapter name."""
    return name.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")


def load_moments(checkpoint: CheckpointChoice, parameters: Mapping[str, nn.Parameter], every: Sequence[str]) -> Moments:
    """The optimizer's state of the trained parameters, on their device. every: names of all the model's parameters.

    Raises CurateError if there is no state, or it belongs to other parameters.
    """
    path = Path(checkpoint.optimizer)
    if not checkpoint.optimizer:
        raise CurateError(
            f"{checkpoint.model.name} has no optimizer state ({', '.join(OPTIMIZERS)}); it is needed for Adam's step: "
            "save it with the checkpoint (Hugging Face's Trainer does unless save_only_model=True)."
        )
    if path.suffix == ".safetensors":
        mean, square, step = _ours(path, parameters)
    else:
        mean, square, step = _torch_s(path, parameters, every)
    for name, parameter in parameters.items():
        for moment in (mean[name], square[name]):
            if not bool(moment.isfinite().all()):
                raise CurateError(f"{path}: the state of {name} is not all finite; the file is damaged or diverged.")
            if moment.shape != parameter.shape:
                raise CurateError(
                    f"{path} is the state of another model: {name} has the shape {list(parameter.shape)}, and its "
                    f"state {list(moment.shape)}."
                )
    placement = {n: (p.device, torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()}
    return Moments(
        {name: value.to(*placement[name]) for name, value in mean.items()},
        {name: value.to(*placement[name]) for name, value in square.items()},
        step,
    )


def _ours(path: Path, parameters: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    stored: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}, "step": {}, INDEX: {}}
    for key, value in read_tensors(path).items():
        kind, _, name = key.partition(".")
        if kind in stored:
            stored[kind][plain(name)] = value
    if stored[INDEX]:
        raise CurateError(
            f"{path} is the state of a training by a mask, which has no moments outside the mask; use a run that "
            "trains all parameters, or LoRA."
        )
    for kind in ("exp_avg", "exp_avg_sq"):
        _refuse_other_names(path, stored[kind], parameters)
    step = int(max(map(float, stored["step"].values()), default=0))
    return stored["exp_avg"], stored["exp_avg_sq"], step


def _refuse_other_names(path: Path, stored: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
    if stored.keys() != parameters.keys():
        missing = sorted(parameters.keys() - stored.keys()) or sorted(stored.keys() - parameters.keys())
        verb = "lacks" if parameters.keys() - stored.keys() else "has"
        raise CurateError(f"{path} is the state of another model: it {verb} {missing[0]}, one of {len(missing)} such.")


def _torch_s(
    path: Path, parameters: Mapping[str, nn.Parameter], every: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        groups, states = stored["param_groups"], stored["state"]
    except Exception as error:  # unpickling raises many types; all mean no optimizer's state  # noqa: BLE001
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CurateError(f"{path} cannot be read as the state of a torch optimizer ({first_line}).") from None
    mean, square, step = {}, {}, 0
    for name, number in _numbered(path, groups, parameters, every).items():
        state = states.get(number, {})
        if not {"exp_avg", "exp_avg_sq"} <= state.keys():
            keys = ", ".join(map(str, state)) or "nothing"
            raise CurateError(f"{path}: {name} has {keys}, and no exp_avg and exp_avg_sq: this is not AdamW's state.")
        mean[name], square[name] = state["exp_avg"], state["exp_avg_sq"]
        step = max(step, int(state.get("step", 0)))
    return mean, square, step


def _numbered(
    path: Path, groups: list[dict[str, Any]], parameters: Mapping[str, nn.Parameter], every: Sequence[str]
) -> dict[str, int]:
    """The index in torch's state of each trained parameter: by name, if torch has stored names; otherwise by order,
    within one group of all the model's parameters or of the trained ones, or two groups, matrices and the rest (as in
    Hugging Face's Trainer)."""
    numbers = [number for group in groups for number in group["params"]]
    sizes = [len(group["params"]) for group in groups if group["params"]]
    matrices = [name for name in parameters if parameters[name].ndim >= 2]
    if groups and all("param_names" in group for group in groups):
        names = [plain(name) for group in groups for name in group["param_names"]]
    elif len(sizes) == 1 and len(numbers) == len(every):
        names = list(every)
    elif len(sizes) == 2 and sizes[0] == len(matrices):
        names = matrices + [name for name in parameters if parameters[name].ndim < 2]
    elif len(sizes) <= 1:
        names = list(parameters)
    else:
        raise CurateError(
            f"{path} has {len(sizes)} groups of {', '.join(map(str, sizes))} tensors, without the parameters' names; "
            f"the trained ones are {len(matrices)} matrices and {len(parameters) - len(matrices)} others."
        )
    if len(numbers) != len(names) or not parameters.keys() <= set(names):
        raise CurateError(
            f"{path} is the state of another model: it has {len(numbers)} tensors, and {len(parameters)} are trained."
        )
    number_of = dict(zip(names, numbers, strict=True))
    return {name: number_of[name] for name in parameters}


STATE = ("exp_avg", "exp_avg_sq", "step")
SUM = "sum"  # stored with the state: sums of the steps' gradients (setting sum_gradients)
INDEX = "index"  # stored with the state when training with a mask: flat positions of the selected parameters


def stored_under(what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors stored as `what.NAME`, by NAME."""
    return {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{what}.")}
