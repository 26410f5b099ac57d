"""train, prune: training models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.console import NOT_SHOWN, notes, say, show
from curate.cli.evaluation import Evaluations, evaluated, evaluation_options, one_model, told
from curate.cli.options import (
    as_json_option,
    by_owner,
    dry_run_option,
    grouped,
    pairs,
    set_option,
    settings_text,
    workspace,
)
from curate.cli.plan_file import plan_option, with_plan
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import counted, in_bytes, in_time, table

if TYPE_CHECKING:
    from curate.runs.config import StreamSource, TrainingSpec
    from curate.store.workspace import Workspace


@dataclass(frozen=True)
class _TrainingOptions:
    """What is said of a training, but its settings."""

    model: str
    manifest: str | None
    stream: str | None
    reference: str | None
    mask: str | None
    weighting: str
    target: str | None
    by: str | None
    seed: int
    allow_stale: bool

    def spec(self, ws: Workspace, own: Mapping[str, dict[str, str]]) -> TrainingSpec:
        """The training; own: the settings of each owner that --set may name."""
        from curate.arguments.trainings import training_of
        from curate.training.settings import TrainSettings, from_hugging_face

        own_training = from_hugging_face(own[""], int(os.environ.get("WORLD_SIZE", "1")))
        given = {
            "model": one_model([self.model], own["model"]),
            "weighting": registry.make("weighting", self.weighting, own[self.weighting]),
            "settings": registry.with_settings(TrainSettings, own_training, "the training"),
            "stream": _feed(self.stream, own["stream"]),
            "reference": one_model([self.reference], own["model"]) if self.reference else None,
        }
        as_said = ("manifest", "target", "by", "seed", "allow_stale", "mask")
        return training_of(ws, None, {**given, **{name: getattr(self, name) for name in as_said}})


_training_options = grouped(
    "options",
    _TrainingOptions,
    click.option(
        "--model",
        "model",
        required=True,
        metavar="MODEL",
        help="A folder, a .gguf file, a hub id, a run, or tiny, smollm2-135m; config:FILE begins at random.",
    ),
    click.option("--manifest", metavar="NAME", help="Manifest or mixture to train on.  [default: the whole pool]"),
    click.option(
        "--stream",
        metavar="PATH",
        help="Train on samples from PATH, or - (standard input, JSON lines), as they are read, instead of the pool; "
        "needs --set steps=N. To replay past samples: --set stream.memory=256 --set stream.replay=0.25.",
    ),
    click.option(
        "--reference",
        metavar="MODEL",
        help="Reference model whose losses weightings such as rho_online and stm use.  [default: --model]",
    ),
    click.option("--mask", "mask", metavar="NAME", help="Train only this mask's parameters.  [default: all]"),
    click.option(
        "--weighting",
        "weighting",
        default="uniform",
        show_default=True,
        metavar="METHOD",
        help="See `curate methods weighting`.",
    ),
    click.option("--target", metavar="NAME", help="The target of weightings that use one, such as adapt."),
    click.option(
        "--by",
        metavar="SQL",
        help="Expression over `samples`: the column of weightings that use one (adapt_static, …).",
    ),
    click.option("--seed", default=0, show_default=True, help="Random seed of the sample order and of dropout."),
    click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete."),
)


@click.command()
@click.argument("run")
@workspace(writes=True)
@plan_option
@_training_options
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[OWNER.]FIELD=VALUE",
    help="A setting of the training (lr=1e-4, batch_size=64, lora_r=16; see --settings), of the weighting "
    "(adapt.tau=0.5), of the model (model.context=1024) or of a metric.",
)
@click.option(
    "--settings",
    "list_settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *arguments: _show_settings(*arguments),
    help="List the settings of the training, and exit.",
)
@click.option(
    "--eval",
    "evals",
    multiple=True,
    metavar="TARGET",
    help="Evaluate on the split test of TARGET, every eval_every steps and at the end.",
)
@evaluation_options
@click.option(
    "--flops",
    metavar="N",
    help="Train for so many FLOPs, as the ledger counts them, instead of epochs: as many steps as that pays for. "
    "With --set flops_for=everything it also pays for the scores, warm-ups and selection before it.",
)
@click.option("--flops-of", metavar="RUN", help="The same, for as many as another run took.")
@click.option("--fresh", is_flag=True, help="Train from scratch, and replace an existing run of that name.")
@dry_run_option
@as_json_option
def train(
    ws: Workspace,
    run: str,
    options: _TrainingOptions,
    settings: tuple[str, ...],
    evals: tuple[str, ...],
    evaluations: Evaluations,
    flops: str | None,
    flops_of: str | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model as the run RUN, on a manifest or the whole pool.

    Running the same command again resumes from the latest checkpoint. For several processes: `accelerate launch -m
    curate.cli train …`.
    """
    said, left_out_of_plan = with_plan(settings, options.weighting)
    context = click.get_current_context().params
    flops, flops_of = context["flops"], context["flops_of"]
    own_settings = by_owner(["", options.weighting, "model", "stream", *evaluations.metric_names], [], said)
    if flops is not None:
        if "flops" in own_settings[""]:
            raise CurateError("--flops and --set flops are the same setting; give one of them.")
        own_settings[""]["flops"] = flops
    training = options.spec(ws, own_settings)
    if evaluations.given and not evals:
        raise CurateError(
            "--metric, --shots, --limit and --average set how to evaluate; add --eval TARGET to evaluate on."
        )
    specs = evaluations.specs(evals, "test", own_settings)
    r = curate.train(ws, run, training, evals=specs, fresh=fresh, dry_run=dry_run, flops_of=flops_of)
    r.warnings += left_out_of_plan
    if not _alone():
        return
    if dry_run:
        p = r.planned or {}
        cost = f"about {p['tokens']:,.0f} tokens and {p['flops']:.3g} FLOPs, {in_bytes(p['bytes'])} of checkpoints"
        text = f"Would train {run} on {p['samples']:,} samples: {p['steps']:,} steps, {cost}; {in_time(p['seconds'])}."
        say(r, as_json, text + notes(r.warnings))
        return
    left_out = [f"{counted(n, 'sample')} were left out: {reason}" for reason, n in r.left_out.items()]
    left_out += [f"{counted(r.cut, 'sample')} were cut to the model's context"] if r.cut else []
    left_out += [f"{counted(r.partial, 'sample')} are trained on in part: {NOT_SHOWN}"] if r.partial else []
    loss = "" if r.loss is None else f"; loss {r.loss:.4f}, mean weight {r.weight_mean:.3f} at the last"
    progress = f"{r.steps_now:,} of {counted(r.steps, 'step')} taken now, on {counted(r.samples, 'sample')}"
    head = f"Run {run}: {progress}{loss}; {r.flops:.3g} FLOPs."
    lines = [head, f"The model is in {r.folder}.", *_weighed(r.by_epoch, r.by_source), *evaluated(r.evaluations)]
    say(r, as_json, "\n".join(lines) + notes([*left_out, *r.warnings, *told(r.evaluations)]))


