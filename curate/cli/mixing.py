"""mix: domain weights for training mixtures."""

from __future__ import annotations

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, by_owner, models_of, workspace
from curate.errors import CurateError
from curate.kinds import registry
from curate.store.workspace import Workspace
from curate.text_table import table


@click.command()
@click.argument("name")
@workspace()
@click.option("--mixer", "mixer_name", required=True, metavar="METHOD", help="See `curate methods mixer`.")
@click.option(
    "--rows", type=int, metavar="N", help="Samples drawn per epoch of the mixture.  [default: the number of samples]"
)
@click.option("--tokens", type=float, metavar="N", help="Or tokens per epoch; weights are then shares of tokens.")
@click.option("--token-count", metavar="SQL", help="Number of tokens of a sample.  [default: n_chars / 4.0]")
@click.option(
    "--realise",
    type=click.Choice(["quota", "probability"]),
    default="quota",
    show_default=True,
    help="quota: every epoch has each domain's exact quota; probability: every draw's domain is random.",
)
@click.option(
    "--max-epochs",
    default="4",
    show_default=True,
    metavar="F",
    help="Most passes over a domain's samples in one epoch of the mixture (1: no repeats); none: no limit.",
)
@click.option("--lower", is_flag=True, help="Cap domains at --max-epochs and give the excess to the others.")
@click.option("--by", metavar="SQL", help="Expression over `samples`: the score of mixers that use one (softmax).")
@click.option("--domain", metavar="SQL", default="source", show_default=True, help="Expression for a sample's domain.")
@click.option("--manifest", metavar="NAME", help="Mix the samples of this manifest.  [default: the whole pool]")
@click.option("--model", "model_name", metavar="MODEL", help="Initial model of the proxies (doremi, regmix).")
@click.option(
    "--target", "targets", multiple=True, metavar="NAME", help="Targets that proxies are evaluated on (split val)."
)
@click.option("--metric", "metric_names", multiple=True, metavar="METHOD", help="For proxies.  [default: loss]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[OWNER.]FIELD=VALUE",
    help="A setting of the mixer (trials=64), of the proxies' training (train.steps=200), of the model "
    "(model.context=512), of a metric or of the executor.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the proxies' draws.")
@click.option("--executor", "executor_name", metavar="METHOD", help="What runs regmix's proxies.  [default: local]")
@click.option("--workers", type=int, metavar="N", help="Number of proxies trained in parallel.")
@click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete.")
@as_json_option
def mix(
    ws: Workspace,
    name: str,
    mixer_name: str,
    rows: int | None,
    tokens: float | None,
    token_count: str | None,
    realise: str,
    max_epochs: str,
    lower: bool,
    by: str | None,
    domain: str,
    manifest: str | None,
    model_name: str | None,
    targets: tuple[str, ...],
    metric_names: tuple[str, ...],
    settings: tuple[str, ...],
    seed: int,
    executor_name: str | None,
    workers: int | None,
    allow_stale: bool,
    as_json: bool,
) -> None:
    """Compute domain weights and store them as the mixture NAME, for `curate train` and `curate export`."""
    from curate.runs.evaluation import EvalSpec
    from curate.runs.proxies import Proxy
    from curate.tables.lookup import TOKENS
    from curate.training.settings import TrainSettings
    from curate.verbs.mix import MixtureSpec

    if metric_names and not targets:
        raise CurateError("--metric sets how proxies are evaluated; add --target NAME to evaluate them on.")
    metrics = metric_names or (("loss",) if targets else ())
    executor = executor_name or "local"
    own = by_owner(["", "train", "model", executor, *metrics], [], settings)
    mixer = registry.make("mixer", mixer_name, own[""])
    blend = MixtureSpec(
        rows,
        tokens,
        realise == "quota",
        _epochs(max_epochs),
        lower,
        by,
        domain,
        manifest,
        token_count or TOKENS,
        seed,
        allow_stale,
    )
    proxy, models = None, models_of([model_name] if model_name else [], own["model"])
    if set(models) - {""}:
        raise CurateError(f"--model {model_name}: only one model is used here, so name it without a role.")
    if models:
        given = {"workers": str(workers)} if workers is not None else {}
        proxy = Proxy(
            models[""],
            registry.make("weighting", "uniform"),
            registry.with_settings(TrainSettings, own["train"], "the proxies' training"),
            [
                EvalSpec(target, registry.make("metric", metric, own[metric]), "val")
                for target in targets
                for metric in metrics
            ],
            registry.make("executor", executor, {**given, **own[executor]}),
        )
    elif targets or metric_names or own["train"] or workers is not None or executor_name:
        raise CurateError(
            "--target, --metric, --executor, --workers and --set train.… are for proxies: give their initial model, by "
            "--model MODEL."
        )
    r = curate.mix(ws, name, mixer, blend, proxy=proxy)
    columns = {"source": "domain", "weight": "weight", "rows": "draws", "tokens": "tokens", "available": "samples"}
    columns["epochs"] = "epochs"
    how = "by quota" if blend.exact else "at random"
    head = f"Mixture {name}: {r.rows:,} draws {how}, about {r.tokens:,} tokens; weights are shares of "
    head += f"{'samples' if r.unit == 'rows' else 'tokens'}."
    info = [", ".join(f"{key} {value:.4g}" for key, value in r.told.items())] if r.told else []
    gone = [f"{r.without_domain:,} samples have no domain and are not drawn"] if r.without_domain else []
    held = [f"capped at {max_epochs} epochs: {', '.join(r.lowered)}"] if r.lowered else []
    say(r, as_json, f"{head}\n{table(r.by_domain, columns)}" + notes([*info, *held, *gone, *r.warnings]))


def _epochs(text: str) -> float | None:
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise CurateError(f"--max-epochs {text}: a number above 0, or none.") from None
