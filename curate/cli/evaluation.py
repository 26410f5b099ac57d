"""evaluate: metrics of a run's model, tasks of lm-evaluation-harness, and results made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, by_owner, grouped, models_of, workspace
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import table

if TYPE_CHECKING:
    from curate.runs.evaluation import EvalSpec
    from curate.store.workspace import Workspace


@dataclass(frozen=True)
class Evaluations:
    """What is said of evaluations: the metrics, the few-shot examples, the number of questions, their average."""

    metric_names: Sequence[str]
    shots: int
    limit: int
    average: Literal["micro", "macro"]

    @property
    def given(self) -> bool:
        """Whether anything was said."""
        return bool(self.metric_names or self.shots or self.limit or self.average != "micro")

    def specs(self, targets: Sequence[str], split: str, own: Mapping[str, dict[str, str]]) -> list[EvalSpec]:
        """Every metric on every target; own: the settings of each metric."""
        metrics = [registry.make("metric", name, own.get(name)) for name in self.metric_names or ("loss",) if targets]
        return [
            curate.EvalSpec(target, metric, split, self.shots, self.limit, self.average)
            for target in targets
            for metric in metrics
        ]


evaluation_options = grouped(
    "evaluations",
    Evaluations,
    click.option(
        "--metric",
        "metric_names",
        multiple=True,
        metavar="METHOD",
        help="See `curate methods metric`; may be repeated.  [default: loss]",
    ),
    click.option(
        "--shots",
        default=0,
        show_default=True,
        metavar="K",
        help="Number of few-shot examples before each question, from the target's split val.",
    ),
    click.option("--limit", default=0, metavar="N", help="Evaluate only the first N questions."),
    click.option(
        "--average",
        type=click.Choice(["micro", "macro"]),
        default="micro",
        show_default=True,
        help="Average all questions alike, or the averages of the sub-tasks.",
    ),
)


def one_model(names: list[str], settings: dict[str, str]) -> Any:
    """The only model; None if none is named. Raises CurateError for a model with a role, or settings without one."""
    by_role = models_of(names, settings)
    if set(by_role) - {""}:
        raise CurateError(f"--model {names[0]}: only one model is used here, so name it without a role.")
    return by_role.get("")


def evaluated(rows: list[dict[str, Any]]) -> list[str]:
    """The values of evaluations as a table; none if there are none."""
    columns = {k: k for k in ("target", "split", "metric", "shots", "value", "judged", "questions", "better")}
    columns["judged"] = "evaluated"
    return [table(rows, columns)] if rows else []


def _by_subtask(rows: list[dict[str, Any]]) -> list[str]:
    columns = {"target": "target", "metric": "metric", "subtask": "sub-task", "value": "value", "judged": "evaluated"}
    return [table(rows, columns)] if rows else []


def told(rows: list[dict[str, Any]]) -> list[str]:
    """What is to be known of how evaluations were done, once."""
    return list(dict.fromkeys(row["note"] for row in rows if row.get("note")))


@click.command()
@click.argument("run")
@workspace(writes=True)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="A target to evaluate on; may be repeated.")
@evaluation_options
@click.option("--split", default="test", show_default=True, metavar="SPLIT", help="test (evaluation) or val.")
@click.option("--allow-val", is_flag=True, help="Allow evaluating on val, which selection uses.")
@click.option(
    "--model",
    "model_name",
    metavar="MODEL",
    help="Evaluate this untrained model under the name RUN, as the baseline of a comparison.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="A task of lm-evaluation-harness, run as it is; may be repeated. --shots and --limit hold for it, too.",
)
@click.option(
    "--task-dir",
    metavar="DIR",
    help="Folder of the tasks' YAML files; paths in these are as for lm_eval.  [default: the harness's own tasks]",
)
@click.option(
    "--attach",
    metavar="FILE",
    help="Evaluate nothing: store for RUN the values in a JSON file that `lm_eval --output_path` wrote elsewhere.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OWNER.FIELD=VALUE",
    help="A setting of a metric (exact_match.final_answer=whole) or the model.",
)
@as_json_option
def evaluate(
    ws: Workspace,
    run: str,
    targets: tuple[str, ...],
    evaluations: Evaluations,
    split: str,
    allow_val: bool,
    model_name: str | None,
    tasks: tuple[str, ...],
    task_dir: str | None,
    attach: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate a run's model on the questions of targets, or on tasks of lm-evaluation-harness.

    Stored evaluations are not repeated. Results are in the table `evaluations`; those of every question are stored with
    the run.
    """
    own_settings = by_owner([*evaluations.metric_names, "model"], evaluations.metric_names, settings)
    evals = evaluations.specs(targets, split, own_settings)
    model = one_model([model_name] if model_name else [], own_settings["model"])
    r = curate.evaluate(
        ws,
        run,
        evals,
        shots=evaluations.shots,
        limit=evaluations.limit,
        model=model,
        allow_val=allow_val,
        tasks=tasks,
        task_dir=task_dir,
        attach=attach,
    )
    unevaluated = [
        f"{row['questions'] - row['judged']:,} of {row['target']} could not be evaluated by {row['metric']}"
        for row in r.evaluations
        if row["questions"] > row["judged"]
    ]
    say(
        r,
        as_json,
        "\n".join([f"Run {run}, step {r.step}:", *evaluated(r.evaluations), *_by_subtask(r.subtasks)])
        + notes([*unevaluated, *told(r.evaluations)]),
    )