def _feed(path: str | None, settings: dict[str, str]) -> StreamSource | None:
    """The stream of that path; None without one. Raises CurateError for a missing path or an invalid setting."""
    from curate.arguments.trainings import stream_of
    from curate.runs.config import ReplaySettings

    if path is None:
        if settings:
            raise CurateError(f"stream.{min(settings)} is a setting of a stream; name one by --stream PATH.")
        return None
    replay = registry.with_settings(ReplaySettings, settings, "the stream")
    return replace(stream_of(path), past=replay)


def _weighed(by_epoch: list[dict[str, Any]], by_source: list[dict[str, Any]]) -> list[str]:
    """Tables of the samples' weights by epoch and source; none if all weights are equal."""
    if all(row["least"] == row["most"] for row in by_epoch):
        return []
    columns = {
        "epoch": "epoch",
        "samples": "samples",
        "mean_weight": "mean weight",
        "least": "least weight",
        "most": "greatest weight",
        "spread": "sd of weights",
        "effective_share": "effective share",
    }
    columns |= {f"measure_{q}": f"measure, {q} %" for q in (5, 50, 95)}
    shares = {"source": "source", "share": "share of samples", "weighted_share": "by weight"}
    return [table(by_epoch, columns), table(by_source, shares)]


def _show_settings(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from curate.training.settings import TrainSettings

        show(f"--set FIELD=VALUE:{settings_text(registry.fields_help(TrainSettings))}")
        ctx.exit()


def _alone() -> bool:
    """Whether this process prints results: only the first of several does."""
    return os.environ.get("RANK", "0") == "0"


@click.command()
@click.argument("run")
@workspace(writes=True)
@click.option("--pruner", "pruner_name", required=True, metavar="METHOD", help="See `curate methods pruner`.")
@click.option("--sparsity", type=float, required=True, metavar="F", help="Fraction of every tensor's update to undo.")
@click.option("--name", metavar="NAME", help="Name of the new run.  [default: RUN_METHOD]")
@set_option
@as_json_option
def prune(
    ws: Workspace,
    run: str,
    pruner_name: str,
    sparsity: float,
    name: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prune the update of RUN: undo its least important changes, and store the result as a new run.

    The new run is evaluated and compared like any other.
    """
    method = registry.make("pruner", pruner_name, pairs(settings, "--set"))
    r = curate.prune(ws, run, method, sparsity, name=name)
    head = f"Run {r.name}: of {r.changed:,} parameters changed by {run} (of {r.parameters:,}), {r.kept:,} stay changed."
    say(r, as_json, f"{head}\nThe model is in {r.folder}.")
