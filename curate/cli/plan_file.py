"""`--plan FILE.toml`: a command's options in a file. What the command line says comes before what the file says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from curate.errors import CurateError, nearest

_SET = "set"  # the table of settings
_WEIGHTING = "plan's weighting"
_LENGTHS = {"flops", "flops_of"}  # options that say how long to train
_EITHER = (  # settings and options of which one says what the others do
    {"epochs", "steps", *_LENGTHS},
    {"batch_size", "batch_tokens", "per_device_train_batch_size", "gradient_accumulation_steps"},
)
_NOT_IN_PLANS = {"plan", "set", "settings", "workspace", "json", "help"}


def plan_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the option --plan, whose file gives the command's other options, and its settings in [set]."""
    return click.option(
        "--plan",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="A TOML file with options of this command, as in model = 'tiny', and with settings in the table [set]; "
        "options that are given here come before those.",
    )(command)


def with_plan(given: Sequence[str], weighting: str) -> tuple[list[str], list[str]]:
    """The settings of the plan and, after them, so that they win, those given; and what of the plan is left out, in
    words. weighting: the one that is used, as a plan's settings are of its own.

    What the command line says of a length (epochs, steps, FLOPs), or of a step's size, replaces what the plan does.
    """
    from curate.training.settings import our_name

    ctx = click.get_current_context()
    told: dict[str, str] = ctx.meta.get(_SET, {})
    names = {our_name(text.partition("=")[0].strip()) for text in given}
    names |= {option for option in _LENGTHS if _is_said(ctx, option)}
    replaced = names.union(*(group for group in _EITHER if names & group))
    for option in _LENGTHS & replaced:
        if not _is_said(ctx, option):
            ctx.params[option] = None
    kept = {name: text for name, text in told.items() if our_name(name) not in replaced}
    owner = ctx.meta.get(_WEIGHTING)
    unused = [name for name in kept if owner not in (None, weighting) and name.startswith(f"{owner}.")]
    left_out = [f"the plan's {name} is left out, as the weighting is {weighting}" for name in unused]
    return [*(f"{name}={text}" for name, text in kept.items() if name not in unused), *given], left_out


def _is_said(ctx: click.Context, option: str) -> bool:
    return ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE


def _read(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is None:
        return
    told = _told(Path(name))
    settings = told.pop(_SET, {})
    options = {opt.removeprefix("--"): p for p in ctx.command.params for opt in p.opts if opt.startswith("--")}
    known = sorted(options.keys() - _NOT_IN_PLANS | {_SET})
    values = dict[str, Any](ctx.default_map or {})
    for key, value in told.items():
        if key not in known:
            raise CurateError(f"{name} has '{key}', which is no option of this command: {nearest(key, known)}")
        option = options[key]
        if option.multiple != isinstance(value, list):
            raise CurateError(f"{name}: {key} is {'a list' if option.multiple else 'one value'}, not {value!r}.")
        values[str(option.name)] = list(map(str, value)) if option.multiple else value
    if not isinstance(settings, Mapping):
        raise CurateError(f"{name}: the settings are a table, [set] with lines FIELD = VALUE, not {settings!r}.")
    ctx.default_map = values
    ctx.meta[_SET] = {key: _text(value) for key, value in _flat(name, settings)}
    ctx.meta[_WEIGHTING] = told.get("weighting")


def _told(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CurateError(f"--plan {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CurateError(f"{path} is no TOML: {error}.") from None


def _flat(name: str, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings as FIELD or OWNER.FIELD and value. Raises CurateError for one that lets a model's own code run, which
    only the command line may say."""
    from curate.models.choice import TRUST  # loads numpy, which --help does without

    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        found += [(f"{key}.{field}", v) for field, v in value.items()] if isinstance(value, Mapping) else [(key, value)]
    for key, _ in found:
        if key.rpartition(".")[2] in TRUST:
            raise CurateError(f"{name} sets {key}, which lets the model's own code run; say so by --set {key}=….")
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
