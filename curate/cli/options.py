"""What commands share: options, and settings and models given as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from curate.errors import CurateError, nearest
from curate.kinds import registry
from curate.models.choice import ModelChoice
from curate.store.workspace import Workspace, open_workspace


def workspace(create: bool = False) -> Callable[[Any], Any]:
    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Workspace:
        if not value:
            raise CurateError("say which workspace: -w FOLDER, or set CURATE_WORKSPACE.")
        return open_workspace(value, create=create)

    return click.option(
        *("-w", "--workspace", "ws"),
        envvar="CURATE_WORKSPACE",
        metavar="WS",
        callback=convert,
        help="The workspace's folder" + (", made where there is none." if create else "."),
    )


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
map_option = click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="OURS=THEIRS,…",
    help="Field names, as in prompt=question,completion=answer. OURS: " + "prompt, completion, system, messages, text, "
    "instruction, input, output, history, source, subtask, split.",
)
format_option = click.option(
    "--format",
    "fmt",
    default="auto",
    metavar="FORMAT",
    help="auto (record by record), messages, sharegpt, prompt-completion, alpaca, question-answer or text.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A setting of the method; see `curate methods`.",
)


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """The key=value pairs of a repeatable option whose values may also stand behind commas."""
    pairs = {}
    for text in texts:
        for item in text.split(",") if option == "--map" else [text]:
            key, equals, value = item.partition("=")
            if not (key and equals and (value or option == "--set")):
                raise CurateError(f"{option} {item}: write it as KEY=VALUE.")
            pairs[key.strip()] = value.strip()
    return pairs


def by_owner(owners: Sequence[str], method_names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings meant for each owner: OWNER.FIELD=VALUE, or FIELD=VALUE where there is one method only.

    An owner without a name has all that are given without one.
    """
    mine: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for key, value in pairs(settings, "--set").items():
        owner, dot, field = key.rpartition(".")
        if not dot and "" not in mine and len(method_names) != 1:
            raise CurateError(
                f"--set {key}={value}: with several methods say whose, as in --set {owners[0]}.{key}={value}."
            )
        if dot and owner not in owners:
            raise CurateError(f"--set {key}={value} is for '{owner}': {nearest(owner, owners)}")
        mine[owner if dot or "" in mine else method_names[0]][field] = value
    return mine


def models_of(given: Sequence[str], settings: dict[str, str], nameless: bool = False) -> dict[str, ModelChoice]:
    """Role -> model; a MODEL without a role is the first of each method's. nameless: settings may come without one."""
    found = {}
    for text in given:
        role, equals, name = text.partition("=")
        role, name = (role, name) if equals and role.isidentifier() else ("", text)
        found[role] = registry.with_settings(ModelChoice, {"name": name, **settings}, "the model")
    if settings and not found and nameless:
        return {"": registry.with_settings(ModelChoice, {"name": "", **settings}, "the model")}
    if settings and not found:
        raise CurateError(f"--set model.{next(iter(settings))}=…: say which model, by --model.")
    return found


def settings_text(fields: Sequence[dict[str, Any]]) -> str:
    """Settings with their defaults, types and what they mean, as lines."""
    return "".join(f"\n  {f['name']}={f['default']!r}  ({f['type']})\n      {f['note']}" for f in fields)
