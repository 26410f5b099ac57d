"""An estimate of the work of a score, before anything is computed (`curate score --dry-run`)."""

from __future__ import annotations

from typing import Any

from curate.kinds.passes import Pass
from curate.models.choice import CHARS_PER_TOKEN, parameters
from curate.store.commits import Parts
from curate.tables.engine import Scored, computed_anew, missing_shards, stored_recipe
from curate.tables.plan import refuse_other_recipe
from curate.tables.spec import TableSpec


def estimate(job: TableSpec, fresh: bool) -> Scored:
    """The work of computing a table: for each pass, shards, units, rows, characters of text and FLOPs."""
    result = Scored(job.name, job.method.name, job.recipe.target or None, job.kind)
    previous_state = ""
    if not fresh:
        refuse_other_recipe(stored_recipe(job), job)
    planned = job.checkpoint_set.planned
    if planned and (job.kind == "vectors" or job.vectors is None):
        result.planned.append(_warm_up(job))
    for index, step in enumerate(job.passes):
        if step.reduce:
            parts, state = job.prepared(index, previous_state)
            previous_state = f"{parts.folder.name}/{state}"
            todo = [] if parts.record(state) else job.shards
            if step.over != "pool":
                result.planned += [_aim(job, step)] if todo else []
                continue
        else:
            todo = job.shards if computed_anew(job, fresh) else missing_shards(Parts(job.folder), job)
        chars = sum(shard.n_chars for shard in todo)
        model_views = {(job.models[request.model], request.view) for request in step.requests.values()}
        passes = 4 * (planned or len(job.checkpoint_set.checkpoints)) if job.both_ways else 2
        flops = sum(passes * parameters(choice) * chars / CHARS_PER_TOKEN for choice, _ in model_views)
        result.planned.append(
            {
                "pass": step.name,
                "shards": len(todo),
                "units": sum(len(job.units_of(shard)) for shard in todo),
                "rows": sum(shard.rows for shard in todo),
                "text_chars": chars,
                "flops": flops,
            }
        )
    return result


def _warm_up(job: TableSpec) -> dict[str, Any]:
    """The preceding training: FLOPs per token and parameter are 4 for LoRA (frozen weights get no gradient), 6 else."""
    warmup = job.method.warm_up()
    assert warmup is not None
    epochs, factor = warmup.settings.get("epochs", 1.0), 4 if warmup.settings.get("lora_r") else 6
    chars = warmup.share * sum(shard.n_chars for shard in job.shards)
    flops = factor * parameters(job.models["base"]) * epochs * chars / CHARS_PER_TOKEN
    rows = int(warmup.share * sum(shard.rows for shard in job.shards))
    return {"pass": "warm-up", "shards": 0, "units": 1, "rows": rows, "text_chars": int(chars), "flops": flops}


def _aim(job: TableSpec, step: Pass) -> dict[str, Any]:
    """The work of a pass over the target's examples, or over the anchors."""
    examples = job.aim(step)
    chars = int(examples.text.whole.str.len_chars().sum())
    flops = 6 * len(job.checkpoints) * parameters(job.models["base"]) * chars / CHARS_PER_TOKEN
    rows = len(examples.subtasks)
    return {"pass": step.name, "shards": 0, "units": 1, "rows": rows, "text_chars": chars, "flops": flops}
