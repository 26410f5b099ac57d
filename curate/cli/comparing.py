"""compare: quality and cost of runs, or what manifests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import curate
from curate.cli.console import notes, page_path, say
from curate.cli.looking import compared_manifests
from curate.cli.options import as_json_option, workspace
from curate.errors import CurateError
from curate.text_table import table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace
    from curate.verbs.compare import Compared


@click.command()
@click.argument("runs", nargs=-1)
@workspace()
@click.option("--against", metavar="RUN", help="Run whose arm the others are compared with.  [default: the first]")
@click.option(
    "--flops",
    "budget",
    type=float,
    metavar="FLOPS",
    help="FLOPs up to which areas under curves are taken.  [default: all of the cheapest trained run]",
)
@click.option("-o", "--output", metavar="FILE", help="Write the page FILE.html and its figure FILE.png.")
@as_json_option
def compare(
    ws: Workspace, runs: tuple[str, ...], against: str | None, budget: float | None, output: str | None, as_json: bool
) -> None:
    """Compare runs: the quality each reached against its total cost. Without RUNS, all runs. Of names of manifests,
    their overlap, composition and effective size (`curate diff`).

    Runs that differ only in their seed form one arm. Costs in FLOPs are from the ledger: selection, which is
    everything the selection is based on; training (train); and what a weighting needs in addition (online). Where the
    runs' model as it was is among them (`curate evaluate base --model M`), there are also the mean quality over these
    FLOPs (area), and the gain per FLOP.
    """
    if runs and all(name in ws.manifest_names() for name in runs):
        _compare_manifests(ws, runs, against, as_json)
        return
    r = curate.compare(ws, runs, against=against, budget=budget)
    columns = {"arm": "arm", "seeds": "seeds", **{key: key for key in r.measures}}
    rows = [
        {
            "arm": arm.name + (f" (control of {arm.null_of})" if arm.null_of else ""),
            "seeds": len(arm.runs),
            **{key: arm.shown(key) for key in arm.quality},
            **{key: f"{getattr(arm.cost, key):.3g}" for key in _COSTS},
            "seconds": round(arm.cost.seconds, 1),
            "effective": "" if arm.effective is None else f"{arm.effective:.3f}",
        }
        for arm in r.arms
    ]
    text = table(rows, {**columns, **_COSTS, "seconds": "seconds", "effective": "effective share"})
    if r.budget:
        text += f"\n\nMean quality up to {r.budget:.3g} FLOPs (area), and gain per FLOP:\n{_areas(r)}"
    from curate.pages.comparison import page, plot, reading

    written = ""
    if output:
        path = page_path(output, "comparison.html")
        path.write_text(page(r, f"Runs of {ws.path}"), encoding="utf-8")
        path.with_suffix(".png").write_bytes(plot(r))
        written = f"\nWritten: {path} and {path.with_suffix('.png')}."
    say(r, as_json, "\n".join([text, "", *reading(r)]) + written + notes(r.warnings))


def _areas(r: Compared) -> str:
    """Of each arm and measure, the area under its curve and the gain per FLOP."""
    rows = [
        {
            "arm": arm.name,
            **{key: arm.shown(key, "area") for key in arm.area},
            **{f"{key} gain": arm.shown(key, "gain") for key in arm.gain},
        }
        for arm in r.arms
        if arm.area
    ]
    return table(rows, {"arm": "arm"} | {k: k for key in r.measures for k in (key, f"{key} gain")})


def _compare_manifests(ws: Workspace, names: Sequence[str], against: str | None, as_json: bool) -> None:
    """Compare each manifest with the first, or with `against`."""
    first = against or names[0]
    others = [name for name in names if name != first]
    if not others:
        raise CurateError(f"name another manifest to compare {first} with, as in `curate compare {first} OTHER`.")
    found = [curate.diff(ws, first, name) for name in others]
    text = [f"{first} and {r.b}: {compared_manifests(r)}{notes(r.warnings)}" for r in found]
    say(found, as_json, "\n\n".join(text))


_COSTS = {
    "prep": "selection FLOPs",
    "prep_marginal": "marginal selection FLOPs",
    "train": "training FLOPs",
    "online": "online FLOPs",
    "total": "total FLOPs",
}
