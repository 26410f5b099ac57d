"""trial, foretell, combine: trainings on random subsets of the pool, and which scores foretell what training gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import curate
from curate.cli.console import notes, page_path, say
from curate.cli.evaluation import one_model
from curate.cli.options import as_json_option, by_owner, workspace
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace
    from curate.verbs.foretell import Foretold
    from curate.verbs.trial import Trialed

# What a trial on another's checkpoints has from that one.
_OF_TRIAL = ("model_name", "subsets", "share", "where", "stratify", "repeats", "repeated", "weighting", "seed")
_OF_TRIAL += ("keep_checkpoints",)


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--model", "model_name", metavar="MODEL", help="What every training starts from.")
@click.option("--target", required=True, metavar="NAME", help="The target whose examples' losses are measured.")
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="Of the target.")
@click.option("--subsets", type=int, default=64, show_default=True, metavar="K", help="Random subsets of the samples.")
@click.option("--share", type=float, default=0.5, show_default=True, help="Share of the samples in every subset.")
@click.option("--where", default="", metavar="SQL", help="Draw only among the samples that satisfy a condition.")
@click.option("--stratify", is_flag=True, help="Draw the same share of every source.")
@click.option(
    "--repeats",
    type=int,
    default=1,
    show_default=True,
    metavar="R",
    help="Train R times on some subsets, with other seeds: what differs is noise, by which any score is limited.",
)
@click.option("--repeated", type=int, default=16, show_default=True, metavar="N", help="On how many of the subsets.")
@click.option(
    "--weighting", default="uniform", show_default=True, metavar="METHOD", help="See `curate methods weighting`."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the subsets, and of the trainings.")
@click.option("--keep-checkpoints", is_flag=True, help="Keep what was trained, for trials of other targets (--of).")
@click.option(
    "--of",
    default="",
    metavar="TRIAL",
    help="Train nothing: measure --target on what that trial has trained and kept.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[OWNER.]FIELD=VALUE",
    help="A setting of the trainings (lr=1e-4, lora_r=16; see `curate train --settings`), of the weighting "
    "(adapt.tau=0.5), of the model (model.context=512) or of the executor (local.timeout=60).",
)
@click.option("--executor", "executor_name", default="local", show_default=True, help="See `curate methods executor`.")
@click.option("--workers", type=int, metavar="N", help="Worker processes, or actors.  [default: the executor's]")
@as_json_option
def trial(
    ws: Workspace,
    name: str,
    model_name: str | None,
    target: str,
    of: str,
    settings: tuple[str, ...],
    weighting: str,
    executor_name: str,
    workers: int | None,
    as_json: bool,
    **drawn: object,
) -> None:
    """Train on random subsets of the pool, each from the same model, and store the loss of every target example.

    What such a trial says of a score, `curate foretell` tells; `SELECT * FROM trials` shows the losses. Running the
    same command again goes on with an interrupted trial.
    """
    from curate.runs.trial import TrialSpec
    from curate.training.settings import TrainSettings, from_hugging_face

    own = by_owner(["", weighting, "model", executor_name], [], settings)
    worker_settings = {"workers": str(workers)} if workers is not None else {}
    executor = registry.make("executor", executor_name, {**worker_settings, **own[executor_name]})
    if of:
        if given := sorted({*_given(_OF_TRIAL)} | {"set" for key in ("", weighting, "model") if own[key]}):
            raise CurateError(
                f"--of {of}: what that trial has trained has its model, its subsets and its settings; leave out "
                f"--{given[0]}."
            )
        r = curate.trial(ws, name, of=of, target=target, split=drawn["split"], executor=executor)
    elif model_name is None:
        raise CurateError("a trial needs --model, which every training starts from; or --of, a trial that has trained.")
    else:
        spec = TrialSpec(
            model=one_model([model_name], own["model"]),
            target=target,
            weighting=registry.make("weighting", weighting, own[weighting]),
            settings=registry.with_settings(TrainSettings, from_hugging_face(own[""], 1), "the trainings"),
            **drawn,  # type: ignore[arg-type]
        )
        r = curate.trial(ws, name, spec, executor=executor)
    _say(r, target, as_json)


def _given(options: Sequence[str]) -> list[str]:
    """Which of these options the command line has, by their names there."""
    context = click.get_current_context()
    of_line = [option for option in options if context.get_parameter_source(option) is ParameterSource.COMMANDLINE]
    return [option.removesuffix("_name").replace("_", "-") for option in of_line]


def _say(r: Trialed, target: str, as_json: bool) -> None:
    row = {
        "before": r.base,
        "after": r.mean,
        "spread": r.spread,
        "reliability": r.reliability,
        "standard error": r.error,
    }
    shown = {key: "not known" if value is None else f"{value:.4g}" for key, value in row.items()}
    head = (
        f"Trial {r.name}: {r.trainings_now:,} of {r.trainings:,} trainings done now, on {r.subsets} subsets of "
        f"{r.samples:,} samples. The loss of {target} before, the mean after, its standard deviation over subsets:"
    )
    say(r, as_json, "\n".join([head, "", table([shown], {key: key for key in shown})]) + notes(r.warnings))


@click.command()
@click.argument("trial_name", metavar="TRIAL")
@click.argument("scores", nargs=-1, required=True, metavar="SCORE...")
@workspace(writes=True)
@click.option("--draws", type=int, default=1000, show_default=True, metavar="N", help="Of bootstrap and permutations.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of these draws.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@click.option(
    "--counterfactual",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Train also without the best such share of the samples by each score, on it alone, and with random ones.",
)
@click.option("--seeds", type=int, default=3, show_default=True, metavar="N", help="Of each of these trainings.")
@click.option("--executor", "executor_name", default="local", show_default=True, help="See `curate methods executor`.")
@click.option("--workers", type=int, metavar="N", help="Worker processes, or actors.  [default: the executor's]")
@click.option("-o", "--output", metavar="FILE", help="Write the page FILE.html and its figure FILE.png.")
@as_json_option
def foretell(
    ws: Workspace,
    trial_name: str,
    scores: tuple[str, ...],
    executor_name: str,
    workers: int | None,
    output: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Compare scores by how well they foretell a trial's trainings, which were not chosen by any of them.

    A SCORE is a stored score, a manifest (its weights), or an SQL expression over `samples`; higher means better. `lds`
    is the rank correlation, over the trial's subsets, of its sum over a subset with what training on that gained on the
    target (linear datamodeling score); p is of values dealt out anew, adjusted for all that are compared.
    """
    worker_settings = {"workers": str(workers)} if workers is not None else {}
    executor = registry.make("executor", executor_name, worker_settings)
    path = page_path(output, "foretell.html") if output else None
    r = curate.foretell(ws, trial_name, *scores, executor=executor, **how)
    written = ""
    if path:
        from curate.pages.foretelling import page, plot

        path.write_text(page(r, f"What foretells the trial {trial_name}"), encoding="utf-8")
        path.with_suffix(".png").write_bytes(plot(r))
        written = f"\nWritten: {path} and {path.with_suffix('.png')}."
    say(r, as_json, _foretold(r) + written + notes(r.warnings))


