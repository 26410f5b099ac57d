"""score, neighbors, explain: scores and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.console import NOT_SHOWN, notes, say
from curate.cli.options import (
    as_json_option,
    by_owner,
    dry_run_option,
    models_of,
    workspace,
)
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import in_time, one_line, table

if TYPE_CHECKING:
    from curate.store.workspace import Workspace


@click.command()
@click.argument("method_names", nargs=-1, required=True, metavar="METHOD…")
@workspace(writes=True)
@click.option("--target", "target_name", metavar="NAME", help="The target of methods that use one.")
@click.option(
    "--name",
    "given_names",
    multiple=True,
    metavar="N | METHOD=N",
    help="The score's name.  [default: METHOD, or METHOD_TARGET]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[METHOD.]FIELD=VALUE",
    help="A setting of a method (see `curate methods score`), of the executor (local.timeout=60, ray.gpus=1) or of the "
    "model (model.dtype=float32, model.batch_tokens=8192, model.context=1024, …).",
)
@click.option(
    "--model",
    "model_names",
    multiple=True,
    metavar="MODEL | ROLE=MODEL",
    help="The model of methods that use one: a folder, a .gguf file, a hub id, a run, or tiny, smollm2-135m, minilm. "
    "Without a ROLE it is the base model (for embed alone, the encoder).",
)
@click.option(
    "--checkpoints",
    multiple=True,
    metavar="RUN | FOLDER[@LR]",
    help="Checkpoints to take gradients at, instead of --model: a run; a checkpoint's folder (a whole model or a peft "
    "adapter, with its optimizer.pt); or a folder with checkpoint-100, …. LR: its learning rate, if not recorded.",
)
@click.option(
    "--vectors",
    "vectors_names",
    multiple=True,
    metavar="N | METHOD=N",
    help="The name of the vectors of methods that store some (embed, embed_lm).  [default: METHOD]",
)
@click.option("--executor", "executor_name", default="local", show_default=True, help="See `curate methods executor`.")
@click.option("--workers", type=int, metavar="N", help="Worker processes, or actors.  [default: the executor's]")
@click.option("--fresh", is_flag=True, help="Recompute from scratch, and replace the existing table when complete.")
@dry_run_option
@as_json_option
def score(
    ws: Workspace,
    method_names: tuple[str, ...],
    target_name: str | None,
    given_names: tuple[str, ...],
    settings: tuple[str, ...],
    model_names: tuple[str, ...],
    checkpoints: tuple[str, ...],
    vectors_names: tuple[str, ...],
    executor_name: str,
    workers: int | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score every sample by one or more METHODs.

    Only missing values are computed, so running the same command again resumes an interrupted one; a stale score is
    recomputed and then replaces the old one. Methods that use the same model share one pass through it.
    """
    own_settings = by_owner([*method_names, executor_name, "model"], method_names, settings)
    methods = [registry.make("score", name, own_settings[name]) for name in method_names]
    worker_settings = {"workers": str(workers)} if workers is not None else {}
    executor = registry.make("executor", executor_name, {**worker_settings, **own_settings[executor_name]})
    names = dict(_score_name("--name", text, method_names) for text in given_names)
    vectors = dict(_score_name("--vectors", text, method_names) for text in vectors_names)
    results = curate.score(
        ws,
        *methods,
        target=target_name,
        names=names,
        vectors=vectors,
        fresh=fresh,
        executor=executor,
        models=models_of(model_names, own_settings["model"], nameless=bool(checkpoints)),
        checkpoints=checkpoints,
        dry_run=dry_run,
    )
    say(results, as_json, "\n".join(_scored(r, dry_run) for r in results))


def _score_name(option: str, text: str, method_names: Sequence[str]) -> tuple[str, str]:
    owner, equals, name = text.partition("=")
    if equals:
        return owner, name
    if len(method_names) > 1:
        raise CurateError(f"{option} {text}: with several methods say whose, as in {option} {method_names[0]}={text}.")
    return method_names[0], text


_UPPER_BOUND = (
    "\nOf forward passes FLOPs and time are upper bounds: a beginning that samples have in common is computed once."
)


