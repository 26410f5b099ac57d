"""audit: evaluates selectors over several training stages, from a plan in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, dry_run_option, workspace
from curate.errors import CurateError
from curate.text_table import table

if TYPE_CHECKING:
    from curate.numerics.long_horizon.scorecard import Scorecard
    from curate.store.workspace import Workspace


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--plan", "plan_file", required=True, metavar="FILE", help="The audit's plan, in TOML (docs: Audit).")
@click.option("--model", "model_name", metavar="MODEL", help="Use this model instead of the plan's.")
@click.option("--seeds", type=int, metavar="N", help="Number of seeds, instead of the plan's.")
@click.option("-o", "--output", metavar="FILE", help="Write the scorecard and its figures to the page FILE.html.")
@click.option("--fresh", is_flag=True, help="Discard an existing audit of that name and start over.")
@dry_run_option
@as_json_option
def audit(
    ws: Workspace,
    name: str,
    plan_file: str,
    model_name: str | None,
    seeds: int | None,
    output: str | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train in stages on each selector's data, and measure whether what wins now helps or harms later stages.

    Running the same command again resumes an interrupted audit.
    """
    from curate.runs.audit_toml import read_plan

    plan = read_plan(Path(plan_file), model_name, seeds, ws.trusted)
    path = Path(output).with_suffix(".html") if output else None
    if path and not path.parent.is_dir():
        raise CurateError(f"{path.parent}: there is no such folder to write {path.name} into.")
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