def _foretold(r: Foretold) -> str:
    rows = [
        {
            "score": row.score,
            "lds": _figure(row.lds),
            "95 %": "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}",
            "p": _figure(row.adjusted),
            "each": _figure(row.each),
            "best": f"{row.best:.0%}",
            "samples": f"{row.samples:,}",
            **({"harm": _interval(row.harm), "help": _interval(row.help)} if r.counterfactual else {}),
            "FLOPs": "" if row.flops is None else f"{row.flops:.2e}",
            "LDS per FLOP": "" if row.per_flop is None else f"{row.per_flop:.1e}",
            "seconds": "" if row.seconds is None else f"{row.seconds:,.1f}",
        }
        for row in r.rows
    ]
    head = (
        f"Trial {r.trial}: {r.subsets} subsets of {r.samples:,} samples; by chance a correlation is {r.error:.2f} off."
    )
    most = "" if r.ceiling is None else f"To be had at most, by repeated trainings: {r.ceiling:.2f}. "
    most += "" if r.datamodel is None else f"Regression on the subsets themselves, each left out: {r.datamodel:.2f}."
    if r.counterfactual:
        head += (
            f" harm: how much more the target's loss is without the best {r.counterfactual:.0%} than without random "
            f"ones; help: how much less on the best alone; 95 % over {r.seeds} seeds."
        )
    lines = [head, "", table(rows, {key: key for key in rows[0]}), "", *([most.strip()] if most else []), r.reading]
    return "\n".join(lines)


def _interval(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


@click.command()
@click.argument("trial_name", metavar="TRIAL")
@click.argument("scores", nargs=-1, required=True, metavar="SCORE SCORE...")
@workspace()
@click.option("--draws", type=int, default=1000, show_default=True, metavar="N", help="Of the bootstrap over subsets.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of these draws.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@as_json_option
def combine(ws: Workspace, trial_name: str, scores: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Fit a weighted sum of SCOREs to what a trial's trainings gained, and print it as an SQL expression.

    The expression goes wherever one is taken: `curate select --by`, `curate weigh --by`, `curate foretell`. How well it
    foretells is told of subsets that the fit has not seen.
    """
    r = curate.combine(ws, trial_name, *scores, **how)
    rows = [
        {
            "score": row.score,
            "weight": f"{row.weight:+.3g}",
            "95 %": f"{row.low:+.3g} to {row.high:+.3g}",
            "lds alone": _figure(row.lds),
        }
        for row in r.rows
    ]
    head = (
        f"Fitted to {r.subsets} subsets of the trial {r.trial}; a weight is the gain by a standard deviation of the "
        "score."
    )
    told = (
        f"Of subsets left out it foretells {r.held_out:.2f} ({r.low:.2f} to {r.high:.2f}); the best alone, "
        f"{r.best_alone}, {r.best_lds:.2f}."
    )
    lines = [head, "", table(rows, {key: key for key in rows[0]}), "", told, "", r.expression]
    say(r, as_json, "\n".join(lines) + notes(r.warnings))