def _scored(r: Any, dry_run: bool) -> str:
    if dry_run:
        columns = {
            "pass": "pass",
            "shards": "shards",
            "units": "units",
            "rows": "rows",
            "text_chars": "characters",
            "flops": "FLOPs",
            "bytes": "bytes",
            "time": "time",
        }
        planned = [{**row, "time": in_time(row["seconds"])} for row in r.planned]
        vectors_part = f"{_scored(r.vectors, dry_run)}\n" if r.vectors else ""
        bound = _UPPER_BOUND if any(row["flops"] for row in planned) else ""
        return f"{vectors_part}{r.name} would run\n" + table(planned, columns) + bound
    why = "; ".join(f"{n:,} {one_line(reason)}" for reason, n in list(r.reasons.items())[:3])
    nulls = f", {r.nulls:,} of {r.rows:,} null ({why or 'with no reason'}; see {r.name}.error)" if r.nulls else ""
    cut = f", {r.cut:,} of them truncated to the model's context" if r.cut else ""
    cut += f", {r.partial:,} of them scored in part ({NOT_SHOWN})" if r.partial else ""
    cut += f" ({r.products})" if r.products else ""
    if r.kind == "vectors":
        summary = f"vectors {r.name}: {r.computed:,} encoded, {r.reused:,} cached"
        target_cut = f"; {r.cut_of_target:,} of the target's examples truncated to it" if r.cut_of_target else ""
        return f"{summary}{nulls}{cut}{target_cut}; {r.index}."
    vectors_part = f"{_scored(r.vectors, dry_run)}\n" if r.vectors else ""
    held_out_note = f", {r.left_out:,} held out for the warm-up or as anchors" if r.left_out else ""
    note = f"\n{r.note[0].upper()}{r.note[1:]}." if r.note else ""
    summary = f"{r.name}: {r.computed:,} scored, {r.reused:,} cached{nulls}{held_out_note}{cut}."
    return vectors_part + summary + note


@click.command()
@click.argument("vectors")
@workspace(writes=True)
@click.option("--text", metavar="WORDS", help="Query text, encoded by the vectors' model.")
@click.option("--id", "sample", metavar="ID", help="Or the id of a sample of the pool as query.")
@click.option("-k", "count", default=10, show_default=True, metavar="N", help="Number of neighbours.")
@as_json_option
def neighbors(ws: Workspace, vectors: str, text: str | None, sample: str | None, count: int, as_json: bool) -> None:
    """Show the samples most similar to a text or another sample, by VECTORS (such as `curate score embed` makes)."""
    r = curate.neighbors(ws, vectors, text=text, sample_id=sample, k=count)
    lines = [{**row, "text": " ".join(row["text"].split())[:80]} for row in r.found]
    columns = {"similarity": "cosine", "id": "id", "source": "source", "text": "text"}
    say(r, as_json, (table(lines, columns) if lines else "There is none.") + notes(r.warnings))


@click.command()
@click.argument("sample_id", metavar="ID")
@workspace()
@click.option("--score", required=True, metavar="NAME", help="A score based on similarities: less, embed, embed_lm.")
@click.option("-k", "count", default=5, show_default=True, metavar="N", help="How many most and least similar to show.")
@as_json_option
def explain(ws: Workspace, sample_id: str, score: str, count: int, as_json: bool) -> None:
    """Show why the sample ID scored high or low: the target's examples that it is most and least similar to.

    ID may also be an example of the target; then the pool's samples most and least similar to it are shown.
    """
    r = curate.explain(ws, sample_id, score, k=count)
    say(r, as_json, _explained(r) + notes(r.warnings))


def _explained(r: Any) -> str:
    label_column = "subtask" if r.of == "pool" else "source"
    columns = {
        "similarity": "similarity",
        "id": "id",
        label_column: label_column.replace("subtask", "sub-task"),
        "text": "text",
    }
    searched = f"the target {r.target}" if r.of == "pool" else "the pool"
    words = [f"{r.id}: {_short(r.text)}"]
    if r.score is not None:
        means = ", ".join(f"{name or 'all'} {value:.4f}" for name, value in r.subtasks.items())
        words.append(f"{r.score_name} = {r.score:.4f} (mean similarity: {means})")
    for title, rows in ((f"most like it in {searched}", r.for_it), (f"least like it in {searched}", r.against_it)):
        words += [f"\n{title}:", table([{**row, "text": _short(row["text"])} for row in rows], columns)]
    return "\n".join(words)


def _short(text: str) -> str:
    return " ".join(text.split())[:80]
