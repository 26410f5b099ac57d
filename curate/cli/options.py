"""Shared by commands: options, and parsing of settings and models given as text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import curate
from curate.errors import CurateError, nearest
from curate.kinds.fields import with_settings
from curate.store.input_limits import InputLimits

if TYPE_CHECKING:
    from curate.models.choice import ModelChoice
    from curate.store.workspace import Workspace

_LEAVE = ("allow_files", "allow_pickle", "allow_remote_code")  # options before the command


def _wait(ctx: click.Context, param: click.Parameter, value: float | None) -> None:
    if value is not None:
        ctx.meta["wait"] = value  # which a command has from those before it


wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    is_eager=True,  # so that the workspace is opened with it
    expose_value=False,
    callback=_wait,
    help="Wait so long for a part that another process writes; else the command ends at once.",
)


def workspace(create: bool = False, writes: bool = False) -> Callable[[Any], Any]:
    """The option -w, which opens the workspace; create: make it if it does not exist; writes: with --wait."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Workspace:
        given = ctx.find_root().params
        before = given.get("workspace")  # `curate -w WS command` too
        if before and ctx.get_parameter_source(str(param.name)) is not ParameterSource.COMMANDLINE:
            value = before
        if not value:
            raise CurateError("say which workspace: -w FOLDER, or set CURATE_WORKSPACE.")
        leave = {name: given[name] for name in _LEAVE if given.get(name)}
        return curate.open_workspace(value, create=create, wait=ctx.meta.get("wait", 0.0), **leave)

    option = click.option(
        *("-w", "--workspace", "ws"),
        envvar="CURATE_WORKSPACE",
        metavar="WS",
        callback=convert,
        help="The workspace's folder" + (", created if it does not exist." if create else "."),
    )
    return (lambda command: option(wait_option(command))) if create or writes else option


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only print what would be done.")
replace_option = click.option(
    "--fresh",
    is_flag=True,
    help="Replace one of that name that was made in another way, or that something was made from.",
)
map_option = click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="OURS=THEIRS,…",
    help="Map our field names to yours, as in prompt=question,completion=answer. OURS: prompt, completion, system, "
    "messages, text, instruction, input, output, history, chosen, rejected, label, source, subtask, split.",
)
turn_key_option = click.option(
    "--turn-key",
    "turn_keys",
    multiple=True,
    metavar="NAME",
    help="A key of turns that the chat template prints, beside the usual ones (tool_calls, reasoning_content, name "
    "…); repeatable. Other keys of turns go to `meta`.",
)
choice_answer_option = click.option(
    "--choice-answer",
    type=click.Choice(["letter", "text"]),
    default="letter",
    show_default=True,
    help="The answer to a question with options (MMLU, ARC): the letter or the text of the right one.",
)
format_option = click.option(
    "--format",
    "fmt",
    default="auto",
    metavar="FORMAT",
    help="Record format: auto (per record), preference, messages, sharegpt, prompt-completion, alpaca, question-answer "
    "or text.",
)


def _limits(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> InputLimits:
    return with_settings(InputLimits, pairs(value, "--limit"), "--limit")


limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=N",
    callback=_limits,
    help="What an input may cost: row_mib (one row of text; 32), ratio (how many times its size a packed file may "
    "unpack to; 250), unpacked_gib (1024).",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A setting of the method; see `curate methods`.",
)


def grouped(into: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options whose values reach the command as one argument, `into`: make(**values)."""

    def declared() -> None: ...

    for option in options:
        option(declared)
    names = [parameter.name for parameter in declared.__click_params__]  # type: ignore[attr-defined]

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            return command(**{into: make(**{name: values.pop(name) for name in names})}, **values)

        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """The key=value pairs of a repeatable option; --map also accepts several separated by commas."""
    pairs = {}
    for text in texts:
        for item in text.split(",") if option == "--map" else [text]:
            key, equals, value = item.partition("=" if "=" in item else ":")
            if not (key and equals and (value or option == "--set")):
                raise CurateError(f"{option} {item}: write it as KEY=VALUE.")
            pairs[key.strip()] = value.strip()
    return pairs


def by_owner(owners: Sequence[str], method_names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of each owner: from OWNER.FIELD=VALUE, or FIELD=VALUE if there is only one method.

    If there is an owner '', it gets all settings without an owner. Raises CurateError for unknown or ambiguous owners.
    """
    settings_of: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for key, value in pairs(settings, "--set").items():
        owner, dot, field = key.rpartition(".")
        if not dot and "" not in settings_of and len(method_names) != 1:
            raise CurateError(
                f"--set {key}={value}: with several methods say whose, as in --set {owners[0]}.{key}={value}."
            )
        if dot and owner not in owners:
            raise CurateError(f"--set {key}={value} is for '{owner}': {nearest(owner, owners)}")
        settings_of[owner if dot or "" in settings_of else method_names[0]][field] = value
    return settings_of


def models_of(given: Sequence[str], settings: dict[str, str], nameless: bool = False) -> dict[str, ModelChoice]:
    """Role -> model, from MODEL or ROLE=MODEL; without a role, '' (each method's first role). nameless: allow settings
    without a model."""
    by_role = {}
    for text in given:
        role, equals, name = text.partition("=")
        role, name = (role, name) if equals and role.isidentifier() else ("", text)
        by_role[role] = with_settings(curate.ModelChoice, {"name": name, **settings}, "the model")
    if settings and not by_role and nameless:
        return {"": with_settings(curate.ModelChoice, {"name": "", **settings}, "the model")}
    if settings and not by_role:
        raise CurateError(f"--set model.{next(iter(settings))}=…: say which model, by --model.")
    return by_role


def settings_text(fields: Sequence[dict[str, Any]]) -> str:
    """Settings with their defaults, types and descriptions, as lines."""
    return "".join(f"\n  {f['name']}={f['default']!r}  ({f['type']})\n      {f['note']}" for f in fields)
