"""`--plan FILE.toml`: a command's options in a file. What the command line says comes before what the file says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from curate.errors import CurateError, nearest

_SET = "set"  # the table of settings


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


def with_plan(ctx: click.Context, _: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of --set: the settings of the plan, and after them, so that they win, those given."""
    return (*ctx.meta.get(_SET, ()), *given)


def _read(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is None:
        return
    told = _told(Path(name))
    settings = told.pop(_SET, {})
    options = {opt.removeprefix("--"): p for p in ctx.command.params for opt in p.opts if opt.startswith("--")}
    known = sorted(options.keys() - {"plan", _SET} | {_SET})
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
    ctx.meta[_SET] = [f"{key}={_text(value)}" for key, value in _flat(name, settings)]


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
    return str(value).lower() if isinstance(value, bool) else str(value)
