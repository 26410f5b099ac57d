"""audit: evaluates selectors over several training stages, from a plan in TOML."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.console import notes, page_path, say
from curate.cli.options import as_json_option, dry_run_option, workspace
from curate.errors import CurateError
from curate.text_table import table

if TYPE_CHECKING:
    from curate.numerics.long_horizon.scorecard import Scorecard
    from curate.runs.audit_spec import Audit
    from curate.store.workspace import Workspace


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME | join AUDIT...")
@workspace(writes=True)
@click.option("--plan", "plan_file", metavar="FILE", help="The audit's plan, in TOML (docs: Audit).")
@click.option("--model", "model_name", metavar="MODEL", help="Use this model instead of the plan's.")
@click.option("--seeds", type=int, metavar="N", help="Number of seeds, instead of the plan's.")
@click.option("-o", "--output", metavar="FILE", help="Write the scorecard and its figures to the page FILE.html.")
@click.option("--fresh", is_flag=True, help="Discard an existing audit of that name and start over.")
@dry_run_option
@as_json_option
def audit(
    ws: Workspace,
    names: tuple[str, ...],
    plan_file: str | None,
    model_name: str | None,
    seeds: int | None,
    output: str | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train in stages on each selector's data, and measure whether what wins now helps or harms later stages.

    Running the same command again resumes an interrupted audit. A plan with a [grid] is several audits, NAME_… each,
    and ends with the table of them all; `curate audit join A B` makes that table of audits that there are, and a name
    may be a pattern ('skills_*').
    """
    path = page_path(output, "audit.html") if output else None
    if plan_file is None:
        _join(ws, _named(ws, names), path, as_json)
        return
    name, *others = names
    if others:
        raise CurateError(f"a plan is for one NAME, not {' '.join(names)}; `curate audit join …` goes without --plan.")
    from curate.runs.audit_grid import read_plans

    plans = read_plans(Path(plan_file), model_name, seeds, ws.trusted)
    if list(plans) == [""]:
        _audit(ws, name, plans[""], path, fresh, dry_run, as_json)
        return
    by_name = {f"{name}_{suffix}": plan for suffix, plan in plans.items()}
    if dry_run:
        planned = [curate.audit(ws, its, plan, dry_run=True).planned or {} for its, plan in by_name.items()]
        total = {key: sum(figures[key] for figures in planned) for key in planned[0]}
        text = f"Would make {len(by_name)} audits: {total['trainings']:,} trainings.\n{', '.join(by_name)}."
        say({"audits": list(by_name), **total}, as_json, text)
        return
    for each, plan in by_name.items():
        curate.audit(ws, each, plan, fresh=fresh)
    _join(ws, list(by_name), path, as_json)


def _named(ws: Workspace, names: tuple[str, ...]) -> list[str]:
    """The audits that `join A B …` names, by patterns too. Raises CurateError for any other words without a plan."""
    from curate.tables.audit_cards import audit_names

    if names[0] != "join":
        raise CurateError(f"curate audit {names[0]}: say by --plan FILE what to do; `curate audit join` shows audits.")
    found: list[str] = []
    for name in names[1:]:
        its = fnmatch.filter(audit_names(ws), name)
        if not its and set(name) & set("*?["):
            raise CurateError(
                f"no audit of {ws.path} is called {name}; there are {', '.join(audit_names(ws)) or 'none'}."
            )
        found += its or [name]
    if not found:
        raise CurateError("curate audit join: name the audits to put into one table, or '*' for all.")
    return found


def _join(ws: Workspace, names: list[str], path: Path | None, as_json: bool) -> None:
    """Show several audits in one table."""
    from curate.pages.audits import page, reading, rows, values
    from curate.tables.audit_cards import joined

    found = joined(ws, names)
    shown = rows(found)
    text = [table(shown, {key: key for key in shown[0]}), "", *reading(found)]
    if path:
        path.write_text(page(found, f"Audits of {ws.path}"), encoding="utf-8")
        text.append(f"\nWritten: {path}.")
    missing = [f"{name}: {note}" for name, _, card in found for note in card.missing]
    say({"audits": values(found)}, as_json, "\n".join(text) + notes(missing))


def _audit(ws: Workspace, name: str, plan: Audit, path: Path | None, fresh: bool, dry_run: bool, as_json: bool) -> None:
    """Make one audit, and show its scorecard."""
    r = curate.audit(ws, name, plan, fresh=fresh, dry_run=dry_run)
    sizes = ", ".join(f"{s.name} {n:,}" for s, n in zip(plan.stages, r.sizes, strict=True))
    if r.card is None:
        planned = r.planned or {}
        text = (
            f"Would audit {len(plan.contenders)} selectors with {plan.seeds} seeds: {planned['trainings']:,} trainings."
        )
        say(r, as_json, f"{text}\nSamples of the stages: {sizes}.")
        return
    from curate.pages.audit import page, reading, rows

    head = f"Audit {name}: {r.cells_now:,} of {r.cells:,} cells done now. Samples of the stages: {sizes}."
    first, second = (table(rows(r.card, level), {k: k for k in rows(r.card, level)[0]}) for level in ("now", "later"))
    text = [head, "", "Now:", first, "", "Later:", second, "", *reading(r.card)]
    if path:
        path.write_text(page(r.card, f"Audit {name}"), encoding="utf-8")
        text.append(f"\nWritten: {path}.")
    say(_plain(r.card) if as_json else r, as_json, "\n".join(text) + notes(r.warnings))


def _plain(card: Scorecard) -> dict[str, Any]:
    """A scorecard as JSON values; None for NaN."""

    def numbers(values: Any) -> Any:
        if isinstance(values, list):
            return [numbers(v) for v in values]
        return None if values != values else values

    myopia = card.myopia
    myopia_values = (
        {
            "gap": myopia.gap,
            "each": myopia.each.tolist(),
            "null": myopia.null,
            "p": myopia.p,
            "agree": myopia.agree,
            "interval": myopia.interval,
        }
        if myopia
        else None
    )
    measures = {name: numbers(values.tolist()) for name, values in card.measures.items()}
    return {"selectors": card.selectors, "stages": card.stages, "measures": measures,
            "matrices": numbers(card.matrices.tolist()), "ranked": card.ranked, "myopia": myopia_values,
            "missing": card.missing}  # fmt: skip
